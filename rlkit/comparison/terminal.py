"""The comparison in words and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlkit import wording
from rlkit.comparison.runs import condition_name
from rlkit.comparison.seeds import LEVEL, Estimate
from rlkit.comparison.summary import ALL_PAIRS, ArmResult, Comparison, Pair, higher_is_better
from rlkit.wording import duration, number, thousands, visible

if TYPE_CHECKING:
    from rich.console import Group


MANY_SEEDS = 100
"""More than anybody runs: the number itself would promise a precision that a few seeds do not give."""


def decimals(results: Sequence[ArmResult]) -> int | None:
    """Places that give the largest of the results' values three digits, for all of them alike; None: there are too
    many, and each number is written by itself."""
    values = [abs(each.final.value) for each in results] + [abs(each.auc.value) for each in results]
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    places = wording.decimals(largest, 3)
    return places if places <= 5 else None


def fixed(value: float, places: int | None) -> str:
    if places is None or not math.isfinite(value):
        return number(value)
    return f"{value:,.{places}f}"


def estimate(value: Estimate, places: int | None) -> str:
    """`0.853 [0.841, 0.866]`; one seed has no interval."""
    if value.seeds == 0:
        return "not measured"
    said = fixed(value.value, places)
    if value.low is None or value.high is None:
        return said
    return f"{said} [{fixed(value.low, places)}, {fixed(value.high, places)}]"


def _alone(value: Estimate, places: int | None) -> str:
    """Without its interval."""
    return fixed(value.value, places) if value.seeds else ""


def difference(pair: Pair, places: int | None) -> str:
    """`+0.031 [+0.012, +0.050]`"""
    d = pair.difference
    if d.low is None or d.high is None:
        return _signed(d.mean, places)
    return f"{_signed(d.mean, places)} [{_signed(d.low, places)}, {_signed(d.high, places)}]"


def _signed(value: float, places: int | None) -> str:
    return ("+" if value > 0 else "") + fixed(value, places)


def ahead(pair: Pair) -> str:
    """`vimpo in 7 of 8`: whose value is higher in more seeds."""
    d = pair.difference
    leader, count = (pair.a, d.above) if d.above >= d.below else (pair.b, d.below)
    if d.above == d.below:
        return f"each in {d.above} of {d.seeds}" if d.above else "the same in all"
    return f"{leader} in {count} of {d.seeds}"


def verdict(pair: Pair, family: int) -> str:
    """What the pair shows. `family`: the pairs that were tested with it."""
    d = pair.difference
    if d.seeds == 1:
        return "one common seed: nothing is shown"
    if d.low is None:
        return "the same in every seed: without spread there is no test"
    if not d.shown:
        if d.mean == 0:
            return "no difference shown"
        needed = f"more than {MANY_SEEDS}" if d.needed is None or d.needed > MANY_SEEDS else str(d.needed)
        return f"no difference shown ({needed} seeds needed)"
    said = f"{pair.a if d.mean > 0 else pair.b} is {'ahead' if higher_is_better(pair.metric) else 'higher'}"
    if pair.holm is None or family == 1:
        return said
    p = f"p {number(pair.holm, 2)} among {family} pairs"
    return f"{said} ({p})" if pair.holm <= 1 - LEVEL else f"{said} on its own, but not among all the pairs ({p})"


def sentence(comparison: Comparison, pair: Pair) -> str:
    """What the pair shows, for who has not read how it is tested."""
    d, places = pair.difference, decimals(comparison.of(pair.condition, pair.metric))
    a, b, count = pair.a, pair.b, family(comparison, pair)
    if d.seeds == 1:
        return f"{a} - {b} is {_signed(d.mean, places)} in the one seed that both have, which shows nothing."
    if d.low is None or d.high is None:
        return f"{a} - {b} is {_signed(d.mean, places)} in every seed: without spread there is no test."
    if not d.shown:
        span = f"{_signed(d.low, places)} to {_signed(d.high, places)}"
        few = d.needed is not None and d.needed <= MANY_SEEDS
        seeds = f"about {d.needed} seeds" if few else f"more than {MANY_SEEDS} seeds"
        tell = f" One as large as seen here would take {seeds} to show." if d.mean else ""
        return f"Between {a} and {b} no difference is shown: {a} - {b} may be anything from {span}.{tell}"
    first, second = (a, b) if d.mean > 0 else (b, a)
    size = " to ".join(fixed(abs(end), places) for end in sorted((d.low, d.high), key=abs))
    what = "is ahead of" if higher_is_better(pair.metric) else "is higher than"
    said = f"{first} {what} {second} by {fixed(abs(d.mean), places)} ({size})"
    if pair.holm is None or count == 1:
        return f"{said}."
    if pair.holm <= 1 - LEVEL:
        return f"{said}, and that holds among all {count} pairs."
    return f"{said}; but among {count} pairs one like this comes up by chance."


def family(comparison: Comparison, pair: Pair) -> int:
    """How many pairs were tested together with this one."""
    return sum(
        (each.metric, each.statistic) == (pair.metric, pair.statistic) and each.holm is not None
        for each in comparison.pairs
    )


def to_threshold(result: ArmResult) -> tuple[str, str, str, str]:
    """Steps, seconds, tokens and `8 of 8`."""
    to = result.to_threshold
    if to is None:
        return "", "", "", ""
    if math.isinf(to.steps):
        return "not reached", "", "", f"{to.reached} of {to.seeds}"
    return number(to.steps), duration(to.seconds), thousands(to.tokens), f"{to.reached} of {to.seeds}"


def heading(comparison: Comparison, condition: str) -> str:
    return f"{condition_name(condition)}, steps up to {comparison.horizon[condition]:,}"


STATISTICS = {"final": "final value", "auc": "AUC"}


def text(comparison: Comparison) -> Group:
    """For a rich console: who is ahead, the arms under each condition, the pairs, and where it is not fair."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [*_in_short(comparison)]
    for condition in comparison.conditions:
        parts.append(Text(f"\n{visible(heading(comparison, condition))}", style="bold"))
        for metric in comparison.compared[condition]:
            results = comparison.of(condition, metric)
            if results:
                parts += [Text(f"\n{visible(metric)}"), _arms_table(results)]
                pairs = [p for p in comparison.pairs if (p.condition, p.metric) == (condition, metric)]
                if pairs:
                    parts += [Text(), _pairs_table(comparison, pairs, decimals(results))]
    parts += [Text("\n" + visible(explanation(comparison)), style="dim"), *_fairness(comparison)]
    return Group(*parts)


def _in_short(comparison: Comparison) -> Iterator[Any]:
    """Who is ahead in what is compared first, in sentences, and whether to believe it."""
    from rich.text import Text

    metric = comparison.metrics[0]
    pairs = [pair for pair in comparison.pairs if (pair.metric, pair.statistic) == (metric, "final")]
    if not pairs:
        return
    yield Text(f"\nIn short: {visible(metric)}, final value", style="bold")
    for condition in dict.fromkeys(pair.condition for pair in pairs):
        if len(comparison.conditions) > 1:
            yield Text(visible(condition_name(condition)))
        alike = [pair for pair in pairs if pair.condition == condition]
        yield from (Text(visible(f"- {sentence(comparison, pair)}")) for pair in alike)
        yield from (
            Text(visible(f"- But in {p.metric} {sentence(comparison, p)}")) for p in _otherwise(comparison, alike)
        )
    unfair = [each.title for each in comparison.fairness.findings if each.level == "unfair"]
    if unfair:
        yield Text(visible(f"But it is not fair ({'; '.join(unfair)}): see below."), style="bold")


def _otherwise(comparison: Comparison, alike: Sequence[Pair]) -> Iterator[Pair]:
    """Where another metric shows a difference that the first one does not, or that is the other way round."""
    for first in alike:
        for other in comparison.pairs:
            same = (other.condition, other.a, other.b, other.statistic) == (first.condition, first.a, first.b, "final")
            differs = not first.difference.shown or (other.difference.mean > 0) != (first.difference.mean > 0)
            if same and other.metric != first.metric and other.difference.shown and differs:
                yield other


def _table(*columns: tuple[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=justify == "right", overflow="fold")
    return table


def _arms_table(results: list[ArmResult]) -> Any:
    from rich.text import Text

    goal = results[0].threshold
    places = decimals(results)
    columns = [("arm", "left"), ("seeds", "right"), ("final value", "right"), ("IQM", "right"), ("AUC", "right")]
    if goal is not None:
        columns += [(f"steps to {number(goal)}", "right"), ("time", "right"), ("tokens", "right"), ("reached", "right")]
    table = _table(*columns)
    for each in results:
        numbers = [str(each.final.seeds), estimate(each.final, places), _alone(each.iqm, places)]
        cells = [each.arm, *numbers, _alone(each.auc, places), *(to_threshold(each) if goal is not None else ())]
        table.add_row(*(Text(visible(cell)) for cell in cells))
    return table


def _pairs_table(comparison: Comparison, pairs: list[Pair], places: int | None) -> Any:
    from rich.text import Text

    table = _table(("difference", "left"), ("of", "left"), ("", "right"), ("ahead", "left"), ("what it shows", "left"))
    for pair in pairs:
        name, said = f"{pair.a} - {pair.b}", verdict(pair, family(comparison, pair))
        cells = [name, STATISTICS[pair.statistic], difference(pair, places), ahead(pair), said]
        table.add_row(*(Text(visible(cell)) for cell in cells))
    return table


def explanation(comparison: Comparison) -> str:
    """How the numbers came about, in a few sentences."""
    one = all(result.final.seeds <= 1 for result in comparison.results)
    said = [
        "Final value: mean of the last tenth of the steps. IQM: interquartile mean of it over the seeds. AUC: area "
        "under the curve, divided by its length.",
        "One seed only: there is no interval, and nothing is shown about differences."
        if one
        else "In brackets: 95 % intervals; over seeds by bootstrap, of paired differences by Student's t. p is Holm's, "
        "for all these pairs of a metric together. Seeds needed: those that would show a true difference of this "
        "size in 4 of 5 comparisons.",
    ]
    if len(comparison.arms) > ALL_PAIRS:
        said.append(f"Among more than {ALL_PAIRS} arms, each is paired with the first: {comparison.arms[0]}.")
    if not all(result.seeds for result in comparison.results):
        said.append(
            "Not measured: nothing after step 0 and up to the step that is compared; what was measured before "
            "training says nothing of it. Runs of one length, or a smaller eval.every, have it."
        )
    if any(result.threshold is not None for result in comparison.results):
        rule = "90 % of the way from the lowest start to the best final value"
        rule = rule if comparison.threshold is None else "as asked for"
        said.append(f"Threshold: {rule}. Steps, time and tokens until then are medians over the seeds.")
    return "\n".join(said)


def _fairness(comparison: Comparison) -> Iterator[Any]:
    from rich.text import Text

    fairness = comparison.fairness
    said: dict[str, list[str]] = {"unfair": [], "note": []}
    for each in fairness.findings:
        said[each.level].append(f"- {each.title}: {each.detail}. So {each.means}.")
    said["note"] += [f"- {note}." for note in comparison.notes]
    for level, title in (("unfair", "Not fair"), ("note", "To be known")):
        if said[level]:
            yield Text(f"\n{title}", style="bold")
            yield from (Text(visible(each)) for each in said[level])
    if fairness.same:
        yield Text(visible(f"\nThe same everywhere: {', '.join(fairness.same)}."))
