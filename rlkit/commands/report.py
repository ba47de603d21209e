"""The command that shows one run: report."""

from __future__ import annotations

from pathlib import Path

import click

from rlkit.commands import completion
from rlkit.errors import RlkitError
from rlkit.wording import visible


@click.command("report")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path), shell_complete=completion.runs)
def report(run: Path) -> None:
    """Write RUN/report.html: curves, timing, samples, settings, and what calls for attention.

    Works on a run that is still going, too.
    """
    from rlkit import report as reports
    from rlkit.records.folder import RunFolder

    try:
        file = reports.write(run)
    except OSError as error:
        raise RlkitError(f"the report of {run} cannot be written: {error}") from error
    folder = RunFolder.open(run)
    for warning in reports.warnings_of(folder.read_metrics(), folder.read_config()):
        click.echo(visible(f"warning: {warning}\n"))
    click.echo(str(file))
