"""metrics.jsonl: a JSON object a line, with its step. The only place that knows how a line is read.

A line holds numbers, null for one that was not finite, and a whole number as its "step"; a step may have several. The
last line is half written where it has no end or is not JSON: the writer was cut off, or is at it. It is left out, and
`read_lines` says so. Any other line that is not as it should be is an error.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import RlkitError

Array = NDArray[np.float64]

Line = dict[str, float | None]
"""As it stands in the file; None: it was not finite."""

Row = dict[str, float]
"""The metrics of one step, "step" among them; NaN: it was not finite."""

Metrics = Sequence[Mapping[str, float]]
"""Rows in the order of steps."""

_NUMBERS = frozenset({int, float, NoneType})


class _NotJson(RlkitError):
    """What a half-written line is."""


@dataclass(frozen=True)
class Curve:
    """A metric of one run, where it is a finite number."""

    steps: Array
    """[n], ascending."""
    values: Array
    """[n]"""


def parse(line: bytes, file: Path, number: int) -> Line:
    """A line of metrics.jsonl. RlkitError, naming file and line, for one that is not as it should be."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _NotJson(f"{file}, line {number} is not a JSON object with a step: {error}") from error
    step = row.get("step") if isinstance(row, dict) else None
    if not isinstance(step, int | float) or isinstance(step, bool) or step % 1 != 0:
        raise RlkitError(f"{file}, line {number} is not a JSON object with a step (a whole number)")
    if not _NUMBERS.issuperset(map(type, row.values())):
        name, value = next((name, value) for name, value in row.items() if type(value) not in _NUMBERS)
        raise RlkitError(f"{file}, line {number} holds a metric that is not a number: {name} is {value!r}")
    found: Line = row
    return found


def step_of(line: Line) -> int:
    step = line["step"]
    assert step is not None, "parse lets no such line through"
    return int(step)


def read_lines(file: Path) -> tuple[list[Line], bool]:
    """Every line, and whether one more was half written and is left out. RlkitError for damage and no such file."""
    try:
        *whole, rest = file.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise RlkitError(f"{file} does not exist: the run has logged nothing, or the file was moved") from error
    lines = []
    for number, line in enumerate(whole, 1):
        try:
            lines.append(parse(line, file, number))
        except _NotJson:
            if number < len(whole) or rest:
                raise
            return lines, True
    return lines, bool(rest)


def read_on(file: Path, position: int) -> tuple[list[Line], int]:
    """The lines after byte `position`, and the byte up to which they go: for who watches a run at work.

    From the beginning again where the file has become shorter. Damaged lines are left out: who reads the run whole
    says so. Nothing where there is no file.
    """
    if not file.is_file():
        return [], 0
    with file.open("rb") as open_file:
        open_file.seek(position if position <= file.stat().st_size else 0)
        *whole, rest = open_file.read().split(b"\n")
        end = open_file.tell() - len(rest)
    lines = []
    for number, line in enumerate(whole, 1):
        try:
            lines.append(parse(line, file, number))
        except RlkitError:
            continue
    return lines, end


def _merged(lines: Sequence[Line]) -> dict[int, Line]:
    """Step -> what it logged, in the order of steps; of what stands in several of its lines, the last."""
    steps: dict[int, Line] = {}
    for line in lines:
        step = step_of(line)
        if step in steps:
            steps[step] |= line
        else:
            steps[step] = line
    return {step: steps[step] for step in sorted(steps)}


def read_rows(file: Path) -> list[Row]:
    """One dict a step, in the order of steps, with what the step logged. RlkitError for damage and no such file."""
    return [
        {name: math.nan if value is None else value for name, value in line.items()}
        for line in _merged(read_lines(file)[0]).values()
    ]


def series(metrics: Metrics, name: str) -> tuple[list[int], list[float]]:
    """The steps at which a metric is a finite number, and its values there."""
    pairs = [(int(row["step"]), row[name]) for row in metrics if math.isfinite(row.get(name, math.nan))]
    return [step for step, _ in pairs], [value for _, value in pairs]


def last_step(metrics: Metrics) -> int:
    """The last step that has logged; 0 for none."""
    return int(metrics[-1]["step"]) if metrics else 0


@dataclass(frozen=True)
class Columns:
    """A run's metrics as a table: many runs of many steps are read so in a tenth of the time that rows take."""

    steps: Array
    """[n], ascending."""
    values: Mapping[str, Array]
    """Metric, by name -> [n]; NaN where the step has not logged it, or it was not finite."""
    not_finite: Mapping[str, tuple[int, int]]
    """Metric -> how many of how many values that were logged are no finite number; of those that have any."""
    cut_off: bool
    """The last line was half written, and is left out."""


def read_columns(file: Path) -> Columns:
    """The file as a table. RlkitError for damage and no such file."""
    lines, cut_off = read_lines(file)
    logged = _merged(lines)
    # Lines with the same keys make a matrix at once: a run has two or three such kinds of line.
    kinds: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in logged.values():
        kinds[tuple(line)].append(line)
    steps = np.array(list(logged), dtype=np.float64)
    table: dict[str, Array] = {}
    counts: dict[str, tuple[int, int]] = {}
    for names, alike in kinds.items():
        columns = np.array([list(line.values()) for line in alike], dtype=np.float64).T
        at = np.searchsorted(steps, columns[names.index("step")])
        for name, column in zip(names, columns, strict=True):
            if name != "step":
                table.setdefault(name, np.full(len(steps), np.nan))[at] = column
                bad, count = counts.get(name, (0, 0))
                counts[name] = bad + int((~np.isfinite(column)).sum()), count + len(column)
    values = {name: np.where(np.isfinite(table[name]), table[name], np.nan) for name in sorted(table)}
    return Columns(steps, values, {name: each for name, each in sorted(counts.items()) if each[0]}, cut_off)


def read_curves(file: Path) -> tuple[dict[str, Curve], list[str]]:
    """metric -> curve, sorted by name, and what is odd about the file, in sentences. RlkitError for damage.

    A status of samples is only logged in steps in which it comes up: in others that counted samples it is 0.
    """
    if not file.is_file():
        return {}, [f"{file} does not exist"]
    columns = read_columns(file)
    run = file.parent.name
    notes = [f"{run}: the last line of metrics.jsonl is half written; it is left out"] if columns.cut_off else []
    if columns.not_finite:
        said = ", ".join(f"{name} ({bad} of {count} values)" for name, (bad, count) in columns.not_finite.items())
        notes.append(f"{run}: left out, since it is no number: {said}")
    counted = np.isfinite(columns.values.get("samples/no_value", np.full(len(columns.steps), np.nan)))
    curves = {}
    for name, column in columns.values.items():
        values = np.where(counted & np.isnan(column), 0.0, column) if name.startswith("samples/") else column
        there = np.isfinite(values)
        if there.any():
            curves[name] = Curve(columns.steps[there], values[there])
    return curves, notes


def evaluation_of(name: str) -> tuple[str, str] | None:
    """(suite, what was measured) of a metric called eval/SUITE/NAME; None for any other."""
    if not name.startswith("eval/"):
        return None
    suite, _, what = name.removeprefix("eval/").rpartition("/")
    return suite or what, what


def held_out_names(metrics: Metrics) -> list[str]:
    """The metrics eval/SUITE/mean@k, sorted."""
    return sorted({name for row in metrics for name in row if name.startswith("eval/") and "/mean@" in name})
