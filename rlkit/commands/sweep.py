"""rlkit sweep: many runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlkit.commands import completion
from rlkit.commands.compare import show
from rlkit.commands.hints import SettingsCommand
from rlkit.commands.options import joined, plugins_option, short_options
from rlkit.config import RunConfig
from rlkit.errors import ConfigError, RlkitError, StoppedError, UnhealthyError
from rlkit.tracking.terminal import outlive_terminal
from rlkit.wording import counted

if TYPE_CHECKING:
    from rlkit.sweeps.spec import SweepConfig


@click.command(cls=SettingsCommand, model=lambda: RunConfig)
@click.argument("file", required=False, shell_complete=completion.sweeps)
@click.option(
    "--algos",
    metavar="NAME,...",
    help="The algorithms to compare: vimpo,grpo,ppo.",
    shell_complete=completion.plugins("algorithms", several=True),
)
@click.option("--seeds", metavar="RANGE", help="0-4, or 0,2,5.  [0]")
@click.option(
    "--noise",
    metavar="NOISE,...",
    help="none,group_flip:0.25,flip:0.25; + between those that act together.",
    shell_complete=completion.plugins("noise", several=True),
)
@click.option(
    "--base",
    metavar="CONFIG",
    help="Preset or YAML file that all runs share.  [embedded]",
    shell_complete=completion.presets,
)
@short_options(several=True)
@click.option(
    "-s",
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=V,...",
    help="Any field; several values: a grid.",
    shell_complete=completion.settings,
)
@click.option(
    "--tune",
    multiple=True,
    metavar="KEY=V,...",
    help="Choose these for each arm first, as in lr=1e-4,2e-4.",
    shell_complete=completion.settings,
)
@click.option("--tune-seeds", metavar="RANGE", help="Seeds to tune on; none of them is scored.")
@plugins_option
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="Runs at once; cores and GPUs are shared out.  [1]")
@click.option("--name", help="Name of the sweep's folder.  [the file's, else sweep]")
@click.option("--out", type=click.Path(path_type=Path), help="Where the folder stands.  [runs]")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="SWEEP",
    help="Make what is missing of this sweep.",
    shell_complete=completion.runs,
)
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option(
    "--wandb-sweep", type=click.Path(path_type=Path), metavar="FILE", help="Write wandb's definition and stop."
)
def sweep(
    file: str | None,
    algos: str | None,
    seeds: str | None,
    noise: str | None,
    base: str | None,
    shorts: tuple[str, ...],
    settings: tuple[str, ...],
    tune: tuple[str, ...],
    tune_seeds: str | None,
    plugins: tuple[str, ...],
    jobs: int,
    name: str | None,
    out: Path | None,
    resume: Path | None,
    dry_run: bool,
    wandb_sweep: Path | None,
) -> None:
    """Run algorithms beside each other, on the same prompts, seeds and noise; then compare them.

    FILE is a sweep written down, your own or one that ships (noise, vimpo). Without one:

    rlkit sweep --algos vimpo,grpo,ppo --seeds 0-4 --noise none,group_flip:0.25 --base embedded_xs
    """
    from rlkit import sweeps
    from rlkit.sweeps import spec as specs

    given: dict[str, Any] = {"algos": algos, "seeds": seeds, "noise": noise, "base": base, "tune_seeds": tune_seeds}
    given = {key: value for key, value in given.items() if value is not None}
    settings = joined(shorts, settings)
    if resume is not None:
        if file or name or out or plugins or settings or tune or wandb_sweep or set(given) - {"seeds"}:
            raise ConfigError(
                "--resume makes what is missing of the sweep as it is; only --seeds may change, and --jobs"
            )
        folder = resume.resolve()
        there = sweeps.read_spec(folder)
        spec = specs.load(str(folder / "sweep.yaml"), given)
        if missing := sorted({*there.seeds} - {*spec.seeds}):
            raise ConfigError(f"--seeds {seeds} leaves out seed {missing[0]} of the sweep: name the old ones too")
    else:
        spec = specs.load(file, {**given, **specs.given_settings(settings, tune, plugins)})
        folder = (out or Path("runs")) / (name or (Path(file).stem if file else "sweep"))
        if wandb_sweep is not None:
            if dry_run or jobs > 1:
                raise ConfigError("--wandb-sweep makes no runs: leave out --jobs and --dry-run")
            _write_definition(spec, wandb_sweep, folder)
            return
        folder = folder.resolve()
        if not dry_run:
            sweeps.check_free(folder, spec)
    outlive_terminal()
    outcome = sweeps.sweep(spec, folder, jobs=jobs, dry_run=dry_run)
    if dry_run:
        return
    again = f"rlkit sweep --resume {folder}" + (f" --jobs {jobs}" if jobs > 1 else "")
    if outcome.interrupted:
        raise StoppedError(f"interrupted; go on with: {again}", folder, outcome.interrupted)
    failures = []
    if outcome.scored:
        from rlkit.sweeps.wandb_sweep import log_comparison

        try:
            show([folder], folder / "comparison")
            log_comparison(folder)
        except RlkitError as error:
            failures.append(f"the runs are made, but not their comparison: {error}")
    if outcome.failed:
        failures.append(
            f"{counted(len(outcome.failed), 'run')} died: {', '.join(outcome.failed)}. Their output is in "
            f"{folder / 'logs'}; when it is mended: {again}"
        )
    if failures:
        raise RlkitError("\n".join(failures))
    if not outcome.scored:
        raise UnhealthyError("no run has made its steps, since health checks stopped them: there is nothing to compare")


def _write_definition(spec: SweepConfig, file: Path, folder: Path) -> None:
    from rlkit.sweeps.wandb_sweep import write_definition

    _, *base = write_definition(spec, file, folder)
    click.echo(f"{file}: `wandb sweep {file}` makes the sweep known, and prints the command that starts an agent")
    if base:
        click.echo(f"{base[0]}: the base of all runs, which must stand there wherever an agent runs")
