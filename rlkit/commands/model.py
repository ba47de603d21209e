"""The commands that take a run's model: sample, export."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlkit.commands import completion
from rlkit.commands.options import trust_option
from rlkit.errors import ConfigError, RlkitError
from rlkit.wording import number, visible

if TYPE_CHECKING:
    from rlkit.assembly.sampling import Asked, Message
    from rlkit.generation.sampled import Sampled
    from rlkit.scoring import Decoder


@click.command()
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]", shell_complete=completion.model_of_sample)
@click.option("--model", metavar="RUN|PATH", help="The same as MODEL.", shell_complete=completion.models)
@click.option("-n", "count", default=1, type=click.IntRange(min=1), help="Responses to each prompt.  [1]")
@click.option("--temperature", type=click.FloatRange(min=0), metavar="T", help="0: greedy.  [a run's; or 1]")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Longest response.  [a run's; or 512]")
@click.option("--seed", default=0, help="Decides what is drawn.  [0]")
@trust_option
def sample(
    words: tuple[str, ...],
    model: str | None,
    count: int,
    temperature: float | None,
    max_tokens: int | None,
    seed: int,
    trusts: bool,
) -> None:
    """Ask a model: the newest of a run, or a folder, a hub id, embedded:s.

    Without PROMPT you talk with it, until Ctrl-D; or the prompt comes from a pipe. A run's model acts in the run's
    environment, where it has one: on PROMPT, or on a problem of the run's that the seed decides.

    \b
    rlkit sample runs/vimpo-s-seed0 "47+85=" -n 3
    rlkit sample embedded:s --temperature 0
    """
    from rlkit.assembly.run import prepare_environment

    model, prompt = _model_and_prompt(words, model)
    acts = _acts(model)
    talks = prompt is None and not acts and _at_a_terminal()
    if prompt is None and not talks and not (acts and _at_a_terminal()):
        prompt = sys.stdin.read().rstrip("\n") or None
        if prompt is None and not acts:
            raise ConfigError('no prompt: write one behind the model, as in rlkit sample embedded:s "47+85="')
    prepare_environment()
    from rlkit.assembly.sampling import UNKNOWN, open_model

    played: list[Sampled] = []
    with ExitStack() as stack:
        asked = open_model(model, stack, temperature, max_tokens, trusts)
        if acts:
            played = asked.act(prompt, count, seed)
            said = ["\n".join(conversation(one, asked.tokenizer)) for one in played]
        elif talks:
            _talk(asked, count, seed)
            return
        else:
            assert prompt is not None
            said = asked.answer(prompt, count, seed)
        for text in said:
            # A file gets what the model wrote; a terminal would do what it says.
            click.echo(visible(text) if _shows_on_a_terminal() else text)
    if played and all(one.acted is not None and one.acted.result.value is None for one in played):
        alone = (
            ". It was given the prompt alone, without gold and other columns, as it is none of the run's data: give "
            "one of theirs, or none"
        )
        raise RlkitError("the environment failed each time" + alone * (played[0].problem.id == UNKNOWN))


def _acts(model: str) -> bool:
    from rlkit.records.folder import RunFolder

    return RunFolder.is_one(Path(model)) and RunFolder(Path(model)).read_config().environment is not None


def conversation(one: Sampled, tokenizer: Decoder) -> Iterator[str]:
    """A trajectory in lines: the prompt, the model's turns behind a `>`, what the environment says, and what came of
    it."""
    from rlkit.scoring.checks import in_brief

    yield one.problem.text
    tokens, end = one.completion.tokens, 0
    for start, stop in one.turns or ():
        if start > end:
            yield tokenizer.decode(tokens[end:start], skip_special_tokens=True).strip("\n")
        yield f"> {tokenizer.decode(tokens[start:stop], skip_special_tokens=True)}"
        end = stop
    assert one.acted is not None
    result = one.acted.result
    if result.info.get("last"):
        yield str(result.info["last"])
    came = "no value" if result.value is None else f"reward {number(result.value)}"
    came += f" ({in_brief(str(result.info['error']))})" if "error" in result.info else ""
    yield f"{came} · {result.info['ended']}"


def _model_and_prompt(words: tuple[str, ...], model: str | None) -> tuple[str, str | None]:
    given = ([model] if model is not None else []) + list(words)
    if not given:
        raise click.UsageError("name the model first: a run's folder, a model's folder or hub id, or embedded:s")
    if len(given) > 2:
        raise click.UsageError(f"{given[2]!r}: one prompt at a time; put quotes around it where it has spaces")
    return given[0], given[1] if len(given) == 2 else None


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


def _shows_on_a_terminal() -> bool:
    return sys.stdout.isatty()


def _talk(asked: Asked, count: int, seed: int) -> None:
    """Prompts typed and answered, until the end of the input."""
    turns: list[Message] | None = [] if asked.converses else None
    if turns is not None and count > 1:
        raise ConfigError("-n: a conversation goes on with one response; give a prompt to get several")
    how = "one prompt at a time" if turns is None else "a conversation, whose turns are kept"
    click.echo(f"{asked.name}: {how}. Ctrl-D ends it.", err=True)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  lines can then be edited, and found again
    while True:
        try:
            prompt = input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return
        if not prompt.strip():
            continue
        try:
            responses = asked.answer(prompt if turns is None else [*turns, _said("user", prompt)], count, seed)
        except RlkitError as error:
            click.echo(visible(f"rlkit: {error}"), err=True)
            continue
        except KeyboardInterrupt:
            click.echo(err=True)
            return
        for response in responses:
            click.echo(visible(response))
        if turns is not None:
            turns += [_said("user", prompt), _said("assistant", responses[0])]
        seed += count  # what is asked twice is drawn anew


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path), shell_complete=completion.runs)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--merged", is_flag=True, help="Of a LoRA run: the whole model, not its adapter alone.")
@click.option("--push", "name", metavar="ORG/NAME", help="Upload it to the Hugging Face hub under this name.")
@click.option("--base", metavar="ORG/NAME", help="What the hub calls the model that the run began with.  [model.path]")
def export(run: Path, folder: Path, merged: bool, name: str | None, base: str | None) -> None:
    """Write the newest model of RUN to FOLDER, with a model card: for `from_pretrained`, peft, vLLM and the hub.

    Of a LoRA run it is the adapter. A repository that --push makes is public, unless its organisation has it otherwise.
    """
    from rlkit import hub
    from rlkit.assembly import export as exports

    if name is not None:
        exports.check_push(run, name, merged=merged, base=base)
    exports.export(run, folder, merged=merged, base=base, name=name)
    click.echo(str(folder))
    if name is not None:
        click.echo(f"{hub.push(folder, name)} (public where it is new, unless its organisation has it otherwise)")
