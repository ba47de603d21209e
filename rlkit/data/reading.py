"""The rows of a file, a hub data set or the embedded task, and their columns."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit import embedded, hub
from rlkit.embedded.task import Task
from rlkit.errors import ConfigError, nearest
from rlkit.wording import some

Row = Mapping[str, Any]
FILES = (".json", ".jsonl", ".parquet")

PROMPTS = ("prompt", "problem", "question")
ANSWERS = ("answer", "reward_model.ground_truth", "ground_truth", "solution", "label")
"""Where questions and golds stand in the data sets people have, the first that is there counts."""

NO_GOLDS = "null"
"""In place of the gold's column: there is none."""


def read_rows(path: str, subset: str | None = None, split: str = "train") -> list[Row]:
    """The rows of a .json, .jsonl or .parquet file, an embedded data set, or a hub data set's split.

    Raises ConfigError, naming the file and the line, for what cannot be read.
    """
    if path.startswith(embedded.PREFIX):
        return _embedded(path, split)
    if path.startswith("hf://"):
        return _parquet(path)
    file = Path(path)
    if file.suffix in FILES:
        if not file.is_file():
            raise ConfigError(f"data file {path!r} does not exist{_beside(file)}")
        if file.stat().st_size == 0:
            raise ConfigError(f"data file {path!r} is empty")
        return _parquet(path) if file.suffix == ".parquet" else _json(file)
    if file.is_file():
        raise ConfigError(
            f"data file {path!r}: cannot read {file.suffix or 'a file without a suffix'}; give {_ENDINGS}"
        )
    return _hub(path, subset, split)


_ENDINGS = "a .json, .jsonl or .parquet file"


def _embedded(path: str, split: str) -> list[Row]:
    known = [embedded.PREFIX + name for name in embedded.TASKS]
    if path not in known:
        raise ConfigError(f"no embedded data set {path!r}{nearest(path, known)}")
    if split not in ("train", "test"):
        raise ConfigError(f"{path} has no split {split!r}{nearest(split, ['train', 'test'])}")
    task: Task = importlib.import_module(f"rlkit.embedded.{path.removeprefix(embedded.PREFIX)}")
    return [{"prompt": p.prompt, "answer": p.answer, **p.columns} for p in task.problems(held_out=split == "test")]


def _beside(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f": there is no folder {str(folder)!r} (looked in {Path.cwd()})"
    return nearest(file.name, [f.name for f in folder.iterdir() if f.suffix in FILES]) + f" (in {folder.resolve()})"


def _json(file: Path) -> list[Row]:
    """A JSON array of objects, or one object a line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not JSON: it is not UTF-8 text ({error})") from error
    rows: list[tuple[int, Any]]
    if text.lstrip().startswith("["):
        unit, rows = "item", list(enumerate(_parse(text, file, 1), 1))
    else:
        # Not splitlines: JSON strings may hold other line separators.
        unit, rows = "line", [(i, _parse(line, file, i)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    for i, row in rows:
        if not isinstance(row, dict):
            raise ConfigError(f"{file}, {unit} {i}: expected an object with named columns, got {type(row).__name__}")
    return [row for _, row in rows]


def _parse(text: str, file: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        said = text.split("\n")[error.lineno - 1].strip()
        raise ConfigError(
            f"{file}, line {at}: not JSON: {error.msg} at column {error.colno}: {said[:60]!r}. "
            "Give an array of objects, or one object a line"
        ) from error


def _parquet(path: str) -> list[Row]:
    try:
        if path.startswith("hf://"):
            hub.settle()
            from datasets import load_dataset

            return list(load_dataset("parquet", data_files=path, split="train", streaming=True))
        import pyarrow.parquet as pq

        # Not by datasets, which knows no maps, and a run's rollouts have one.
        rows: list[Row] = pq.ParquetFile(path).read().to_pylist()
        return rows
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as parquet: {error}") from error


def _hub(path: str, subset: str | None, split: str) -> list[Row]:
    hub.settle()
    from datasets import load_dataset

    try:
        return list(load_dataset(path, subset, split=split))
    except Exception as error:
        part = f"subset {subset!r}, split {split!r}" if subset else f"split {split!r}"
        raise ConfigError(
            f"cannot load the data set {path!r} ({part}): {type(error).__name__}: {error}\n"
            f"For data on this machine give {_ENDINGS}"
        ) from error


def column(row: Row, name: str, key: str, where: str) -> Any:
    """A cell; dots in `name` go into nested columns. ConfigError, which tells to set `key`, where there is none."""
    found = cell(row, name)
    if found is MISSING:
        known = list(_names(row))
        raise ConfigError(f"{where}: no column {name!r}{nearest(name, known)} (columns: {', '.join(known)}). Set {key}")
    return found


MISSING = object()


def cell(row: Row, name: str) -> Any:
    """A cell; dots in `name` go into nested columns. MISSING where there is none."""
    if name in row:
        return row[name]
    here: Any = row
    for part in name.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return MISSING
        here = here[part]
    return here


def present(rows: Sequence[Row], names: Sequence[str], key: str, path: str) -> str:
    """The first of these columns that some row has something in. ConfigError, which tells to set `key`, for none."""
    for name in names:
        if any(cell(row, name) not in (None, MISSING) for row in rows):
            return name
    raise ConfigError(
        f"{path}: none of the columns {', '.join(names)} is there (columns: {', '.join(rows[0])}). Set {key}"
    )


def questions(rows: Sequence[Row], name: str, key: str, path: str) -> list[Any]:
    """The prompt column. ConfigError, which tells to set `key`, where a row has no such column."""
    found = [cell(row, name) for row in rows]
    lacking = [i for i, each in enumerate(found, 1) if each is MISSING]
    if len(lacking) == len(rows):
        column(rows[0], name, key, f"{path}, row 1")
    if lacking:
        columns = ", ".join(rows[lacking[0] - 1])
        raise ConfigError(
            f"{path}, row {lacking[0]}: no column {name!r} (columns: {columns}); of {len(rows)} rows {len(lacking)} "
            f"lack it ({some(lacking, MOST_NAMED)}). Give them one, leave them out, or set {key} to another column"
        )
    return found


MOST_NAMED = 5
"""Rows of one fault."""


def golds(rows: Sequence[Row], name: str | None, key: str, path: str) -> list[Any]:
    """The gold column; None where a row has none, or all for no name.

    ConfigError, which tells to set `key`, where no row has that column.
    """
    if name is None:
        return [None] * len(rows)
    found = [cell(row, name) for row in rows]
    if all(gold is MISSING for gold in found):
        known = list(dict.fromkeys(known for row in rows for known in _names(row)))
        raise ConfigError(
            f"{path}, in all rows: no column {name!r}{nearest(name, known)} (columns: {', '.join(known)}). Set {key} "
            f"to the column of golds; or {key}=null for data without golds, if the reward reads none"
        )
    return [None if gold is MISSING else gold for gold in found]


def _names(row: Row, prefix: str = "") -> Iterable[str]:
    for name, value in row.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")
