"""A proposal as a config file: YAML, each setting with the reason for it as a comment above."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from rlkit.assembly.run import plan
from rlkit.config import load, parse_yaml
from rlkit.proposal.choosing import Proposal

WIDTH = 118


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as such."""


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def checked(made: Proposal, ranks: int, head: str, where: str) -> str:
    """The file's text, for which a plan can be made as for any config. ConfigError where it cannot."""
    text = page(made.settings, made.why, head)
    plan(load(parse_yaml(text, where)), ranks)
    return text


def in_brief(made: Proposal) -> list[str]:
    """What one looks at first, a line each."""
    settings = made.settings
    model, data, algo = settings["model"], settings["data"], settings["algo"]
    batch, longest = settings["batch"], settings["sampling"]["max_tokens"]
    held_out = data.get("eval_path") or ("none" if "eval_path" in data else "its own")
    rate = f"learning rate {settings['optimizer']['lr']:g}"
    prompts = f"{batch['prompts_per_step']} prompts x {batch['samples_per_prompt']} responses"
    lines = {
        "model": model["path"] + (" with LoRA" if "lora" in model else ""),
        "data": f"{data['path']}, held out: {held_out}",
        "reward": settings["reward"]["kind"],
        "algo": f"{algo['kind'] if isinstance(algo, Mapping) else algo}, {rate}",
        "batch": f"{settings['steps']} steps of {prompts}",
        "sampling": f"prompts of at most {data['max_prompt_tokens']} tokens, responses of at most {longest}",
    }
    return [f"  {name:<9} {said}" for name, said in lines.items()]


def page(settings: Mapping[str, Any], why: Mapping[str, str], head: str) -> str:
    """`why` has reasons by key, with dots; `head` stands above all. Lines of both stay lines, and long ones are
    wrapped."""
    return "\n".join([*_comment(head, ""), *_lines(settings, why, "", "")]) + "\n"


def _lines(settings: Mapping[str, Any], why: Mapping[str, str], above: str, indent: str) -> Iterator[str]:
    for key, value in settings.items():
        name = f"{above}{key}"
        if name in why:
            yield from _comment(why[name], indent)
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, why, f"{name}.", indent + "  ")
        else:
            said = yaml.dump({key: value}, Dumper=_Dumper, allow_unicode=True, width=10**6)
            yield textwrap.indent(said.rstrip("\n"), indent)


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in text.split("\n"):
        inner = line[: len(line) - len(line.lstrip())]
        wrapped = textwrap.wrap(
            line, WIDTH - len(indent), subsequent_indent=inner, drop_whitespace=True, break_long_words=False
        )
        yield from (f"{indent}# {each}".rstrip() for each in wrapped or [""])
