"""The comparison as CSV, every digit of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from rlkit.comparison.seeds import Estimate
from rlkit.comparison.summary import Comparison
from rlkit.comparison.terminal import family, verdict

Cell = str | int | float | None


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """arms.csv: a row for each condition, metric and arm. pairs.csv: for each pair of arms. seeds.csv: for each run."""
    return [_write(folder / f"{name}.csv", rows) for name, rows in tables(comparison).items()]


def tables(comparison: Comparison) -> dict[str, list[dict[str, Cell]]]:
    """The rows of `arms`, `pairs` and `seeds`."""
    rows = {"arms": _arms(comparison), "pairs": _pairs(comparison), "seeds": _seeds(comparison)}
    return {name: list(each) for name, each in rows.items()}


def runs_of(folder: Path) -> set[str]:
    """Folders of the runs that were compared there; empty where there is no comparison."""
    file = folder / "seeds.csv"
    if not file.is_file():
        return set()
    with file.open(newline="", encoding="utf-8") as lines:
        return {row.get("folder") or row.get("run") or "?" for row in csv.DictReader(lines)}


def _arms(comparison: Comparison) -> Iterator[dict[str, Cell]]:
    for result in comparison.results:
        to = result.to_threshold
        yield {
            "condition": result.condition,
            "metric": result.metric,
            "arm": result.arm,
            "seeds": result.final.seeds,
            **_estimate("final", result.final),
            **_estimate("iqm", result.iqm),
            **_estimate("auc", result.auc),
            "threshold": result.threshold,
            "reached": None if to is None else to.reached,
            "steps_to_threshold": None if to is None else to.steps,
            "seconds_to_threshold": None if to is None else to.seconds,
            "tokens_to_threshold": None if to is None else to.tokens,
        }


def _pairs(comparison: Comparison) -> Iterator[dict[str, Cell]]:
    for pair in comparison.pairs:
        d = pair.difference
        yield {
            "condition": pair.condition,
            "metric": pair.metric,
            "statistic": pair.statistic,
            "a": pair.a,
            "b": pair.b,
            "seeds": d.seeds,
            "difference": d.mean,
            "low": d.low,
            "high": d.high,
            "p": d.p,
            "p_holm": pair.holm,
            "a_above": d.above,
            "b_above": d.below,
            "seeds_needed": d.needed,
            "verdict": verdict(pair, family(comparison, pair)),
        }


def _seeds(comparison: Comparison) -> Iterator[dict[str, Cell]]:
    for result in comparison.results:
        for seed in result.seeds:
            yield {
                "condition": result.condition,
                "metric": result.metric,
                "arm": result.arm,
                "seed": seed.run.seed,
                "run": seed.run.name,
                "folder": str(seed.run.folder.resolve()),
                "final": seed.final,
                "auc": seed.auc,
                "steps_to_threshold": seed.steps,
                "seconds_to_threshold": seed.run.at(seed.run.clock, seed.steps),
                "tokens_to_threshold": seed.run.at(seed.run.tokens, seed.steps),
            }


def _estimate(name: str, value: Estimate) -> dict[str, Cell]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def _write(file: Path, rows: list[dict[str, Cell]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        if rows:
            writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return file


def _cell(value: Cell) -> Cell:
    """Empty for what there is not; `inf` says that a threshold was not reached."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
