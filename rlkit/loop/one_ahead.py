"""One step ahead: while the learner works on a rollout, the next one is sampled and scored in a thread of its own.

    learner   | 1         | 2         | 3         |        | sync: the sampler gets the weights after the last step, and
    sampler  1| 2         | 3         | 4         |        nothing else happens meanwhile

Rollout k + 1 is sampled with the weights after step k - 1, so what a run does follows from its seed, whoever is the
quicker; it differs from the synchronous one in that the samples are a step older than the weights that learn from them.

A checkpoint of step k holds rollout k + 1 itself. Sampled again it would need the weights after step k - 1 beside those
after step k, which take some hundred times its room on disk, and a sampler and a reward that say the same thing twice.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Any

from rlkit.engine import distributed
from rlkit.errors import DroppedError
from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.progress import Progress
from rlkit.loop.base import SamplingLoop
from rlkit.loop.flight import Flight
from rlkit.loop.rollouts import Taken, restored, saved, take
from rlkit.loop.state import Place, RunState


class OneAheadLoop(SamplingLoop):
    def __post_init__(self) -> None:
        super().__post_init__()
        self._group = distributed.another_group(self.config.engine.timeout_minutes)
        self._flight: Flight | None = None
        """The next rollout, on its way."""
        self._held: Taken | None = None
        """The newest rollout that is there."""
        self._learner_waited = 0.0
        self._sampler_waited = 0.0
        self._sampler_free: float | None = None
        """Since when; None: it has not worked yet."""

    def train(self) -> int:
        try:
            by = super().train()
            if self._flight is not None:
                # Of the step after one that was dropped: the sampler is closed next.
                with contextlib.suppress(DroppedError):
                    self._flight.wait(self.progress)
            return by
        except Exception:
            if self._flight is not None:
                self._flight.give_up()
            raise

    def _go_on_with(self, state: RunState) -> None:
        ahead, state.ahead = state.ahead, None
        super()._go_on_with(state)
        self._held = None if ahead is None else restored(ahead, self.problems)

    def _taken(self, step: int) -> Taken:
        self._settle()
        self._sync()
        if self._held is None or self._held.step != step:
            # The first, or after a rollout that failed: it is sampled with the weights that learn from it.
            self._fly(step, self.state.place)
            self._settle()
        taken = self._held
        assert taken is not None
        if step < self.config.steps:
            self._fly(step + 1, taken.after)
        return taken

    def _fly(self, step: int, place: Place) -> None:
        version, gatherer = self.sync.version, self.gatherer

        def fly(progress: Progress) -> Taken:
            collector = replace(gatherer.collector, progress=progress)
            return take(self.config, replace(gatherer, collector=collector), self.problems, step, place, version)

        if self._sampler_free is not None:
            self._sampler_waited += time.perf_counter() - self._sampler_free
        self._flight = Flight(fly, self._group, lambda: self.interrupt.late)

    def _settle(self) -> None:
        flight, self._flight = self._flight, None
        if flight is None:
            return
        started = time.perf_counter()
        self._held = self._kept(lambda: flight.wait(self.progress))
        self._learner_waited += time.perf_counter() - started
        self._sampler_free = flight.ended

    def _ahead(self) -> dict[str, Any] | None:
        step = self.state.step + 1
        if self._held is None or self._held.step != step:
            # Where there is no time for it, a resume samples it with the weights that it has.
            with contextlib.suppress(DroppedError):
                self._settle()
        return saved(self._held) if self._held is not None and self._held.step == step else None

    def _scheduled(self, taken: Taken, rollout: Rollout) -> dict[str, float]:
        staleness = (taken.step - 1 - rollout.version).float()
        waited = self._learner_waited, self._sampler_waited
        self._learner_waited = self._sampler_waited = 0.0
        spent = dict(taken.gathered.seconds)
        # Within the others.
        environment = {"time/environment_s": spent.pop("environment")} if "environment" in spent else {}
        return environment | {
            "policy/staleness_mean": float(staleness.mean()),
            "policy/staleness_max": float(staleness.max()),
            "time/ahead_s": sum(spent.values()),
            "time/learner_waited_s": waited[0],
            "time/sampler_waited_s": waited[1],
        }
