"""Fill in the tables of a study from the files beside it, which `rlkit compare` and `rlkit sweep` wrote.

    python tools/study_tables.py docs/studies/noise.md

What stands between `<!-- FOLDER: TABLE -->` and `<!-- end -->` is replaced. TABLE is arms, tuning, or final or area and
a metric, as in `final train`. A test holds the pages against the files.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TRAIN, KL = "reward/clean", "policy/kl"
METRICS = {TRAIN: "clean train reward", "eval/heldout/mean@1": "held-out pass rate", KL: "KL, nats a token"}
SHORT = {TRAIN: "train", "eval/heldout/mean@1": "held-out"}


def filled(page: Path) -> str:
    """The page's text with its tables made anew."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{tables(page.parent / found[2])[found[3]]}{found[4]}"

    return re.sub(r"(<!-- (\S+): ([^>]+) -->)\n.*?(<!-- end -->)", table, page.read_text(), flags=re.DOTALL)


def tables(folder: Path) -> dict[str, str]:
    """Name of a table -> Markdown."""
    arms, pairs, seeds = (_rows(folder / f"{name}.csv") for name in ("arms", "pairs", "seeds"))
    made = {"arms": _arms(arms, seeds)}
    for metric, short in SHORT.items():
        for statistic, name in (("final", "final"), ("auc", "area")):
            made[f"{name} {short}"] = _pairs(pairs, metric, statistic)
    if (folder / "tuning.json").is_file():
        made["tuning"] = _tuning(json.loads((folder / "tuning.json").read_text()))
    return {name: _table(rows) for name, rows in made.items()}


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _arms(rows: list[dict[str, str]], seeds: list[dict[str, str]]) -> Iterator[list[str]]:
    """Final values (means of the last tenth) and areas under the curve, with 95 % intervals over the seeds."""
    known = {(row["condition"], row["arm"], row["metric"]): row for row in rows}
    metrics = [metric for metric in METRICS if any(row["metric"] == metric for row in rows)]
    yield ["noise", "arm", "seeds", *(METRICS[m] for m in metrics), "lowest and highest seed", "area, train reward"]
    for row in (row for row in rows if row["metric"] == TRAIN):
        condition, arm = row["condition"], row["arm"]
        finals = [known.get((condition, arm, metric)) for metric in metrics]
        each = [float(s["final"]) for s in seeds if (s["condition"], s["arm"], s["metric"]) == (condition, arm, TRAIN)]
        cells = [_interval(final, "final") if final else "" for final in finals]
        yield [condition, arm, row["seeds"], *cells, f"{min(each):.3f}, {max(each):.3f}", _interval(row, "auc")]


def _interval(row: dict[str, str], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{float(value):.3f} [{float(low):.3f}, {float(high):.3f}]" if low else f"{float(value):.3f}"


def _pairs(rows: list[dict[str, str]], metric: str, statistic: str) -> Iterator[list[str]]:
    """Paired differences with 95 % intervals."""
    yield ["noise", "pair", "paired difference", "ahead", "verdict"]
    for row in rows:
        if (row["metric"], row["statistic"]) == (metric, statistic):
            difference = f"{float(row['difference']):+.3f} [{float(row['low']):+.3f}, {float(row['high']):+.3f}]"
            ahead = f"{row['a_above']} of {row['seeds']}"
            yield [row["condition"], f"{row['a']} - {row['b']}", difference, ahead, row["verdict"]]


def _tuning(tuning: list[dict]) -> Iterator[list[str]]:  # type: ignore[type-arg]
    settings = [", ".join(f"{key} {value:g}" for key, value in t["settings"].items()) for t in tuning[0]["trials"]]
    yield ["noise", "arm", *settings]
    for each in tuning:
        cells = []
        for trial in each["trials"]:
            scores = [*trial["scores"].values()]
            said = "died" if None in scores else f"{sum(scores) / len(scores):.3f}"
            cells.append(f"**{said}**" if trial["settings"] == each["chosen"] else said)
        yield [each["condition"], each["arm"], *cells]


def _table(rows: Iterator[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- ", "|---").replace("|--- |", "|---|")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(filled(Path(name)))
