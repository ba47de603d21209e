"""How much of a run is seen while it goes, and on what. Light, since it is asked before the first line comes."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Literal

Shows = Literal["bar", "lines", "warnings"]
"""Lines with a bar below them, lines, or warnings alone."""


def usual() -> Shows:
    """A bar where there is a terminal to draw it on."""
    # Not rich's own answer, which takes a file for a terminal where colours are forced.
    return "bar" if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else "lines"


def columns() -> int | None:
    """Of the terminal that standard output is; None: it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
