"""Options that several commands share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import click

from rlkit import config as configs
from rlkit.commands import completion
from rlkit.config.keys import SHORT
from rlkit.errors import ConfigError

set_option = click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any field of the config.",
    shell_complete=completion.settings,
)
plugins_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE|MODULE",
    help="Import a plugin first.",
    shell_complete=completion.files,
)
algo_option = click.option(
    "--algo",
    metavar="NAME",
    help="The algorithm: vimpo, grpo, ppo, ... (see `rlkit list`).",
    shell_complete=completion.plugins("algorithms"),
)

trust_option = click.option(
    "--trust-remote-code", "trusts", is_flag=True, help="Let the model's folder run code of its own."
)

# DeepSpeed's launcher gives it, and LOCAL_RANK says the same.
local_rank_option = click.option("--local_rank", "--local-rank", type=int, hidden=True, expose_value=False)


_SAID = {
    "model": "A folder or hub id, or embedded:s.",
    "data": "Training problems: a .json, .jsonl or .parquet file, or a data set's hub id.",
    "reward": "What judges: a name of `rlkit list rewards`, or FILE.py:FUNCTION.",
    "steps": "Rollouts: sample, score, update.",
    "lr": "Learning rate.",
    "batch": "Prompts of one rollout.",
}
_NUMBERS: dict[str, click.ParamType[Any]] = {
    "steps": click.IntRange(min=1),
    "lr": click.FLOAT,
    "batch": click.IntRange(min=1),
}


def short_options(several: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options for the keys that have a short name. What is called gets them as `shorts`: key=value, as `-s` takes them.

    several: each may be given several values, with commas between.
    """

    def decorate(f: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(f)
        def wrapped(**given: Any) -> Any:
            values = {SHORT[name]: given.pop(f"short_{name}") for name in SHORT}
            # Quoted, since values are read as YAML; several are read apart first.
            texts = {key: value if several else json.dumps(value) for key, value in values.items() if value is not None}
            return f(shorts=tuple(f"{key}={text}" for key, text in texts.items()), **given)

        for name, key in reversed(SHORT.items()):
            kind = None if several else _NUMBERS.get(name)
            wrapped = click.option(
                f"--{name}",
                f"short_{name}",
                type=kind,
                metavar="V,..." if several else "N" if name in _NUMBERS else "NAME",
                help=_SAID[name] if key == name else f"{_SAID[name]} Short for -s {key}=...",
                shell_complete=completion.OF_SHORT.get(name),
            )(wrapped)
        return wrapped

    return decorate


def joined(shorts: tuple[str, ...], overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Both, the short ones first: a reward's options go onto the reward. ConfigError for a key that both give."""
    given = {override.partition("=")[0].strip() for override in overrides}
    for short in shorts:
        key = short.partition("=")[0]
        name = next(name for name, full in SHORT.items() if full == key)
        if twice := given & {key, name}:
            raise ConfigError(f"--{name} and -s {twice.pop()}=... are the same key: give one of them")
    return (*shorts, *overrides)


def settings_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a config out of a preset or a file."""

    @click.argument("config", default="embedded", shell_complete=completion.presets)
    @algo_option
    @short_options()
    @set_option
    @plugins_option
    @functools.wraps(f)
    def wrapped(
        config: str,
        algo: str | None,
        shorts: tuple[str, ...],
        overrides: tuple[str, ...],
        plugins: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        return f(load(config, algo, joined(shorts, overrides), plugins), **rest)

    return wrapped


def load(
    config: str | dict[str, Any], algo: str | None, overrides: tuple[str, ...], plugins: tuple[str, ...]
) -> configs.RunConfig:
    loaded = configs.load(config, list(overrides), algo)
    return loaded.model_copy(update={"plugins": [*loaded.plugins, *(p for p in plugins if p not in loaded.plugins)]})
