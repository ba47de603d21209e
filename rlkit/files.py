"""Files that others may be reading while they are written. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the file, then put it in its place: a reader sees the old or the new, never half of one.

    `write` gets the path to write to. OSError where it cannot be written.
    """
    beside = path.with_name(path.name + ".part")
    beside.unlink(missing_ok=True)  # were it a link, what it leads to would be written over
    write(beside)
    beside.replace(path)


def write_text(path: Path, text: str) -> None:
    """The text as the whole file, in UTF-8. OSError where it cannot be written."""
    replace(path, lambda beside: beside.write_text(text, encoding="utf-8"))
