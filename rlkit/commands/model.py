"""The commands that take a run's model: sample, export."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("prompt")
@click.option("-n", "--count", default=1, type=click.IntRange(min=1), help="Responses.  [1]")
@click.option("--seed", default=0, help="Decides what is drawn.  [0]")
def sample(run: Path, prompt: str, count: int, seed: int) -> None:
    """Ask the newest model of RUN, as in `rlkit sample runs/vimpo-s-seed0 "47+85="`."""
    from rlkit.assembly import run as runs

    for response in runs.sample(run, prompt, count, seed):
        click.echo(response)


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
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
