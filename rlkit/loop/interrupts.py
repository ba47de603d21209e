"""An interrupt lets the step in hand end; a second one does not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rlkit.engine import distributed


@dataclass
class Interrupt:
    asked: bool = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """The first interrupt or termination asks for an end; the second is what it is elsewhere: an end at once."""
    interrupt = Interrupt()
    before: dict[signal.Signals, Any] = {}

    def ask(signum: int, frame: Any) -> None:
        interrupt.asked = True
        for number, handler in before.items():
            # What a shell starts in its background may have been told to ignore interrupts.
            signal.signal(number, signal.SIG_DFL if handler is signal.SIG_IGN else handler)
        if distributed.main_rank():
            print("\nending after this step; once more to end at once", flush=True)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: whoever called from there handles interrupts
        before.clear()
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
