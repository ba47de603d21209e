"""A plugin for `waiting.py`: an environment that takes its time, as long as a file says, and is never done."""

from __future__ import annotations

import time
from pathlib import Path

from rlkit import environment


@environment("slow")
class Slow:
    """waits, and says to go on"""

    def __init__(self, *, file: str) -> None:
        self._file = Path(file)
        """Holds the seconds of a step, so that one run has both kinds."""

    def start(self, task: object, seed: int) -> str:
        self._seconds = float(self._file.read_text())
        return ""

    def step(self, action: str) -> str:
        time.sleep(self._seconds)
        return "and 1+1="
