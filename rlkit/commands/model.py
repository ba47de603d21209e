"""The commands that take a run's model: sample, export."""

from __future__ import annotations

from pathlib import Path

import click

from rlkit.errors import ConfigError


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
def export(run: Path, folder: Path) -> None:
    """Copy the newest model of RUN to FOLDER, for `from_pretrained` and vLLM."""
    import shutil

    from rlkit.records.folder import RunFolder

    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another name, or remove it first")
    try:
        shutil.copytree(RunFolder(run).newest_model(), folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error}") from error
    click.echo(str(folder))
