"""One worker process as the pool sees it."""

from __future__ import annotations

import time
from pathlib import Path

from rlkit.processes.fresh import FreshProcess


class WorkerProcess(FreshProcess):
    def __init__(self, setup: str, deadline: float, log: Path | None = None) -> None:
        super().__init__("rlkit.scoring.worker", setup, log)
        self.deadline = deadline
        """On time.monotonic()'s clock; it counts while the worker starts or has work."""
        self.ready = False
        self.fresh = True
        """It has scored nothing yet."""
        self.last_used = 0.0

    def rest(self) -> None:
        """It has nothing to do."""
        self.last_used = time.monotonic()
        self.deadline = float("inf")
