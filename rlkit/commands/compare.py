"""rlkit compare: what runs show side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from rlkit.commands import completion
from rlkit.errors import ConfigError


@click.command()
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="RUN...|SWEEP",
    type=click.Path(path_type=Path),
    shell_complete=completion.runs,
)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Compare this.  [clean reward, pass rates]")
@click.option("--threshold", type=float, metavar="X", help="Steps, time and tokens until a metric is at X.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the page, picture and tables.  [SWEEP/comparison, else comparison]",
)
def compare(paths: tuple[Path, ...], metrics: tuple[str, ...], threshold: float | None, out: Path | None) -> None:
    """Show who is ahead, by how much, whether it means anything, and where the comparison is not fair.

    Takes runs' folders or a sweep's. Prints tables, and writes a page, a picture and CSV files.
    """
    from rlkit.sweeps.sweep_folder import SweepFolder

    if out is None:
        out = paths[0] / "comparison" if len(paths) == 1 and SweepFolder.is_one(paths[0]) else Path("comparison")
    show(paths, out, metrics=metrics, threshold=threshold)


def show(
    paths: Sequence[Path], out: Path, *, metrics: Sequence[str] | None = None, threshold: float | None = None
) -> None:
    """Print the comparison, and write its page, picture and tables to `out`."""
    from rich.console import Console

    from rlkit import comparison

    compared = comparison.compare(paths, metrics=metrics, threshold=threshold)
    terminal = Console(highlight=False)
    # A file or a pipe has no width: it gets tables in whole lines.
    terminal = terminal if terminal.is_terminal else Console(highlight=False, width=140)
    terminal.print(comparison.text(compared))
    there = comparison.is_one(out)
    try:
        files = comparison.write(compared, out)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error}. Choose another folder with --out") from error
    click.echo()
    if there:
        click.echo(f"written over the earlier comparison of these runs in {out}:")
    for file in files:
        click.echo(str(file))
