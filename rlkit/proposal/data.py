"""What there is to know of a data set before a config is made for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit import embedded
from rlkit.data import reading
from rlkit.data.reading import FILES, MISSING, Row
from rlkit.errors import ConfigError
from rlkit.golds import gold_text

HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")
"""What a file of held-out problems has in its name where that of the training problems has `train`."""


@dataclass(frozen=True)
class Data:
    path: str
    subset: str | None
    rows: Sequence[Row]
    prompt: str
    answer: str | None
    """None: the data has no golds."""
    eval_path: str | None
    """Held-out problems; None: none were found, or the embedded task has its own."""
    held_out: int
    """How many; 0: none."""

    @property
    def embedded(self) -> bool:
        return self.path.startswith(embedded.PREFIX)

    def prompts(self) -> list[Any]:
        return reading.questions(self.rows, self.prompt, "--prompt", self.path)

    def golds(self) -> list[Any]:
        return reading.golds(self.rows, self.answer, "--answer", self.path)

    def gold_texts(self) -> list[str]:
        return [gold_text(gold, f"{self.path}, row {i}") for i, gold in enumerate(self.golds(), 1)]


def read(path: str, subset: str | None) -> list[Row]:
    """The rows. ConfigError for what cannot be read, for none, and for tasks whose presets say all there is."""
    if (task := path.removeprefix(embedded.PREFIX)) in embedded.PLAYED and task != path:
        raise ConfigError(
            f"{path} is played over several turns in an environment, which no config is proposed for: "
            f"`rlkit run embedded_{task}` trains on it"
        )
    rows = reading.read_rows(path, subset)
    if not rows:
        raise ConfigError(f"{path} holds no problems: it is empty")
    return rows


def found_column(rows: Sequence[Row], names: Sequence[str]) -> str | None:
    """The first of these columns that some row has something in."""
    return next((name for name in names if any(reading.cell(row, name) not in (None, MISSING) for row in rows)), None)


def look_at(path: str, subset: str | None, rows: Sequence[Row], prompt: str, answer: str | None) -> Data:
    """ConfigError where a column is not there."""
    eval_path, held_out = _held_out(path, subset, prompt, answer)
    found = Data(path, subset, rows, prompt, answer, eval_path, held_out)
    found.prompts()
    found.golds()
    return found


def here() -> str | None:
    """The training data in this folder, where its name says so, or no other file may be it."""
    files = sorted(file.name for file in Path().iterdir() if file.suffix in FILES)
    named = [name for name in files if "train" in name]
    return named[0] if named else files[0] if len(files) == 1 else None


def _held_out(path: str, subset: str | None, prompt: str, answer: str | None) -> tuple[str | None, int]:
    """Held-out problems with the same columns: a file beside that of the training problems, or a hub's test split."""
    if path.startswith(embedded.PREFIX):
        return None, len(reading.read_rows(path, split="test"))
    file = Path(path)
    if file.suffix in FILES and "://" not in path:
        names = [file.name.replace("train", word) for word in HELD_OUT] if "train" in file.name else []
        beside = [str(file.with_name(name)) for name in names if file.with_name(name).is_file()]
    else:
        beside = [] if "://" in path else [path]
    for each in beside:
        try:
            rows = reading.read_rows(each, subset, "test")
        except ConfigError:  # a data set without a test split
            continue
        if rows and all(name is None or reading.cell(rows[0], name) is not MISSING for name in (prompt, answer)):
            return each, len(rows)
    return None, 0


def messages(prompt: Any) -> bool:
    """Whether a prompt is more than one user's message."""
    return isinstance(prompt, list) and [m.get("role") for m in prompt if isinstance(m, Mapping)] != ["user"]
