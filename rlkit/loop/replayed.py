"""A replay: another run's stored rollouts in place of samples of one's own.

The same settings make of them the same updates, bit for bit. Under others, of another algorithm say, the samples are of
weights that are not the learner's: it learns off-policy, and a `correction` weighs the tokens for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rlkit.data import Problem
from rlkit.errors import RlkitError
from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.loop.base import Loop
from rlkit.loop.rollouts import Taken, stored
from rlkit.records.folder import RunFolder

Disturb = Callable[[Sequence[SampleKey], Sequence[RewardResult]], list[float | None]]


@dataclass(kw_only=True)
class ReplayedLoop(Loop):
    source: RunFolder
    """The run that has sampled."""
    problems: Sequence[Problem]
    disturb: Disturb | None
    """Rewards out of the clean ones, for noise that is not the source's; None: as they are stored."""
    vocabulary: int | None
    """Tokens that the model knows; None: it is not known."""

    def _taken(self, step: int) -> Taken:
        return self._kept(partial(self._read, step))

    def _read(self, step: int) -> Taken:
        shape, file = self.config.batch, self.source.rollout_file(step)
        first = shape.prompts_per_step * shape.samples_per_prompt
        taken = stored(file, step, self.state.place, first, self.problems)
        scored = taken.gathered.scored
        highest = max((max(one.completion.tokens) for one in scored), default=0)
        if self.vocabulary is not None and highest >= self.vocabulary:
            raise RlkitError(
                f"{file} holds token {highest}, and {self.config.model.path} knows {self.vocabulary} tokens: samples "
                "can only be learnt from by a model with the tokenizer of the one that gave them (model.path)"
            )
        if self.disturb is None:
            return taken
        rewards = self.disturb([one.key for one in scored], [one.result for one in scored])
        return replace(taken, gathered=replace(taken.gathered, rewards=rewards))

    def _settle(self) -> None:
        """It is, between steps."""

    def _ahead(self) -> None:
        return None

    def _scheduled(self, taken: Taken, rollout: Rollout) -> dict[str, float]:
        return {}

    def _without_gap(self, metrics: dict[str, float], rollout: Rollout, step: int) -> dict[str, float]:
        """Under a name of its own: it is between the weights that sampled and those that learn."""
        names = {"sampler/gap_mean": "replay/gap_mean", "sampler/gap_max": "replay/gap_max"}
        return {names.get(name, name): value for name, value in metrics.items()}
