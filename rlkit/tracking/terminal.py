"""How much of a run is seen while it goes, and on what. Light, since it is asked before the first line comes."""

from __future__ import annotations

import io
import os
import shutil
import sys
from typing import Any, Literal

Shows = Literal["bar", "lines", "warnings"]
"""Lines with a bar below them, lines, or warnings alone."""


def usual() -> Shows:
    """A bar where there is a terminal to draw it on."""
    # Not rich's own answer, which takes a file for a terminal where colours are forced.
    return "bar" if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else "lines"


class _Shown(io.FileIO):
    """What cannot be shown is lost, and ends nothing."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def outlive_terminal() -> None:
    """Have this process go on where what it prints can no longer be shown: the terminal is gone, the pipe is closed,
    the disk is full. What is printed from then on is lost."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            shown = io.BufferedWriter(_Shown(stream.fileno(), "w", closefd=False))
            kept = {key: getattr(stream, key) for key in ("encoding", "errors", "line_buffering", "write_through")}
            setattr(sys, name, io.TextIOWrapper(shown, **kept))


def columns() -> int | None:
    """Of the terminal that standard output is; None: it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
