"""A rollout on its way, in a thread of its own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from rlkit.engine import distributed
from rlkit.errors import DroppedError
from rlkit.generation.collector import PHASES
from rlkit.interfaces.progress import Progress
from rlkit.loop.rollouts import Taken

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _GivenUpError(Exception):
    """Nobody waits for the rollout any more."""


class Flight:
    """Begins when it is made. What is raised within is raised by `wait`."""

    def __init__(
        self, take: Callable[[Progress], Taken], group: ProcessGroup | None, late: Callable[[], bool] = lambda: False
    ) -> None:
        """`take` samples and scores; what it says of its progress is shown where somebody waits for it. `group`: what
        it speaks with the other ranks through. `late`: whether it is to be dropped (DroppedError)."""
        self.ended = math.nan
        """When it was there, on time.perf_counter()'s clock."""
        self._take = take
        self._group = group
        self._late = late
        self._device = distributed.device()
        self._at: tuple[str, int, int] = ("sampling", 0, 0)
        self._given_up = False
        self._taken: Taken | None = None
        self._error: BaseException | None = None
        # A daemon: an interrupt that ends the run at once does not wait for it.
        self._thread = threading.Thread(target=self._run, name="rlkit-ahead", daemon=True)
        self._thread.start()

    def wait(self, progress: Progress) -> Taken:
        """Its samples, once they are there."""
        while self._thread.is_alive():
            progress(*self._at)
            self._thread.join(0.1)
        if self._error is not None:
            raise self._error
        assert self._taken is not None
        return self._taken

    def give_up(self) -> None:
        """Have it end, with its next completion, and wait for that: it must not meet a sampler that is closed."""
        self._given_up = True
        self._thread.join()

    def _run(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # a thread begins on the first
            with distributed.speaking_through(self._group):
                self._taken = self._take(self._progress)
        except BaseException as error:  # whatever it is, it is for the one who waits
            self._error = error
        self.ended = time.perf_counter()

    def _progress(self, phase: str, done: int = 0, total: int = 0) -> None:
        if self._given_up:
            raise _GivenUpError
        # Where it is sampled alone, as the collector is prepared for: else other ranks would wait for this one.
        if phase == PHASES["train"] and self._late():
            raise DroppedError
        self._at = (phase, done, total)
