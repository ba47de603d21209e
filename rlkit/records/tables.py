"""A run's files as pyarrow tables. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from rlkit.errors import RlkitError
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import evaluation_of, read_columns
from rlkit.records.samples import read, step_files
from rlkit.wording import ranges


def metrics(run: RunFolder) -> pa.Table:
    """A row a step, ascending: `step`, and a column for each metric by its name, null where the step has not logged it
    or it was no finite number."""
    columns = read_columns(run.metrics_file)
    values = {name: pa.array(column, mask=np.isnan(column)) for name, column in columns.values.items()}
    return pa.table({"step": columns.steps.astype(np.int64), **values})


def evaluation(run: RunFolder) -> pa.Table:
    """A row for each number that an evaluation in training gave: `step`, `suite` (`heldout`, `math500`), `metric`
    (`mean@1`, `length`) and `value`, by suite, metric and step."""
    table = metrics(run)
    steps = table["step"].to_pylist()
    rows = [
        (step, *evaluated, value)
        for name in table.column_names
        if (evaluated := evaluation_of(name)) is not None
        for step, value in zip(steps, table[name].to_pylist(), strict=True)
        if value is not None
    ]
    kinds = {"step": pa.int64(), "suite": pa.string(), "metric": pa.string(), "value": pa.float64()}
    columns = zip(*rows, strict=True) if rows else [()] * len(kinds)
    return pa.table({name: pa.array(c, kind) for (name, kind), c in zip(kinds.items(), columns, strict=True)})


def samples(run: RunFolder, steps: int | Iterable[int] | None = None) -> pa.Table:
    """Every sample of these steps (None: all), a row each: `step`, prompt, response, reward, tokens and what else is
    kept of it. Raises RlkitError for a step whose samples are not there."""
    return _of_steps(step_files(run.rollouts), steps, f"{run.path} has no samples of step")


def credit(run: RunFolder, steps: int | Iterable[int] | None = None) -> pa.Table:
    """What the algorithm credited the tokens of the first samples of these steps (None: all), a row each: `step`, `row`
    (which of the step's samples it is), and a list of a number a token for each kind of credit."""
    return _of_steps(step_files(run.credit), steps, f"{run.path} has no record of the credit of step")


def _of_steps(files: Mapping[int, Path], steps: int | Iterable[int] | None, lacking: str) -> pa.Table:
    wanted = list(files if steps is None else [steps] if isinstance(steps, int) else steps)
    if missing := [step for step in wanted if step not in files]:
        there = f"; it has those of {ranges(list(files))}" if files else ""
        raise RlkitError(f"{lacking} {ranges(sorted(missing))}{there}")
    tables = [pa.table({"step": pa.array([], pa.int64())})]
    for step in wanted:
        table = read(files[step])
        tables.append(table.add_column(0, "step", pa.array(np.full(len(table), step))))
    return pa.concat_tables(tables, promote_options="default")
