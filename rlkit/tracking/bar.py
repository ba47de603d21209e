"""The line below all others on a terminal: steps, phase, time elapsed and left."""

from __future__ import annotations

import time
from collections import deque

from rich.console import Console as Terminal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlkit.wording import duration

RECENT = 50
"""Steps that the time left is judged by: later responses may be longer than the first."""
REFRESHES_PER_S = 4
WIDEST = 20


class Bar:
    """Drawn by a thread of its own, a few times a second: what is told it is only put down."""

    def __init__(self, terminal: Terminal, steps: int, done: int) -> None:
        """`done` of the run's `steps` were made before."""
        self.phase = ""
        self._terminal = terminal
        self._steps = steps
        self._done = done
        self._began = time.monotonic()
        self._ends: deque[tuple[int, float]] = deque(maxlen=RECENT + 1)
        """(Steps made, when)."""
        self._live = Live(
            console=terminal, get_renderable=self._line, refresh_per_second=REFRESHES_PER_S, transient=True
        )
        self._live.start()

    def step(self, done: int, seconds: float) -> None:
        """A step has been made, in so many seconds."""
        now = time.monotonic()
        if not self._ends:
            self._ends.append((done - 1, now - seconds))
        self._ends.append((done, now))
        self._done = done

    def close(self) -> None:
        self._live.stop()

    def _left(self) -> float | None:
        """Seconds, evaluations on the way among them; None before the first step."""
        if not self._ends:
            return None
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        each = (ended - began) / (last - first)
        return each * (self._steps - last) - (time.monotonic() - ended)

    def _line(self) -> Table:
        steps, phase = f"step {self._done}/{self._steps}", self.phase
        times, left = f"{_clock(time.monotonic() - self._began)} elapsed", self._left()
        if left is not None and self._done < self._steps:
            times += f", {_clock(left)} left"
        room = self._terminal.width - len(steps) - len(phase) - len(times) - 8
        line = Table.grid(padding=(0, 2))
        cells: list[Text | ProgressBar] = [Text(steps), Text(phase, "cyan")]
        if room > -4:
            cells.append(Text(times, "dim"))
        if room > 4:
            cells.insert(1, ProgressBar(self._steps, self._done, width=min(WIDEST, room)))
        for _ in cells:
            line.add_column(no_wrap=True)
        line.add_row(*cells)
        return line


def _clock(seconds: float) -> str:
    """Whole seconds: tenths would flicker."""
    return duration(max(1, round(seconds)))
