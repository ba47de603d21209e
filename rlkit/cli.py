"""The command line."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
import warnings
from typing import Any

import click

from rlkit import distribution, ranks
from rlkit.blame import DEBUG, debugging
from rlkit.commands import (
    check,
    compare,
    config,
    doctor,
    evaluate,
    init,
    inspect,
    model,
    new,
    plugins,
    replay,
    report,
    run,
    serve,
    sweep,
)
from rlkit.commands.options import local_rank_option
from rlkit.errors import LostRankError, PluginError, RlkitError
from rlkit.secrets import hide
from rlkit.wording import visible


class _Group(click.Group):
    """Errors that a user can mend are printed as sentences; others keep their traceback, as all do with `--debug`."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except SystemExit as ended:
            distributed = sys.modules.get("rlkit.engine.distributed")
            if distributed is not None and distributed.world_size() > 1 and isinstance(ended.code, int):
                distributed.leave(ended.code)
            raise

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # It is most often typed after a command that has failed.
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        before = os.environ.get(DEBUG)
        if ctx.params.get("debug"):
            os.environ[DEBUG] = "1"
        try:
            return super().invoke(ctx)
        except RlkitError as error:
            if not _said_elsewhere(error):
                _say(error)
            ctx.exit(error.exit_code)
        except click.UsageError as error:
            if _rank() != 0:  # every rank has the same command line
                ctx.exit(error.exit_code)
            raise
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            distributed = sys.modules.get("rlkit.engine.distributed")
            if distributed is None or not distributed.has_met():
                raise
            if distributed.first_to_say(_kind(error)):
                heading = f"rank {ranks.rank()} of {ranks.world_size()}, on {socket.gethostname()}:\n"
                _print(heading + "".join(traceback.format_exception(error)).rstrip())
            ctx.exit(1)
        finally:
            os.environ.pop(DEBUG, None)
            os.environ |= {DEBUG: before} if before is not None else {}


def _rank() -> int:
    """As whoever started it says, before the ranks have met."""
    with contextlib.suppress(ranks.LaunchError):
        ranks.adopt()
    return ranks.rank()


def _say(error: RlkitError) -> None:
    rank = os.environ.get("RANK", "0")
    if debugging():
        _print("".join(traceback.format_exception(error)).rstrip())
    _print(f"rlkit: {error}" if rank == "0" else f"rlkit (rank {rank}): {error}")
    if isinstance(error, PluginError) and not debugging():
        click.echo("rlkit: the same command with --debug shows the whole traceback", err=True)


def _print(text: str) -> None:
    """What an error or a warning quotes may come from anywhere: it moves no cursor, and shows no key."""
    click.echo(visible(hide(text)), err=True)


def _crash(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """For sys.excepthook."""
    _print("".join(traceback.format_exception(error)).rstrip())


def _kind(error: Exception) -> str:
    """The same where several ranks fail in the same way, each with numbers of its own, as when memory is out."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} {frames[-1].filename}:{frames[-1].lineno}"


def _said_elsewhere(error: RlkitError) -> bool:
    """Whether another rank of the run says it, or has said what it follows from."""
    if isinstance(error, ranks.LaunchError):
        return error.rank != 0
    distributed = sys.modules.get("rlkit.engine.distributed")
    if distributed is None:
        return False
    if isinstance(error, LostRankError):
        return not distributed.says_that_one_is_lost()
    return not distributed.first_to_say(str(error))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=distribution.NAME, prog_name="rlkit")
@click.option("--debug", is_flag=True, help="Show whole tracebacks. May stand anywhere in a command.")
@local_rank_option
def main(debug: bool) -> None:
    """Reinforcement learning from verifiable rewards on language models, for comparing algorithms.

    `rlkit run --algo vimpo` trains the small model that ships with rlkit, in a few minutes on a CPU.
    """
    # A person reads them, for whom the line of code that warned is noise.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {visible(hide(str(message)))}\n"
    sys.excepthook = _crash


for command in (
    run.run,
    replay.replay,
    init.init,
    new.new,
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
    serve.serve,
    model.export,
    doctor.doctor,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
