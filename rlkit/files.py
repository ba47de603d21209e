"""Files that others may be reading while they are written. Needs no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkit.wording import size


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the file, then put it in its place: a reader sees the old or the new, never half of one.

    `write` gets the path to write to. OSError where it cannot be written.
    """
    beside = path.with_name(path.name + ".part")
    beside.unlink(missing_ok=True)  # were it a link, what it leads to would be written over
    try:
        write(beside)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        error.filename = str(path)  # pyarrow's errors name no file
        raise


def append(path: Path, data: bytes) -> None:
    """At the end of the file, whole or not at all. OSError where it cannot be written."""
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, 2)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            file.truncate(end)
            error.filename = str(path)
            raise


def cannot_write(place: Path, error: OSError) -> str:
    """What a failed write to a folder, or a file in it, has to say: why, and how much room its disk has."""
    why = os.strerror(error.errno) if error.errno else str(error)
    room = size(shutil.disk_usage(place).free)
    return f"{error.filename or place} cannot be written: {why} (its disk has {room} free)"


def write_text(path: Path, text: str) -> None:
    """The text as the whole file, in UTF-8. OSError where it cannot be written."""
    replace(path, lambda beside: beside.write_text(text, encoding="utf-8"))
