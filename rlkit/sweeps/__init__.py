"""Many runs side by side: every algorithm under every noise with every seed, each run a process of its own.

Arms are paired by design. A run's seed decides the order of its prompts, what is drawn for each, and the noise's
coins, and nothing of the algorithm goes into them: so the arms of one seed meet the same prompts and the same noise.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from rlkit import config as configs
from rlkit import ranks
from rlkit.errors import ConfigError, RlkitError
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import read_curves
from rlkit.records.statistics import final_value
from rlkit.sweeps import spec as specs
from rlkit.sweeps.jobs import Job, Share, alone, disk_bytes, run_all, shares
from rlkit.sweeps.labels import settings_label
from rlkit.sweeps.progress import Display
from rlkit.sweeps.spec import Arm, SweepConfig
from rlkit.sweeps.sweep_folder import SweepFolder, SweepRun, Trial, Tuning
from rlkit.sweeps.wandb_sweep import grouped
from rlkit.wording import counted, duration, size

TUNED_BY = "reward/clean"
"""Its final value, the mean over the last tenth of the steps, is what tuning goes by."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    folder: Path
    failed: Sequence[str]
    """Names of the runs that died, of tuning and scored."""
    interrupted: int
    """The number of the signal that has ended it; 0: none has."""
    scored: int = 0
    """Scored runs that are done."""


def sweep(
    spec: SweepConfig, folder: Path, *, jobs: int = 1, dry_run: bool = False, terminal: Console | None = None
) -> Outcome:
    """Make the runs of `spec` that `folder` does not hold yet, `jobs` at once. Raises ConfigError before any starts.

    With `tune`, every arm is first tried with each combination of its settings on the tuning seeds, and scored
    with the best. `dry_run`: print the plan and stop.
    """
    terminal = terminal or Console(highlight=False, soft_wrap=True)
    ranks.adopt()
    if ranks.world_size() > 1:
        raise ranks.LaunchError(
            f"{ranks.starter()} has started {ranks.world_size()} of this sweep. A sweep starts the ranks of its runs "
            "by itself, one on each GPU: start it once",
            ranks.rank(),
        )
    gpus = ranks.visible_gpus()
    if gpus and jobs > len(gpus):
        raise ConfigError(f"--jobs {jobs}, but there are {len(gpus)} GPUs: a run needs one to itself")
    arms = specs.arms(spec)
    scored = list(itertools.product(spec.seeds, arms))  # seed by seed: a sweep cut short has whole pairs
    runs = [
        SweepRun(name=specs.run_name(arm, seed), arm=arm.name, condition=arm.condition, seed=seed)
        for seed, arm in scored
    ]
    # Whatever cannot be, in whatever arm, is refused before anything starts.
    planned = [_job(spec, arm, seed, {}, folder, "runs") for seed, arm in scored]
    trials = [
        (arm, _job(spec, arm, seed, settings, folder, "tuning"))
        for seed, arm, settings in itertools.product(spec.tune_seeds, arms, specs.combinations(spec.tune))
    ]
    _check_names([job for _, job in trials])
    _check_names(planned)
    terminal.print(plan(spec, arms, len(trials), planned, jobs, folder), markup=False)
    if dry_run:
        return Outcome(folder=folder, failed=[], interrupted=0)
    with alone(folder) as lock:
        place = SweepFolder(folder, runs)
        _begin(place, spec)

        chosen: dict[Arm, Mapping[str, Any]] = {arm: {} for arm in arms}
        failed: list[str] = []
        if trials:
            if by := _make("tuning", [job for _, job in trials], jobs, terminal, lock):
                return Outcome(folder=folder, failed=[], interrupted=by)
            failed += [job.name for _, job in trials if job.error is not None]
            tuned = [_tuning(spec, arm, [job for each, job in trials if each == arm]) for arm in arms]
            _check_choice(place, tuned)
            place.write_tuning(tuned)
            terminal.print(tuning_text(tuned), markup=False)
            chosen = {arm: result.chosen for arm, result in zip(arms, tuned, strict=True) if result.chosen is not None}
            failed += [specs.run_name(arm, seed) for seed, arm in scored if arm not in chosen]
        final = [_job(spec, arm, seed, chosen[arm], folder, "runs") for seed, arm in scored if arm in chosen]
        by = _make("runs", final, jobs, terminal, lock)
        failed += [job.name for job in final if job.error is not None]
        done = sum(job.done for job in final)
        return Outcome(folder=folder, failed=failed, interrupted=by, scored=done)


def _check_names(jobs: Sequence[Job]) -> None:
    """ConfigError where two runs would share a folder."""
    seen: set[str] = set()
    for job in jobs:
        if job.name in seen:
            raise ConfigError(
                f"two runs would both be called {job.name}: their settings differ in nothing a name shows"
            )
        seen.add(job.name)


def _check_choice(place: SweepFolder, tuned: Sequence[Tuning]) -> None:
    """RlkitError where tuning runs that had died before are made now, and the best they give is no longer what runs
    that stand there already were made with."""
    chosen = {(each.arm, each.condition): each.chosen for each in tuned}
    for before in place.read_tuning():
        arm = (before.arm, before.condition)
        folders = [place.run_folder(run) for run in place.runs if (run.arm, run.condition) == arm]
        stale = [str(folder) for folder in folders if folder.exists()]
        if before.chosen is not None and chosen.get(arm, before.chosen) != before.chosen and stale:
            was, now = (" ".join(settings_label(settings or {})) for settings in (before.chosen, chosen[arm]))
            raise RlkitError(
                f"{before.arm}, {before.condition}: with tuning runs that had died before, the best is {now or 'none'} "
                f"and no longer {was}, with which these were made: {', '.join(stale)}. Remove them, and --resume"
            )


def _begin(place: SweepFolder, spec: SweepConfig) -> None:
    try:
        text = yaml.safe_dump(spec.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
        (place.path / "sweep.yaml").write_text(text)
        place.write_plan()
    except OSError as error:
        raise ConfigError(f"cannot write to the sweep's folder {place.path}: {error}") from error


def check_free(folder: Path, spec: SweepConfig) -> None:
    """ConfigError where the folder holds a sweep, this one or another, or anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "sweep.yaml").is_file():
        raise ConfigError(f"{folder} is there already, and is no sweep's: choose another name with --name")
    there, wanted = read_spec(folder).model_dump(), spec.model_dump()
    if there == wanted:
        raise ConfigError(
            f"{folder} holds this sweep already: finish it with --resume {folder}, or take another --name"
        )
    differ = ", ".join(key for key in wanted if there[key] != wanted[key])
    raise ConfigError(
        f"{folder} holds another sweep (it differs in {differ}): choose another name with --name, or finish the one "
        f"that is there with --resume {folder}"
    )


def read_spec(folder: Path) -> SweepConfig:
    """What the sweep in this folder was asked to do. ConfigError where there is none."""
    if not (folder / "sweep.yaml").is_file():
        raise ConfigError(f"--resume {folder}: no sweep is there (no sweep.yaml)")
    return specs.load(str(folder / "sweep.yaml"), {})


def _job(spec: SweepConfig, arm: Arm, seed: int, tried: Mapping[str, Any], folder: Path, kind: str) -> Job:
    """A run as a job. ConfigError where its config cannot be."""
    name = specs.run_name(arm, seed, tried if kind == "tuning" else None)
    config = arm.config(spec, seed, folder / kind, name, tried)
    trackers = [] if kind == "tuning" else [grouped(ref, folder.name) for ref in config.trackers]
    config = config.model_copy(update={"trackers": trackers})
    return Job(
        name=name,
        algo=arm.algo,
        config=config,
        file=folder / "configs" / kind / f"{name}.yaml",
        folder=config.folder,
        log=folder / "logs" / kind / f"{name}.log",
        steps=config.steps,
    )


def _make(what: str, jobs: Sequence[Job], at_once: int, terminal: Console, lock: int) -> int:
    """Returns the number of the signal that has ended it; 0: none has."""

    def estimate(job: Job, left: float) -> str:
        from rlkit.engine.memory import checkpoint_bytes, checkpoints_kept

        each = (disk_bytes(job.folder) - disk_bytes(RunFolder(job.folder).checkpoints)) / job.step * job.steps
        algorithm = configs.build_algorithm(job.config)
        each += checkpoints_kept(job.config) * checkpoint_bytes(
            job.config,
            needs_reference=algorithm.needs.reference,
            has_critic=algorithm.value_loss is not None,
        )
        total = each * sum(not job.done and job.stopped is None for job in jobs)
        free = shutil.disk_usage(job.folder).free
        lack = f", MORE THAN THE {size(free)} THAT ARE FREE" if total > free else ""
        return (
            f"  {what}: about {duration(left)} and {size(total)} of disk{lack}, from the first "
            f"{job.step} steps of {job.name}"
        )

    for job in jobs:
        job.look()
        job.file.parent.mkdir(parents=True, exist_ok=True)
        job.file.write_text(yaml.safe_dump(job.config.dump(), sort_keys=False, allow_unicode=True))
    with Display(what, jobs, at_once, estimate, terminal) as display:
        return run_all(jobs, at_once, display.watch, display.say, lock)


def _tuning(spec: SweepConfig, arm: Arm, jobs: Sequence[Job]) -> Tuning:
    """What an arm's tuning runs, seed by seed, say; the settings with the best mean score are chosen."""
    scores = iter(map(_score, jobs))
    by_seed = [[next(scores) for _ in specs.combinations(spec.tune)] for _ in spec.tune_seeds]
    trials = [
        Trial(
            settings=settings, scores={str(seed): row[at] for seed, row in zip(spec.tune_seeds, by_seed, strict=True)}
        )
        for at, settings in enumerate(specs.combinations(spec.tune))
    ]
    whole = [(trial.mean, trial) for trial in trials if trial.mean is not None]
    return Tuning(
        arm=arm.name,
        condition=arm.condition,
        metric=TUNED_BY,
        seeds=spec.tune_seeds,
        trials=trials,
        chosen=max(whole, key=lambda pair: pair[0])[1].settings if whole else None,
    )


def _score(job: Job) -> float | None:
    """What the comparison calls its final value; None where it died, or never had one."""
    if not job.done:
        return None
    curve = read_curves(RunFolder(job.folder).metrics_file)[0].get(TUNED_BY)
    score = math.nan if curve is None else final_value(curve.steps, curve.values, job.steps)
    return None if math.isnan(score) else score


def tuning_text(results: Sequence[Tuning]) -> str:
    """What was tried, and what was chosen: a line for each arm."""
    lines = [f"  tuned by {TUNED_BY}, mean of the last tenth, over seeds {', '.join(map(str, results[0].seeds))}:"]
    for result in results:
        tried = ", ".join(
            f"{' '.join(settings_label(trial.settings))} {'no score' if trial.mean is None else f'{trial.mean:.3f}'}"
            for trial in result.trials
        )
        if result.chosen is None:
            choice = "none has a score on every seed, so the arm is left out; mend what its logs say, and --resume"
        else:
            choice = " ".join(settings_label(result.chosen))
        ends = "".join(f" (the {end} {key} tried: try beyond it)" for key, end in result.at_the_end.items())
        lines.append(f"    {result.arm}, {result.condition}: {tried} -> {choice}{ends}")
    return "\n".join(lines)


def plan(spec: SweepConfig, arms: Sequence[Arm], trials: int, scored: Sequence[Job], at_once: int, folder: Path) -> str:
    """The sweep in a few lines, before it starts."""
    done = sum(job.done for job in scored)
    config = scored[0].config
    share = shares(at_once)[0]
    rows = {
        "base": spec.base if isinstance(spec.base, str) else "written out",
        "arms": ", ".join(dict.fromkeys(arm.name for arm in arms)),
        "conditions": ", ".join(dict.fromkeys(arm.condition for arm in arms)),
        "seeds": f"{', '.join(map(str, spec.seeds))}; the arms of one seed meet the same prompts, draws and noise",
        "runs": f"{len(scored)}, of {config.steps} steps each" + (f"; {done} of them are done" if done else ""),
        "a step": f"{config.batch.prompts_per_step} prompts x {config.batch.samples_per_prompt} samples",
        "tuning": f"{trials} runs before: "
        + "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in spec.tune.items())
        + f" for each arm and condition, on seeds {', '.join(map(str, spec.tune_seeds))}",
        "at once": f"{at_once}, each with {len(share.cores)} of the cores, {share.environment()['OMP_NUM_THREADS']} "
        f"thread(s){_gpus(share, at_once)}",
        "time, disk": "told once the first run has made a few steps",
        "folder": str(folder),
    }
    if not trials:
        del rows["tuning"]
    return "\n".join(f"  {name:<10}  {text}" for name, text in rows.items())


def _gpus(share: Share, at_once: int) -> str:
    """Those of each run, for the end of a sentence; nothing where there are none."""
    if not share.gpus:
        return ""
    left = len(ranks.visible_gpus()) - at_once * len(share.gpus)
    idle = f"; {counted(left, 'GPU')} left over, which do nothing" if left else ""
    return f" a rank, and {counted(len(share.gpus), 'GPU')} ({', '.join(share.gpus)} for one), a rank on each{idle}"
