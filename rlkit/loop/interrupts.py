"""A signal that asks a run to end lets the step in hand end, as far as there is time; a second interrupt does not."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rlkit.engine import distributed
from rlkit.errors import TOLD_TO_END, DroppedError

REMINDED_S = 0.5
"""What is raised while an object is deleted is lost: so late, it is raised again."""


@dataclass
class Interrupt:
    """Whether, and until when, this process was asked to end. Each rank hears its own signals."""

    grace_s: float | None = None
    """From SIGTERM or SIGHUP to the end of the process; None: as long as it takes."""
    save_s: float = 0.0
    """How long a checkpoint took to write."""
    by: int = field(default=0, init=False)
    """The number of the signal that asked; 0: none has."""
    _drop_at: float = field(default=math.inf, init=False)
    """On time.monotonic()'s clock."""
    _droppable: bool = field(default=False, init=False)

    @property
    def late(self) -> bool:
        """Whether what is left of the time is needed to save: the step in hand is to be dropped, where it can be."""
        return time.monotonic() >= self._drop_at

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP ask for an end. The second SIGINT is what it is elsewhere: an end at once. Others
        come more than once, from a cluster and what passes them on, and mean the same each time. Where nohup has SIGHUP
        ignored, that stays so."""
        before: dict[int, Any] = {}
        over = threading.Event()
        reminder = threading.Thread(target=self._remind, args=(over,), name="rlkit-deadline", daemon=True)

        def heard(number: int, _: Any) -> None:
            if number == signal.SIGINT:
                # What a shell starts in its background may have been told to ignore interrupts.
                usual = signal.SIG_DFL if before[number] is signal.SIG_IGN else before[number]
                signal.signal(number, usual)
            if not self.by:
                self.by = number
                if self.grace_s is not None and number != signal.SIGINT:
                    self._drop_at = time.monotonic() + self.grace_s - max(self.grace_s / 2, 2 * self.save_s)
                    reminder.start()
                if distributed.main_rank():
                    _say(self._said())
            if self._droppable and self.late:
                raise DroppedError

        # Elsewhere than in the main thread, whoever called from there handles signals.
        if threading.current_thread() is threading.main_thread():
            for number in TOLD_TO_END:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, heard)
        try:
            yield
        finally:
            over.set()
            if reminder.ident is not None:
                reminder.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def droppable(self) -> Iterator[None]:
        """What this rank does within is dropped where it gets late: DroppedError. No other rank may be waiting for
        it; they must be told after it."""
        try:
            # The handler raises in the main thread, wherever that is.
            self._droppable = threading.current_thread() is threading.main_thread()
            if self.late:
                raise DroppedError
            yield
        finally:
            self._droppable = False

    def settle(self) -> None:
        """What was in hand is dropped: from now on nothing is."""
        # The signal may have come while `droppable` was being left.
        self._droppable = False

    def _remind(self, over: threading.Event) -> None:
        while not over.wait(max(REMINDED_S, self._drop_at - time.monotonic())):
            signal.pthread_kill(threading.main_thread().ident or 0, self.by)

    def _said(self) -> str:
        if self.by == signal.SIGINT:
            return "\nending after this step; once more to end at once"
        within = f", or without it where it takes longer: {self.grace_s:g} s are left" if self.grace_s else ""
        return f"\ntold to end ({signal.Signals(self.by).name}): ending after this step{within}"


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except RuntimeError:  # the signal came in the middle of a print, which takes no other
        with contextlib.suppress(OSError):
            os.write(1, f"{text}\n".encode())
