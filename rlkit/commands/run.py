"""The command that trains: run."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlkit import config as configs
from rlkit import distribution, ranks, registry
from rlkit.commands import completion
from rlkit.commands.hints import SettingsCommand
from rlkit.commands.options import (
    algo_option,
    joined,
    load,
    local_rank_option,
    plugins_option,
    set_option,
    short_options,
)
from rlkit.errors import ConfigError, StoppedError
from rlkit.tracking.terminal import outlive_terminal
from rlkit.wording import counted

if TYPE_CHECKING:
    from rlkit.records.folder import RunFolder
    from rlkit.tracking.terminal import Shows


@click.command(cls=SettingsCommand, model=lambda: configs.RunConfig)
@click.argument("words", nargs=-1, metavar="[CONFIG] [KEY=VALUE]...", shell_complete=completion.config_words)
@algo_option
@short_options()
@set_option
@plugins_option
@click.option("--seed", type=int, help="Decides data order, samples and noise.")
@click.option("--name", help="Name of the run's folder.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of all runs.  [runs]")
@click.option(
    "--noise",
    "noises",
    multiple=True,
    metavar="KIND:P",
    help="Disturb rewards, as in group_flip:0.25.",
    shell_complete=completion.plugins("noise"),
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with the run in this folder.",
    shell_complete=completion.runs,
)
@click.option(
    "--fork",
    type=click.Path(path_type=Path),
    metavar="RUN|CHECKPOINT",
    help="Begin a new run where this one was, under its settings with those given here.",
    shell_complete=completion.runs,
)
@click.option("--nproc", type=click.IntRange(min=1), help="Ranks on this machine.  [one on each GPU; without a GPU 1]")
@click.option(
    "--profile", type=click.IntRange(min=1), metavar="N", help="Trace N steps, after the first, into the run's folder."
)
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option(
    "--gpu-gib",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="With --dry-run: plan for GPUs with so much memory, which need not be here.",
)
@click.option(
    "--plain", is_flag=True, help="Lines alone, without a bar below them; so it is where there is no terminal."
)
@click.option("--quiet", is_flag=True, help="Warnings and the summary alone.")
@local_rank_option
def run(
    words: tuple[str, ...],
    algo: str | None,
    shorts: tuple[str, ...],
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    seed: int | None,
    name: str | None,
    out: Path | None,
    noises: tuple[str, ...],
    resume: Path | None,
    fork: Path | None,
    nproc: int | None,
    profile: int | None,
    dry_run: bool,
    gpu_gib: float | None,
    plain: bool,
    quiet: bool,
) -> None:
    """Train a model. CONFIG is a preset (`rlkit config ls`) or a YAML file.  [embedded]

    KEY=VALUE is the same as -s KEY=VALUE.
    """
    from rlkit.assembly import launch
    from rlkit.assembly import run as runs
    from rlkit.assembly.ending import summary

    if plain and quiet:
        raise click.UsageError("--plain leaves out the bar, --quiet all but warnings and the summary: give one of them")
    ranks.adopt()
    started = ranks.starter()
    if started and started != ranks.NPROC:  # `--nproc` has looked at the config before it started the ranks
        _meet(nproc, quiet)
    named, more = _config_and_settings(words)
    config: str | dict[str, Any] = named
    if fork is not None:
        if resume is not None:
            raise click.UsageError("--resume goes on with a run, --fork begins another from it: give one of them")
        config = _forked(fork, named, algo, name)
        name = None
    if resume is not None:
        if name is not None or out is not None:
            raise ConfigError("--resume goes on in the run's own folder: leave out --name and --out")
        resume, config = _resumed(resume, named)
        out, name = resume.resolve().parent, resume.resolve().name
    # Quoted: values are read as YAML, where a name such as 1 would be a number.
    shortcuts = {"seed": seed, "name": name and json.dumps(name), "out": out and json.dumps(str(out))}
    shortcut = (f"{key}={value}" for key, value in shortcuts.items() if value is not None)
    try:
        settings = load(config, algo, (*joined(shorts, (*overrides, *more)), *shortcut), plugins)
    except ConfigError as error:
        if (goes_on := resume or fork) and (said := _other_version(goes_on)):
            raise ConfigError(f"{error}\n{said}") from error
        raise
    if (
        resume is None
        and fork is None
        and os.environ.get("WANDB_SWEEP_ID")
        and (run_id := os.environ.get("WANDB_RUN_ID"))
    ):
        # An agent of wandb's starts one command for many runs, which may differ in what their name leaves out.
        settings = settings.model_copy(update={"name": f"{settings.run_name}-{run_id}"})
    if noises:
        settings = _with_noise(settings, noises)
    runs.prepare_environment()
    if gpu_gib is not None and not dry_run:
        raise click.UsageError("--gpu-gib is for --dry-run alone: a run takes the GPU that is there")
    here = ranks.world_size() if started else launch.ranks_here(nproc)
    if dry_run:
        if ranks.rank() == 0:
            click.echo(runs.plan(settings, here, None if gpu_gib is None else int(gpu_gib * 2**30)))
        return
    outlive_terminal()
    if here > 1 and not started:
        configs.resolve(settings)
        sys.exit(launch.launch(here, _without_nproc(sys.argv[1:])))
    shows: Shows | None = "warnings" if quiet else "lines" if plain else None
    ended = 0
    try:
        folder = runs.train(settings, resume=resume is not None, fork=fork, shows=shows, profile=profile or 0)
    except StoppedError as stopped:
        folder, ended = stopped.folder, stopped.exit_code
    if ranks.rank() == 0:
        click.echo(summary(folder))
    if ended:
        sys.exit(ended)


def _meet(nproc: int | None, quiet: bool) -> None:
    """Find the other ranks before anything else, so that what is wrong with the config is said once."""
    if nproc is not None:
        raise ranks.LaunchError(
            f"--nproc starts ranks, and {ranks.starter()} has started {counted(ranks.world_size(), 'rank')} already: "
            "leave it out",
            ranks.rank(),
        )
    if ranks.rank() == 0 and ranks.world_size() > 1 and not quiet:
        click.echo(f"{ranks.world_size()} ranks, started by {ranks.starter()}: waiting until all are there")
    from rlkit.engine import distributed

    distributed.meet()


def _config_and_settings(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The first word names the config, unless it is a setting itself; a file's name may hold a `=` too."""
    left_out = not words or (re.match(r"[\w.]+=", words[0]) is not None and not Path(words[0]).is_file())
    config, settings = ("embedded", words) if left_out else (words[0], words[1:])
    for word in settings:
        if "=" not in word:
            raise click.UsageError(
                f"{word!r}: expected KEY=VALUE, as in optimizer.lr=1e-4; only one CONFIG can be given, the first word"
            )
    return config, settings


def _with_noise(settings: configs.RunConfig, noises: tuple[str, ...]) -> configs.RunConfig:
    from rlkit.scoring.noise import parse_noise

    registry.load(settings.plugins)
    parsed = [configs.PluginRef(**parse_noise(noise)) for noise in noises]
    return settings.model_copy(update={"noise": [*settings.noise, *parsed]})


def _resumed(path: Path, config: str) -> tuple[Path, str]:
    """The run's folder, and its config."""
    from rlkit.records import checkpoints

    run, checkpoint = _run_at("--resume", path, config)
    later = [each for each in checkpoints.complete(run.checkpoints) if checkpoint and each.name > checkpoint.name]
    if later:
        raise ConfigError(
            f"--resume {path}: the run has gone on to {later[-1].name}, which would be lost. `rlkit run --resume "
            f"{run.path}` goes on from there; `rlkit run --fork {path}` begins another run from this one"
        )
    return run.path, str(run.config_file)


def _forked(path: Path, config: str, algo: str | None, name: str | None) -> dict[str, Any]:
    """Its settings."""
    from rlkit.assembly.fork import settings_of

    run, _ = _run_at("--fork", path, config)
    return settings_of(run, algo, name)


def _other_version(path: Path) -> str:
    """A sentence, where another rlkit has made the run."""
    from rlkit.records import checkpoints
    from rlkit.records.folder import RunFolder

    run = RunFolder(checkpoints.parted(path)[0])
    there, here = run.read_version(), distribution.version(distribution.NAME)
    if there in ("", here):
        return ""
    return f"{run.path} was made by rlkit {there}, and this is rlkit {here}: what is unknown here may be known there"


def _run_at(option: str, path: Path, config: str) -> tuple[RunFolder, Path | None]:
    """The run that a path is of, and the checkpoint, where it is one's."""
    if config != "embedded":
        raise ConfigError(f"{option} takes the config of the run itself: leave CONFIG out, and use -s for changes")
    from rlkit.records import checkpoints
    from rlkit.records.folder import RunFolder

    place, checkpoint = checkpoints.parted(path)
    if not RunFolder.is_one(place):
        raise ConfigError(f"{option} {path}: no run is there (no config.yaml)")
    run = RunFolder(place)
    if checkpoint is not None and not checkpoint.is_dir():
        there = ", ".join(each.name for each in checkpoints.named(run.checkpoints)) or "none"
        raise ConfigError(f"{option} {path}: there is no such checkpoint; there are: {there}")
    return run, checkpoint


def _without_nproc(arguments: list[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--nproc":
            skip = True
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept
