"""The command line."""

from __future__ import annotations

import os
import warnings
from typing import Any

import click

from rlkit.commands import check, compare, config, doctor, evaluate, inspect, model, plugins, report, run, sweep
from rlkit.errors import RlkitError


class _Group(click.Group):
    """Errors that a user can mend are printed as sentences; others keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RlkitError as error:
            rank = os.environ.get("RANK", "0")
            click.echo(f"rlkit: {error}" if rank == "0" else f"rlkit (rank {rank}): {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rlkit")
def main() -> None:
    """Reinforcement learning from verifiable rewards on language models, for comparing algorithms.

    `rlkit run --algo vimpo` trains the small model that ships with rlkit, in a few minutes on a CPU.
    """
    # A person reads them, for whom the line of code that warned is noise.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


for command in (
    run.run,
    plugins.list_plugins,
    check.check,
    config.config,
    sweep.sweep,
    compare.compare,
    report.report,
    inspect.inspect,
    evaluate.evaluate,
    evaluate.verify,
    evaluate.data,
    model.sample,
    model.export,
    doctor.doctor,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
