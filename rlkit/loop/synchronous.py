"""The synchronous loop: each rollout is sampled with the weights that learn from it.

sync (the sampler gets the newest weights) -> sample, score -> measure -> learn -> record -> save -> show, evaluate
"""

from __future__ import annotations

from functools import partial

from rlkit.interfaces.learning import Rollout
from rlkit.loop.base import SamplingLoop
from rlkit.loop.rollouts import Taken, take


class SynchronousLoop(SamplingLoop):
    def _taken(self, step: int) -> Taken:
        self._sync()
        return self._kept(
            partial(take, self.config, self.gatherer, self.problems, step, self.state.place, self.sync.version)
        )

    def _settle(self) -> None:
        """It is, between steps."""

    def _ahead(self) -> None:
        return None

    def _scheduled(self, taken: Taken, rollout: Rollout) -> dict[str, float]:
        return {f"time/{phase}_s": spent for phase, spent in taken.gathered.seconds.items()}
