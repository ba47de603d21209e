"""A tracker on a thread of its own: it may fail, or hang, and the run goes on."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from rlkit.blame import Blame
from rlkit.errors import RlkitError
from rlkit.wording import counted, duration

if TYPE_CHECKING:
    from rlkit.tracking import Tracker

SLOW_S = 60.0
"""A call that takes longer is said to hang."""
CLOSING_S = 300.0
"""That the run's end waits for a tracker to be done with what it was told: wandb uploads until then."""
WAITING = 1000
"""Calls that wait for one that hangs; more are dropped, or memory would fill."""


class Mirror:
    """Calls are passed on one by one, in their order. The first fault is said when the next call is made; the others
    are counted, and their number is said at the end."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name = tracker, name
        self._log = Blame(name, "its log", tracker.log)
        self._log_samples = Blame(name, "its log_samples", tracker.log_samples)
        self._close = Blame(name, "its close", tracker.close)
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._began: float | None = None
        """When the call that is at work began."""
        self._fault: RlkitError | None = None
        """The first that is yet to be said."""
        self._missed = 0
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._pass_on(partial(self._call, self._log, partial(self._tracker.log, step, dict(metrics))))

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._pass_on(partial(self._call, self._log_samples, partial(self._tracker.log_samples, step, rows)))

    def close(self) -> None:
        end = time.monotonic() + CLOSING_S
        for call in (partial(self._call, self._close, self._tracker.close), None):
            with suppress(queue.Full):
                self._calls.put(call, timeout=max(0.0, end - time.monotonic()))
        self._thread.join(max(0.0, end - time.monotonic()))
        self._say()
        if self._thread.is_alive():
            self._once("left", f"{self._name} is not done after {duration(CLOSING_S)}: it is left as it is")
        if self._missed:
            self._once("missed", f"{self._name} has missed {counted(self._missed, 'call')}: metrics.jsonl has it all")

    def _pass_on(self, call: Callable[[], None]) -> None:
        self._say()
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._missed += 1

    def _say(self) -> None:
        if self._fault is not None:
            self._once("fault", f"{self._fault}\nThe run goes on, and so does {self._name} where it can")
        if self._began is not None and time.monotonic() - self._began > SLOW_S:
            self._once("slow", f"{self._name} has been at one call for more than {duration(SLOW_S)}; the run goes on")

    def _once(self, what: str, said: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(said, stacklevel=4)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._began = time.monotonic()
            call()
            self._began = None

    def _call(self, blame: Blame, call: Callable[[], None]) -> None:
        try:
            with blame:
                call()
        except RlkitError as error:
            self._missed += 1
            self._fault = self._fault or error
