"""The comparison as one HTML page."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlkit import pages
from rlkit.comparison.forest import forests
from rlkit.comparison.runs import Run, condition_name
from rlkit.comparison.side_by_side import samples
from rlkit.comparison.summary import ArmResult, Comparison, Pair
from rlkit.comparison.terminal import (
    STATISTICS,
    ahead,
    decimals,
    difference,
    estimate,
    explanation,
    family,
    heading,
    to_threshold,
    verdict,
)
from rlkit.records.metrics import Curve
from rlkit.sweeps.labels import settings_label
from rlkit.wording import counted, number, visible


@dataclass(frozen=True)
class Row:
    """Of a table: a name, and cells."""

    name: str
    cells: Sequence[str]
    color: int = 0


@dataclass(frozen=True)
class Section:
    """A metric under a condition."""

    metric: str
    threshold: str
    chart: pages.Chart
    arms: Sequence[Row]
    pairs: Sequence[Row]


def write_page(comparison: Comparison, file: Path) -> Path:
    """Writes the page there. OSError where it cannot be written."""
    conditions = comparison.conditions
    shown = [samples([r for r in comparison.runs if r not in comparison.left_out], each) for each in conditions]
    pages.render(
        "comparison",
        file,
        title=_title(comparison),
        lead=_lead(comparison),
        explanation=explanation(comparison).split("\n"),
        conditions=[(heading(comparison, condition), _sections(comparison, condition)) for condition in conditions],
        forests=forests(comparison),
        clocks=_clocks(comparison),
        unfair=[each for each in comparison.fairness.findings if each.level == "unfair"],
        notes=[each for each in comparison.fairness.findings if each.level == "note"],
        said=comparison.notes,
        same=comparison.fairness.same,
        others=_others(comparison),
        arms=comparison.arms,
        settings=comparison.settings,
        tuning=_tuning(comparison),
        samples=[each for each in shown if each is not None],
        condition_name=condition_name,
        runs=comparison.runs,
        left_out=[run.name for run in comparison.left_out],
    )
    return file


def _title(comparison: Comparison) -> str:
    if len(comparison.paths) == 1:
        return comparison.paths[0].resolve().name
    return ", ".join(comparison.arms)


def _lead(comparison: Comparison) -> str:
    seeds = sorted({run.seed for run in comparison.runs})
    parts = [
        counted(len(comparison.runs), "run"),
        counted(len(comparison.arms), "arm") + f" ({', '.join(comparison.arms)})",
        counted(len(comparison.conditions), "condition"),
        counted(len(seeds), "seed"),
    ]
    return ", ".join(parts) + "."


def _clocks(comparison: Comparison) -> dict[str, pages.Clock]:
    """What an arm's steps took under a condition, as the mean over its runs, for the x axes."""
    groups: dict[str, list[Run]] = {}
    for run in comparison.runs:
        if run not in comparison.left_out:
            groups.setdefault(_clock(run.condition, run.arm), []).append(run)
    return {name: _mean_clock(runs) for name, runs in groups.items()}


def _clock(condition: str, arm: str) -> str:
    return f"{visible(condition)}, {visible(arm)}"


def _mean_clock(runs: Sequence[Run]) -> pages.Clock:
    steps = functools.reduce(np.intersect1d, [run.clock.steps for run in runs])

    def mean(totals: Sequence[Curve]) -> list[float]:
        if any(not np.isin(steps, total.steps).all() for total in totals):
            return []
        rows = [total.values[np.searchsorted(total.steps, steps)] for total in totals]
        return np.mean(rows, axis=0).tolist() if len(steps) else []

    return pages.Clock(steps.tolist(), mean([run.tokens for run in runs]), mean([run.clock for run in runs]))


def _pair_row(comparison: Comparison, pair: Pair) -> Row:
    places = decimals(comparison.of(pair.condition, pair.metric))
    said = verdict(pair, family(comparison, pair))
    return Row(f"{pair.a} - {pair.b}", [STATISTICS[pair.statistic], difference(pair, places), ahead(pair), said])


def _sections(comparison: Comparison, condition: str) -> list[Section]:
    found = []
    for metric in comparison.compared[condition]:
        if results := comparison.of(condition, metric):
            places = decimals(results)
            pairs = [pair for pair in comparison.pairs if (pair.condition, pair.metric) == (condition, metric)]
            found.append(
                Section(
                    metric=metric,
                    threshold=number(results[0].threshold) if results[0].threshold is not None else "",
                    chart=_chart(comparison, "Mean over the seeds, with a 95 % band", results),
                    arms=[_arm_row(comparison, each, places) for each in results],
                    pairs=[_pair_row(comparison, pair) for pair in pairs],
                )
            )
    return found


def _arm_row(comparison: Comparison, result: ArmResult, places: int | None) -> Row:
    cells = [
        str(result.final.seeds),
        estimate(result.final, places),
        estimate(result.iqm, places),
        estimate(result.auc, places),
    ]
    if result.threshold is not None:
        cells += to_threshold(result)
    return Row(result.arm, cells, comparison.arms.index(result.arm))


def _chart(comparison: Comparison, title: str, results: Sequence[ArmResult]) -> pages.Chart:
    series = []
    for result in (each for each in results if each.seeds):
        curve, color = result.curve, comparison.arms.index(result.arm)
        series.append(
            pages.Series(
                name=result.arm,
                x=curve.steps.tolist(),
                y=curve.mean.tolist(),
                low=None if curve.low is None else curve.low.tolist(),
                high=None if curve.high is None else curve.high.tolist(),
                color=color,
                dashed=color >= len(pages.PALETTE),
                marks=len(curve.steps) < 25,
                clock=_clock(result.condition, result.arm),
            )
        )
    return pages.Chart(title=title, series=series, line=results[0].threshold)


def _others(comparison: Comparison) -> list[tuple[str, list[pages.Chart]]]:
    """The metrics that are only described, by their first word."""
    groups = []
    for word, metrics in itertools.groupby(comparison.others, key=lambda name: name.partition("/")[0]):
        charts = []
        for metric, condition in itertools.product(metrics, comparison.conditions):
            results = comparison.of(condition, metric)
            # What never changes is no curve: a count that stays 0, say.
            if any(len({*result.curve.mean.tolist()}) > 1 for result in results):
                charts.append(_chart(comparison, f"{metric}, {condition_name(condition)}", results))
        if charts:
            groups.append((word, charts))
    return groups


def _tuning(comparison: Comparison) -> list[tuple[str, str, list[Row]]]:
    """For each arm that was tuned: its name, how it was chosen, and what was tried."""
    found = []
    for each in comparison.tuning:
        rows = []
        for trial in each.trials:
            scores = [score for score in trial.scores.values() if score is not None]
            mean = number(sum(scores) / len(scores)) if len(scores) == len(trial.scores) and scores else "failed"
            chosen = "chosen" if dict(trial.settings) == dict(each.chosen or {}) else ""
            rows.append(Row(" ".join(settings_label(trial.settings)), [mean, chosen]))
        seeds = ", ".join(map(str, each.seeds))
        found.append((f"{each.arm}, {condition_name(each.condition)}", f"{each.metric}, seeds {seeds}", rows))
    return found
