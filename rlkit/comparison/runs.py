"""Reads finished and unfinished runs, many and fast: what is compared comes from their files alone."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from rlkit.errors import ConfigError, RlkitError
from rlkit.records.folder import RunFolder
from rlkit.scoring.noise import noise_label
from rlkit.sweep.folder import SweepFolder, Tuning
from rlkit.sweep.labels import is_own, settings_label

Array = NDArray[np.float64]

# The loader in C reads a config in 3 ms, the one in Python in 25.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Curve:
    """A metric of one run, where it is a finite number."""

    steps: Array
    """[n], ascending."""
    values: Array
    """[n]"""


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    arm: str
    """The algorithm, and its settings where several arms share it."""
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
            if not (folder / "config.yaml").is_file():
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
    if (path / "config.yaml").is_file():
        return path
    inside = sorted(each.parent for each in path.glob("*/config.yaml"))
    hint = f"; there are runs in it: {path}/*" if inside else ""
    raise ConfigError(
        f"{path} is neither a run's folder (no config.yaml) nor a sweep's (no plan.json){hint}"
        if path.is_dir()
        else f"there is no folder {path}"
    )


def read_run(folder: Path) -> Run:
    """One run, with its algorithm as its arm and its noise as its condition."""
    files = RunFolder(folder)
    try:
        config = yaml.load(files.config_file.read_text(), Loader=_Loader)
    except yaml.YAMLError as error:
        raise RlkitError(f"{files.config_file} is not YAML: {error}") from error
    if not isinstance(config, dict) or "kind" not in (config.get("algo") or {}):
        raise RlkitError(f"{files.config_file} is not the config of a run: it names no algorithm (algo.kind)")
    try:
        provenance = json.loads(files.provenance_file.read_text()) if files.provenance_file.is_file() else {}
    except ValueError as error:
        raise RlkitError(f"{files.provenance_file} is damaged: {error}") from error
    metrics, notes = read_metrics(files.metrics_file)
    seconds, tokens = _totals(metrics)
    trained = metrics.get("time/step_s", metrics.get("reward/mean"))
    steps = [curve.steps[-1] for curve in ([trained] if trained is not None else metrics.values())]
    return Run(
        name=folder.resolve().name,
        folder=folder,
        arm=str(config["algo"]["kind"]),
        condition=noise_label(config.get("noise") or []),
        seed=int(config.get("seed", 0)),
        config=config,
        provenance=provenance,
        curves=metrics,
        clock=seconds,
        tokens=tokens,
        last=int(max(steps, default=0)),
        notes=notes,
    )


def read_metrics(file: Path) -> tuple[dict[str, Curve], list[str]]:
    """metric -> curve, sorted by name, and what is odd about the file. Lines of one step are merged.

    A last line that is half written is left out and said. RlkitError for any other line that is not JSON.
    """
    if not file.is_file():
        return {}, [f"{file} does not exist"]
    text = file.read_text(encoding="utf-8", errors="replace")
    rows, notes = _rows(text, file)
    # Lines with the same keys make a matrix at once: a run has two or three such kinds of line.
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        kinds[tuple(row)].append(row)
    numbers = np.unique([float(row["step"]) for row in rows])
    table: dict[str, Array] = {}
    counts: dict[str, list[int]] = {}
    for names, alike in kinds.items():
        try:
            columns = np.array([list(row.values()) for row in alike], dtype=np.float64).T
        except (TypeError, ValueError) as error:
            raise RlkitError(f"{file}: a metric that is not a number, in a line with {', '.join(names)}") from error
        at = np.searchsorted(numbers, columns[names.index("step")])
        for name, column in zip(names, columns, strict=True):
            if name != "step":
                table.setdefault(name, np.full(len(numbers), np.nan))[at] = column
                count = counts.setdefault(name, [0, 0])
                count[0] += int((~np.isfinite(column)).sum())
                count[1] += len(column)
    broken = [f"{name} ({bad} of {count} values)" for name, (bad, count) in sorted(counts.items()) if bad]
    if broken:
        notes.append(f"{file.parent.name}: left out, since it is no number: {', '.join(broken)}")
    if "samples/no_value" in table:
        scored = np.isfinite(table["samples/no_value"])
        for name, column in table.items():
            # A status is only logged in steps in which it comes up.
            if name.startswith("samples/"):
                column[scored & np.isnan(column)] = 0.0
    curves = {}
    for name in sorted(table):
        there = np.isfinite(table[name])
        if there.any():
            curves[name] = Curve(numbers[there], table[name][there])
    return curves, notes


def _rows(text: str, file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    lines = text.split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["step"]
            rows.append(row)
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                return rows, [f"{file.parent.name}: the last line of metrics.jsonl is half written; it is left out"]
            raise RlkitError(f"{file}, line {number} is not a JSON object with a step: {error}") from error
    return rows, []


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


IRRELEVANT = ("name", "out", "seed", "noise", "plugins", "trackers", "checkpoint")
"""Sections that say nothing of what a run learns, or that arm, condition and seed say already."""


def _by_algorithm(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.config["algo"]["kind"]].append(run)
    return list(groups.values())


MOST_IN_A_NAME = 3
"""Settings that differ: with more of them the run's own name says more."""


def _named(runs: Sequence[Run], relevant: Any) -> list[Run]:
    flat = [flatten(run.config) for run in runs]
    keys = [key for key in flat[0] if relevant(key)]
    differing = [key for key in keys if any(each.get(key) != flat[0].get(key) for each in flat)]
    if len(differing) > MOST_IN_A_NAME:
        return [replace(run, arm=run.name) for run in runs]
    return [
        replace(
            run,
            arm=" ".join([run.config["algo"]["kind"], *settings_label({key: each.get(key) for key in differing})]),
        )
        for run, each in zip(runs, flat, strict=True)
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
