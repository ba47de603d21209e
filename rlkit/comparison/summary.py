"""What the runs show, arm by arm and pair by pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlkit.comparison.fairness import Examination, Setting, differing_settings, examine
from rlkit.comparison.runs import Run, read_runs
from rlkit.comparison.seeds import (
    Difference,
    Estimate,
    bootstrap,
    holm,
    interquartile_mean,
    mean_curve,
    paired_difference,
)
from rlkit.errors import ConfigError, nearest
from rlkit.records.metrics import Curve
from rlkit.records.statistics import area, final_value, first_reaching, smoothing_window
from rlkit.sweeps.sweep_folder import Tuning

Array = NDArray[np.float64]

ALL_PAIRS = 5
"""Arms under a condition up to which all are paired with each other; where there are more, each with the first."""
CLIMB = 0.9
"""Without a threshold of the user's own: this share of the way from the lowest start to the best final value."""
POINTS, FEW_POINTS = 200, 60
"""Points that a longer curve is drawn through: of a metric that is compared, and of any other."""


@dataclass(frozen=True)
class MeanCurve:
    """The mean over seeds, [points] each. Where a run has more steps, a point is the mean of a stretch of them."""

    steps: Array
    mean: Array
    low: Array | None
    """Ends of the bootstrap band; None with one seed."""
    high: Array | None


@dataclass(frozen=True)
class ToThreshold:
    """What it took until the smoothed curve was at the threshold: the median over all seeds, those that never
    reached it counted as infinitely late."""

    reached: int
    seeds: int
    steps: float
    """inf: most seeds did not reach it."""
    seconds: float
    """Of training, evaluation left out. NaN: not recorded."""
    tokens: float
    """Response tokens. NaN: not recorded."""


@dataclass(frozen=True)
class SeedResult:
    """What one run came to."""

    run: Run
    final: float
    auc: float
    start: float
    steps: float
    """Until the threshold; inf: not reached. NaN: there is no threshold."""


@dataclass(frozen=True)
class ArmResult:
    condition: str
    metric: str
    arm: str
    seeds: Sequence[SeedResult]
    """Empty: not measured in training up to the step that is compared."""
    final: Estimate
    iqm: Estimate
    auc: Estimate
    threshold: float | None
    to_threshold: ToThreshold | None
    curve: MeanCurve


@dataclass(frozen=True)
class Pair:
    """Arm a against arm b over the seeds both have. `final` or `auc` is what differs."""

    condition: str
    metric: str
    statistic: str
    a: str
    b: str
    seeds: Sequence[int]
    difference: Difference
    holm: float | None = None
    """p, adjusted for all pairs of this metric and statistic, in all conditions. None where there is no p."""

    @property
    def shown(self) -> bool:
        return self.difference.shown


@dataclass(frozen=True)
class Comparison:
    paths: Sequence[Path]
    threshold: float | None
    """As asked for; None: a rule gives one for each metric and condition."""
    runs: Sequence[Run]
    """All that could be read."""
    left_out: Sequence[Run]
    """Those of them that count in no number, since they have not come as far as their condition's horizon."""
    conditions: Sequence[str]
    arms: Sequence[str]
    horizon: Mapping[str, int]
    """Condition -> the step up to which its runs are compared: where the arm that got least far is, in its longest
    run."""
    compared: Mapping[str, Sequence[str]]
    """Condition -> the metrics that are compared under it; the others are only described."""
    results: Sequence[ArmResult]
    pairs: Sequence[Pair]
    fairness: Examination
    settings: Sequence[Setting]
    """Settings that are not the same in all arms."""
    tuning: Sequence[Tuning]
    notes: Sequence[str]

    def of(self, condition: str, metric: str) -> list[ArmResult]:
        """The arms' results, in the order of the arms."""
        return [each for each in self.results if (each.condition, each.metric) == (condition, metric)]

    @property
    def metrics(self) -> list[str]:
        """All that are compared under some condition."""
        return list(dict.fromkeys(metric for metrics in self.compared.values() for metric in metrics))

    @property
    def others(self) -> list[str]:
        """Metrics that are only described, by name."""
        return sorted({each.metric for each in self.results} - {*self.metrics})


def compare(
    paths: Sequence[Path], *, metrics: Sequence[str] | None = None, threshold: float | None = None
) -> Comparison:
    """Compare the runs in these folders, which are runs' or sweeps'.

    metrics: those to compare, in place of clean reward and pass rates. threshold: of each of them, in its own unit.
    Raises ConfigError for folders that hold no run, for a metric that none has, and where the arms have none in
    common.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise ConfigError(f"the threshold is {threshold}: give a finite number, in the metric's own unit")
    read = read_runs(paths)
    if not read.runs:
        raise ConfigError(f"nothing is logged yet: of {', '.join(read.missing)}")
    conditions = list(dict.fromkeys(run.condition for run in read.runs))
    arms = list(dict.fromkeys(run.arm for run in read.runs))
    horizon = {condition: _horizon([r for r in read.runs if r.condition == condition]) for condition in conditions}
    whole = [run for run in read.runs if run.last >= horizon[run.condition]]
    compared = _compared(whole, conditions, metrics)
    results = []
    for condition, metric in itertools.product(conditions, sorted({m for run in whole for m in run.curves})):
        group = [run for run in whole if run.condition == condition]
        results += _arm_results(group, arms, metric, horizon[condition], metric in compared[condition], threshold)
    left_out = [run for run in read.runs if run.last < horizon[run.condition]]
    return Comparison(
        paths=list(paths),
        threshold=threshold,
        runs=read.runs,
        left_out=left_out,
        conditions=conditions,
        arms=arms,
        horizon=horizon,
        compared=compared,
        results=results,
        pairs=_pairs([each for each in results if each.metric in compared[each.condition]]),
        fairness=examine(read, horizon),
        settings=differing_settings(read.runs),
        tuning=read.tuning,
        notes=read.notes,
    )


def higher_is_better(metric: str) -> bool:
    """Whether more of it is what training is for; of others that is not known."""
    return metric in ("reward/mean", "reward/clean", "reward/pass_rate") or (
        metric.startswith("reward/part/") or "/mean@" in metric
    )


def _horizon(runs: Sequence[Run]) -> int:
    longest: dict[str, int] = {}
    for run in runs:
        longest[run.arm] = max(run.last, longest.get(run.arm, 0))
    return min(longest.values())


def _compared(runs: Sequence[Run], conditions: Sequence[str], asked: Sequence[str] | None) -> dict[str, list[str]]:
    """Condition -> metrics: what was asked for, else clean reward and pass rates, and under noise the noisy reward."""
    known = {name for run in runs for name in run.curves}
    if asked:
        for name in asked:
            if name not in known:
                raise ConfigError(f"none of the runs has the metric {name!r}{nearest(name, known)}")
        return {condition: list(dict.fromkeys(asked)) for condition in conditions}
    has: dict[str, set[str]] = {}
    for run in runs:
        has.setdefault(run.arm, set()).update(run.curves)
    common = {name for name in set.intersection(*has.values()) if not name.startswith(("time/", "memory/"))}
    if "reward/clean" in known and "reward/clean" not in common and "reward/mean" in common:
        lacking = ", ".join(arm for arm, names in has.items() if "reward/clean" not in names)
        raise ConfigError(
            f"{lacking}: no clean reward that is a number, which the others have; leave it out, or name what to "
            "compare with --metric"
        )
    clean = "reward/clean" if "reward/clean" in common else "reward/mean"
    wanted = [clean, *sorted(name for name in common if name.startswith("eval/") and "/mean@" in name)]
    if found := [name for name in wanted if name in common]:
        noisy = {run.condition for run in runs if run.config.get("noise")}
        more = [name for name in ("reward/mean",) if name in common and name not in found]
        return {condition: [*found, *(more if condition in noisy else [])] for condition in conditions}
    said = "\n".join(f"  {arm}: {', '.join(sorted(names)) or 'nothing'}" for arm, names in has.items())
    if common:
        raise ConfigError(
            f"the runs have no reward and no evaluation in common; name what to compare with --metric:\n{said}"
        )
    raise ConfigError(f"the runs have no metric in common, so there is nothing to compare:\n{said}")


def _arm_results(
    runs: Sequence[Run], arms: Sequence[str], metric: str, last: int, compared: bool, threshold: float | None
) -> list[ArmResult]:
    """An arm without seeds is one that was not measured; there is none where no arm was."""
    having = [run for run in runs if metric in run.curves]
    by_arm = {arm: [_seed_result(run, metric, last) for run in having if run.arm == arm] for arm in arms}
    # What was measured only before training or after the horizon is no part of the comparison.
    by_arm = {arm: kept for arm, seeds in by_arm.items() if (kept := [s for s in seeds if not math.isnan(s.final)])}
    goal = None
    if compared:
        goal = threshold if threshold is not None else _threshold(by_arm, metric)
    found = []
    for arm, seeds in by_arm.items():
        if goal is not None:
            seeds = [_with_threshold(each, metric, goal, last) for each in seeds]
        finals, aucs = [each.final for each in seeds], [each.auc for each in seeds]
        found.append(
            ArmResult(
                condition=runs[0].condition,
                metric=metric,
                arm=arm,
                seeds=seeds,
                final=bootstrap(finals),
                iqm=bootstrap(finals, interquartile_mean),
                auc=bootstrap(aucs),
                threshold=goal,
                to_threshold=None if goal is None else _to_threshold(seeds),
                curve=_mean_curve(
                    [each.run.curves[metric] for each in seeds], last, POINTS if compared else FEW_POINTS
                ),
            )
        )
    if found and compared:
        there = {run.arm for run in runs}
        found += [_not_measured(found[0], arm) for arm in arms if arm in there and arm not in by_arm]
        found.sort(key=lambda result: arms.index(result.arm))
    return found


def _not_measured(beside: ArmResult, arm: str) -> ArmResult:
    nothing = Estimate(math.nan, None, None, 0)
    return replace(
        beside,
        arm=arm,
        seeds=[],
        final=nothing,
        iqm=nothing,
        auc=nothing,
        to_threshold=None,
        curve=MeanCurve(np.zeros(0), np.zeros(0), None, None),
    )


def _seed_result(run: Run, metric: str, last: int) -> SeedResult:
    curve = run.curves[metric]
    window = smoothing_window(len(curve.values))
    return SeedResult(
        run=run,
        final=final_value(curve.steps, curve.values, last),
        auc=area(curve.steps, curve.values, last),
        start=float(curve.values[:window].mean()),
        steps=math.nan,
    )


def _threshold(by_arm: dict[str, list[SeedResult]], metric: str) -> float | None:
    """None where nothing has risen, or where more is not known to be better."""
    if not higher_is_better(metric) or not by_arm:
        return None
    start = min(float(np.mean([each.start for each in seeds])) for seeds in by_arm.values())
    best = max(float(np.mean([each.final for each in seeds])) for seeds in by_arm.values())
    return start + CLIMB * (best - start) if best > start else None


def _with_threshold(result: SeedResult, metric: str, threshold: float, last: int) -> SeedResult:
    curve = result.run.curves[metric]
    return replace(result, steps=first_reaching(curve.steps, curve.values, threshold, last))


def _to_threshold(seeds: Sequence[SeedResult]) -> ToThreshold:
    steps = [each.steps for each in seeds]
    return ToThreshold(
        reached=sum(map(math.isfinite, steps)),
        seeds=len(steps),
        steps=_median(steps),
        seconds=_median([each.run.at(each.run.clock, each.steps) for each in seeds]),
        tokens=_median([each.run.at(each.run.tokens, each.steps) for each in seeds]),
    )


def _median(values: Sequence[float]) -> float:
    """With inf as a value like any other; NaN where one is not known."""
    ordered = sorted(values)
    if any(map(math.isnan, ordered)):
        return math.nan
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _mean_curve(curves: Sequence[Curve], last: int, points: int) -> MeanCurve:
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[steps <= last]
    values = np.full((len(curves), len(steps)), np.nan)
    for row, curve in zip(values, curves, strict=True):
        there = curve.steps <= last
        row[np.searchsorted(steps, curve.steps[there])] = curve.values[there]
    if len(steps) > points:
        cuts = np.arange(points) * len(steps) // points
        sizes = np.diff(np.append(cuts, len(steps)))
        there = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            values = np.add.reduceat(np.where(there, values, 0.0), cuts, axis=1) / np.add.reduceat(there, cuts, axis=1)
        steps = np.add.reduceat(steps, cuts) / sizes
    return MeanCurve(steps, *mean_curve(values))


def _pairs(results: Sequence[ArmResult]) -> list[Pair]:
    """The pairs of arms under each condition, metric by metric."""
    found: list[Pair] = []
    for metric, statistic in itertools.product(dict.fromkeys(each.metric for each in results), ("final", "auc")):
        family = [
            pair
            for _, arms in itertools.groupby((r for r in results if r.metric == metric), lambda r: r.condition)
            for a, b in _paired(list(arms))
            if (pair := _pair(a, b, statistic)) is not None
        ]
        tested = [pair.difference.p for pair in family if pair.difference.p is not None]
        adjusted = iter(holm(tested))
        found += [replace(p, holm=None if p.difference.p is None else next(adjusted)) for p in family]
    return found


def _paired(arms: Sequence[ArmResult]) -> Iterator[tuple[ArmResult, ArmResult]]:
    """Many arms are variants of the first more often than not, and among all their pairs nothing could be shown."""
    if len(arms) <= ALL_PAIRS:
        return itertools.combinations(arms, 2)
    return ((other, arms[0]) for other in arms[1:])


def _pair(a: ArmResult, b: ArmResult, statistic: str) -> Pair | None:
    """None where they have no seed in common."""
    left, right = ({each.run.seed: getattr(each, statistic) for each in arm.seeds} for arm in (a, b))
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return None
    difference = paired_difference([left[seed] - right[seed] for seed in seeds])
    return Pair(a.condition, a.metric, statistic, a.arm, b.arm, seeds, difference)
