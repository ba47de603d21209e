"""The command that looks inside a run: inspect."""

from __future__ import annotations

from pathlib import Path

import click

from rlkit.commands import completion
from rlkit.commands.options import trust_option
from rlkit.errors import ConfigError

_run = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("inspect")
@click.argument("run", type=_run, shell_complete=completion.runs)
@click.argument("other", metavar="[RUN2]", required=False, type=_run, shell_complete=completion.runs)
@click.option("--step", type=click.IntRange(min=1), help="Which step.  [the last]")
@click.option("--prompt", metavar="ID", help="Only this prompt: how its id begins.")
@click.option("--surprise", metavar="KIND", help="Only responses that deserve a second look; a wrong KIND lists all.")
@trust_option
def inspect(
    run: Path, other: Path | None, step: int | None, prompt: str | None, surprise: str | None, trusts: bool
) -> None:
    """Show what the algorithm credits each token of a step's responses.

    Prints the first prompts, and writes a page with more of them to RUN/inspection/. With RUN2: the two runs side by
    side, on the prompts that both had in the step.
    """
    from rich.console import Console

    from rlkit import inspection

    if other is not None and other.resolve() == run.resolve():
        raise ConfigError(f"{run} beside itself shows nothing: name another run, or only this one")
    runs = [run] if other is None else [run, other]
    inspection.inspect(Console(highlight=False), runs, step=step, prompt=prompt, surprise=surprise, trusts=trusts)
