"""The differences between arms as a forest plot: each with its interval, on one axis for a metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkit.comparison.runs import condition_name
from rlkit.comparison.summary import Comparison, Pair
from rlkit.comparison.terminal import decimals, difference, sentence
from rlkit.wording import number

EDGE = 0.04
"""Share of the axis that stays free at either end."""


@dataclass(frozen=True)
class Line:
    """A pair. Places are in percent of the axis."""

    a: str
    b: str
    numbers: str
    """`+0.031 [+0.012, +0.050]`"""
    sentence: str
    at: float
    low: float | None
    """None: there is no interval."""
    width: float
    shown: bool


@dataclass(frozen=True)
class Forest:
    """A metric's differences in final value."""

    metric: str
    zero: float
    ends: tuple[str, str]
    """The differences at the axis' ends, which lie symmetric around 0."""
    groups: Sequence[tuple[str, Sequence[Line]]]
    """Condition, by the name that people read, and its pairs."""


def forests(comparison: Comparison) -> list[Forest]:
    """One for each metric that has pairs; what is compared first comes first."""
    found = []
    for metric in comparison.metrics:
        pairs = [pair for pair in comparison.pairs if (pair.metric, pair.statistic) == (metric, "final")]
        if pairs:
            found.append(_forest(comparison, metric, pairs))
    return found


def _forest(comparison: Comparison, metric: str, pairs: Sequence[Pair]) -> Forest:
    ends = [value for d in (pair.difference for pair in pairs) for value in (d.mean, d.low or 0.0, d.high or 0.0)]
    size = max(map(abs, ends)) / (1 - 2 * EDGE) or 1.0

    def place(value: float) -> float:
        return round(50 * (1 + value / size), 3)

    def line(pair: Pair) -> Line:
        d = pair.difference
        places = decimals(comparison.of(pair.condition, metric))
        return Line(
            a=pair.a,
            b=pair.b,
            numbers=difference(pair, places),
            sentence=sentence(comparison, pair),
            at=place(d.mean),
            low=None if d.low is None else place(d.low),
            width=0.0 if d.low is None or d.high is None else place(d.high) - place(d.low),
            shown=d.shown,
        )

    groups = [
        (condition_name(condition), [line(pair) for pair in pairs if pair.condition == condition])
        for condition in dict.fromkeys(pair.condition for pair in pairs)
    ]
    return Forest(metric, place(0), (f"-{number(size, 2)}", f"+{number(size, 2)}"), groups)
