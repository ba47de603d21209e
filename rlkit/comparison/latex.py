"""The comparison as tables for LaTeX, with the package booktabs: what is compared, with the digits of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlkit.comparison.runs import condition_name
from rlkit.comparison.summary import Comparison, Pair
from rlkit.comparison.terminal import STATISTICS, ahead, decimals, difference, estimate
from rlkit.files import write_text
from rlkit.wording import number, visible

ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)


def write_latex(comparison: Comparison, folder: Path) -> list[Path]:
    """arms.tex: a row for each condition, metric that is compared, and arm. pairs.tex: for each pair of arms."""
    tables = {"arms.tex": _arms(comparison), "pairs.tex": _pairs(comparison)}
    for name, text in tables.items():
        write_text(folder / name, text)
    return [folder / name for name in tables]


def _arms(comparison: Comparison) -> str:
    def rows(condition: str, metric: str) -> Iterator[Sequence[str]]:
        results = comparison.of(condition, metric)
        places = decimals(results)
        for each in results:
            yield each.arm, str(each.final.seeds), *(estimate(v, places) for v in (each.final, each.iqm, each.auc))

    return _table("lrrrr", ("arm", "seeds", "final value", "IQM", "AUC"), comparison, rows)


def _pairs(comparison: Comparison) -> str:
    def rows(condition: str, metric: str) -> Iterator[Sequence[str]]:
        places = decimals(comparison.of(condition, metric))
        for pair in comparison.pairs:
            if (pair.condition, pair.metric) == (condition, metric):
                name = f"{pair.a} - {pair.b}"
                yield name, STATISTICS[pair.statistic], difference(pair, places), _p(pair), ahead(pair)

    return _table("llrrl", ("difference", "of", "", "p (Holm)", "ahead"), comparison, rows)


def _p(pair: Pair) -> str:
    return "" if pair.holm is None else number(pair.holm, 2)


def _table(
    columns: str, head: Sequence[str], comparison: Comparison, rows: Callable[[str, str], Iterator[Sequence[str]]]
) -> str:
    """`rows` gives those of a condition and a metric, which stand under a line with the names of the two."""
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(head)]
    for condition in comparison.conditions:
        for metric in comparison.compared[condition]:
            if found := [_row(row) for row in rows(condition, metric)]:
                title = _escaped(f"{metric}, {condition_name(condition)}")
                lines += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{title}}}}} \\", *found]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(_escaped, cells)) + r" \\"


def _escaped(text: str) -> str:
    """In braces where it begins with a bracket: after a line's end that would be an option of it."""
    escaped = visible(text).replace("\n", " ").translate(ESCAPES)
    return f"{{{escaped}}}" if escaped.startswith("[") else escaped
