"""The files of a step, rollouts/step-000012.parquet and credit/step-000012.parquet: their names, and how they are read.

The only reader of them. RunFolder writes them, and says what is in each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlkit.errors import RlkitError

LEARNT_FROM = (
    *("prompt_id", "rollout_step", "occurrence", "index", "prompt_tokens", "answer", "response", "tokens"),
    *("sampler_logprobs", "reward", "clean_reward", "status", "correct", "parts", "info", "truncated", "version"),
    *("replaced", "prompt", "turns"),
)
"""Columns of samples from which a step can be learnt again; `token_values` where rewards come on the way."""


def step_name(step: int) -> str:
    """What the files of a step are called, without their ending."""
    return f"step-{step:06d}"


def step_files(folder: Path) -> dict[int, Path]:
    """Step -> its file, ascending; empty where there is no such folder."""
    files = {int(file.stem.removeprefix("step-")): file for file in folder.glob("step-*.parquet")}
    return {step: files[step] for step in sorted(files)}


def evenly(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of them (two or more), evenly spaced, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[at * (len(steps) - 1) // (most - 1)] for at in range(most)]


def check_columns(file: Path, columns: Sequence[str]) -> None:
    """RlkitError as `read`, as far as it can be told without reading it all: a file that was cut has lost its end,
    where its columns are named."""
    _check(file, column_names(file), columns)


def column_names(file: Path) -> list[str]:
    """RlkitError, saying what to do, for a file that is damaged or not there."""
    with _opened(file) as parquet:
        names: list[str] = parquet.schema_arrow.names
        return names


def read(file: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()) -> pa.Table:
    """These columns of a step's file, and of the optional ones those that it has; None: all there are.

    RlkitError, saying what to do, for a file that is damaged or not there, and for one that lacks a column.
    """
    with _opened(file) as parquet:
        names = parquet.schema_arrow.names
        _check(file, names, columns or ())
        return parquet.read(None if columns is None else [*columns, *(name for name in optional if name in names)])


def _check(file: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    if lacking := [name for name in columns if name not in names]:
        raise RlkitError(
            f"{file} has no {', '.join(lacking)}: it was made by an older rlkit. Make the run once more, with "
            f"`rlkit run {file.parents[1] / 'config.yaml'} --name again`"
        )


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    if not file.is_file():
        raise RlkitError(f"{file} is not there: the step was not made, or its file was removed")
    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        said = str(error).partition("\n")[0]
        raise RlkitError(f"{file} is damaged ({said}): delete it, and rlkit does without") from error
