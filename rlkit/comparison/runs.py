"""Reads finished and unfinished runs, many and fast: what is compared comes from their files alone."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.errors import ConfigError
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import Curve, read_curves
from rlkit.records.samples import step_files
from rlkit.scoring.noise import noise_label
from rlkit.sweeps.labels import is_own, settings_label
from rlkit.sweeps.sweep_folder import SweepFolder, Tuning


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    arm: str
    """The algorithm, whether it replays, and its settings where several arms share that."""
    condition: str
    """The noise, and other settings that all arms of a comparison share."""
    seed: int
    config: Mapping[str, Any]
    """config.yaml as plain data."""
    provenance: Mapping[str, Any]
    """provenance.json; empty where there is none."""
    curves: Mapping[str, Curve]
    clock: Curve
    """Seconds of training up to and with each step: the sum of time/step_s, evaluation left out."""
    tokens: Curve
    """Response tokens up to and with each step."""
    last: int
    """The last step that is done; 0 for none."""
    notes: Sequence[str] = ()
    """What is odd about its files, in sentences."""

    @cached_property
    def rollouts(self) -> Mapping[int, Path]:
        """Step -> the file of its samples, for the steps whose samples were kept."""
        return step_files(RunFolder(self.folder).rollouts)

    @property
    def replayed(self) -> str | None:
        """The run whose samples it learnt from; None: it has sampled itself."""
        replay = self.config.get("replay")
        return Path(replay["run"]).name if replay else None

    @property
    def steps(self) -> int:
        """Steps that it is to make."""
        return int(self.config.get("steps", 0))

    def at(self, total: Curve, step: float) -> float:
        """`clock` or `tokens` at a step; NaN where it was not recorded so far, inf at step inf."""
        if math.isinf(step):
            return math.inf
        place = int(np.searchsorted(total.steps, step, side="right")) - 1
        return float(total.values[place]) if place >= 0 else 0.0 if len(total.steps) else math.nan


@dataclass(frozen=True)
class Read:
    """The runs of a comparison, in the order of arms and seeds, and what goes with them."""

    runs: Sequence[Run]
    missing: Sequence[str] = ()
    """Runs that a sweep has planned and that have written nothing yet, in words."""
    tuning: Sequence[Tuning] = ()
    notes: Sequence[str] = ()


def read_runs(paths: Iterable[Path]) -> Read:
    """Runs' folders and sweeps' folders, in any mixture. ConfigError for what is neither, and where two runs are of
    one arm, condition and seed."""
    runs, loose = [], []
    missing: list[str] = []
    tuning: list[Tuning] = []
    folders: set[Path] = set()
    sweeps = [path.resolve() for path in paths if SweepFolder.is_one(path)]
    for path in paths:
        if path.resolve() in folders:
            continue
        folders.add(path.resolve())
        if not SweepFolder.is_one(path):
            loose.append(read_run(_run_folder(path)))
            continue
        sweep = SweepFolder.open(path)
        tuning += sweep.read_tuning()
        label = f" ({path.resolve().name})" if len({*sweeps}) > 1 else ""
        for planned in sweep.runs:
            folder = sweep.run_folder(planned)
            name = f"{planned.arm}{label}, {planned.condition}, seed {planned.seed}"
            if not RunFolder.is_one(folder):
                missing.append(name)
            elif folder.resolve() not in folders:
                folders.add(folder.resolve())
                run = read_run(folder)
                runs.append(replace(run, arm=planned.arm + label, condition=planned.condition, seed=planned.seed))
    runs += _labelled(loose)
    if not runs:
        raise ConfigError(
            f"there is nothing to compare in {', '.join(map(str, paths)) or 'no folder at all'}: "
            "none of the runs has begun"
        )
    _check_once(runs)
    empty = [run for run in runs if not run.curves]
    notes = [note for run in runs for note in run.notes]
    missing += [f"{run.arm}, {run.condition}, seed {run.seed}" for run in empty]
    return Read([run for run in runs if run.curves], missing, tuning, notes)


def _run_folder(path: Path) -> Path:
    if RunFolder.is_one(path):
        return path
    hint = f"; there are runs in it: {path}/*" if RunFolder.below(path) else ""
    raise ConfigError(
        f"{path} is neither a run's folder (no config.yaml) nor a sweep's (no plan.json){hint}"
        if path.is_dir()
        else f"there is no folder {path}"
    )


def read_run(folder: Path) -> Run:
    """One run, with its algorithm as its arm and its noise as its condition."""
    files = RunFolder(folder)
    config = files.read_settings()
    metrics, notes = read_curves(files.metrics_file)
    seconds, tokens = _totals(metrics)
    return Run(
        name=folder.resolve().name,
        folder=folder,
        arm=f"{config['algo']['kind']}{' replayed' if config.get('replay') else ''}",
        condition=noise_label(config.get("noise") or []),
        seed=int(config.get("seed", 0)),
        config=config,
        provenance=files.read_provenance(),
        curves=metrics,
        clock=seconds,
        tokens=tokens,
        last=int(max((curve.steps[-1] for curve in metrics.values()), default=0)),
        notes=notes,
    )


def _totals(metrics: Mapping[str, Curve]) -> tuple[Curve, Curve]:
    nothing = Curve(np.zeros(0), np.zeros(0))
    time, speed = metrics.get("time/step_s", nothing), metrics.get("throughput/tokens_per_s", nothing)
    clock = Curve(time.steps, np.cumsum(time.values))
    both, a, b = np.intersect1d(time.steps, speed.steps, assume_unique=True, return_indices=True)
    return clock, Curve(both, np.cumsum(time.values[a] * speed.values[b]))


def _labelled(runs: Sequence[Run]) -> list[Run]:
    """Runs of no sweep. Where several of one algorithm differ in settings that are an algorithm's own, these are part
    of the arm's name; where two would still be one arm, condition and seed, all settings that differ are."""
    named = list(runs)
    for relevant in (is_own, lambda key: key.partition(".")[0] not in IRRELEVANT):
        named = [run for group in _by_algorithm(runs) for run in _named(group, relevant)]
        if max(Counter((run.arm, run.condition, run.seed) for run in named).values(), default=0) <= 1:
            break
    return named


IRRELEVANT = ("name", "out", "seed", "noise", "plugins", "trackers", "checkpoint", "health")
"""Sections that say nothing of what a run learns, or that arm, condition and seed say already."""


def _by_algorithm(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.arm].append(run)
    return list(groups.values())


MOST_IN_A_NAME = 3
"""Settings that differ: with more of them the run's own name says more."""


def _named(runs: Sequence[Run], relevant: Any) -> list[Run]:
    flat = [flatten(run.config) for run in runs]
    keys = [key for key in flat[0] if relevant(key)]
    differing = [key for key in keys if any(each.get(key) != flat[0].get(key) for each in flat)]
    if len(differing) > MOST_IN_A_NAME:
        return [replace(run, arm=run.name) for run in runs]
    settings = [{key: each.get(key) for key in differing} for each in flat]
    return [
        replace(run, arm=" ".join([run.arm, *settings_label(each, settings)]))
        for run, each in zip(runs, settings, strict=True)
    ]


def condition_name(condition: str) -> str:
    """`none` says little to who does not know what a condition is."""
    return "no noise" if condition == "none" else condition


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{optimizer: {lr: 1}} -> {optimizer.lr: 1}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _check_once(runs: Sequence[Run]) -> None:
    seen: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        other = seen.setdefault((run.arm, run.condition, run.seed), run)
        if other is not run:
            raise ConfigError(
                f"{other.folder} and {run.folder} are both {run.arm}, {run.condition}, seed {run.seed}: "
                "leave one of them out, or give them different seeds"
            )
