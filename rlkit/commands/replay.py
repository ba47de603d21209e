"""The command that trains from the stored rollouts of another run: replay."""

from __future__ import annotations

from pathlib import Path

import click

from rlkit import config as configs
from rlkit.commands import completion
from rlkit.commands.hints import SettingsCommand
from rlkit.commands.options import algo_option, local_rank_option, plugins_option, set_option
from rlkit.commands.run import run as train


@click.command(cls=SettingsCommand, model=lambda: configs.RunConfig)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN", shell_complete=completion.runs)
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=completion.settings)
@click.option("--steps", metavar="A-B", help="Its steps to learn from; after the first, from a checkpoint.  [all]")
@algo_option
@set_option
@plugins_option
@click.option("--name", help="Name of the run's folder.  [RUN-replayed-ALGO]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of all runs.  [that of RUN]")
@click.option("--nproc", type=click.IntRange(min=1), help="Ranks on this machine.  [one on each GPU; without a GPU 1]")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option(
    "--plain", is_flag=True, help="Lines alone, without a bar below them; so it is where there is no terminal."
)
@click.option("--quiet", is_flag=True, help="Warnings and the summary alone.")
@local_rank_option
@click.pass_context
def replay(
    ctx: click.Context,
    run: Path,
    words: tuple[str, ...],
    steps: str | None,
    algo: str | None,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    name: str | None,
    out: Path | None,
    nproc: int | None,
    dry_run: bool,
    plain: bool,
    quiet: bool,
) -> None:
    """Train from the samples that RUN has stored, without sampling.

    With its own settings, the same updates bit for bit; with --algo, what another algorithm makes of the same samples.
    KEY=VALUE is the same as -s KEY=VALUE.

    \b
    rlkit replay runs/vimpo-s-seed0 --algo grpo -s correction={}
    """
    from rlkit.assembly.replaying import settings
    from rlkit.records.folder import RunFolder

    given = [*overrides, *words]
    # What is set by an option is not set by name.
    taken = [f"{key}=" for key, value in (("name", name), ("out", out)) if value is not None]
    made = settings(run, steps, algo, [*given, *taken])
    ctx.invoke(
        train,
        words=(str(RunFolder(run).config_file), *made, *given),
        algo=algo,
        plugins=plugins,
        name=name,
        out=out,
        nproc=nproc,
        dry_run=dry_run,
        plain=plain,
        quiet=quiet,
    )
