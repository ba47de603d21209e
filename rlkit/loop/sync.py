"""The sampler's weights: handed over, and held against the trainer's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from rlkit.config import RunConfig
from rlkit.data import Problem
from rlkit.engine.passes import LOGPROBS
from rlkit.errors import StaleWeightsError
from rlkit.generation import make_room
from rlkit.generation.assemble import unscored
from rlkit.generation.collector import Collector
from rlkit.generation.sampled import draws
from rlkit.interfaces.generation import SamplingParams
from rlkit.interfaces.progress import Progress, unseen
from rlkit.loop.learner import Learner, gap

GAP_ALLOWED = {"float32": 1e-3, "bfloat16": 0.1}
"""Mean |sampler's - trainer's log-prob| past which the weights in the sampler are not the trainer's."""


@dataclass
class Sync:
    """Gives the sampler the learner's weights. Collective, and never while the sampler is at work."""

    config: RunConfig
    learner: Learner
    collector: Collector
    params: SamplingParams
    """Of training."""
    problems: Sequence[Problem]
    progress: Progress = unseen
    version: int | None = field(default=None, init=False)
    """The step whose weights the sampler has; None: not known."""

    def prove(self) -> None:
        """Before anything is learnt: send weights that differ in every tensor, then the true ones. After one update
        at a small learning rate a sampler that took nothing over would agree as well as one that took all."""
        policy, sampler, step = self.learner.policy, self.collector.sampler, self.learner.state.step
        self.progress("checking the sampler")
        self._make_room()
        with policy.perturbed():
            sampler.sync(self._weights(), step)
            self._check()
        sampler.sync(self._weights(), step)
        self._check()
        self.version = step

    def newest(self) -> None:
        """Give the sampler the newest weights, where it has not got them."""
        step = self.learner.state.step
        with self.learner.time("sync"):
            if self.version != step:
                self.progress("syncing weights")
                self._make_room()
                self.collector.sampler.sync(self._weights(), step)
                self.version = step
                if step == 1 or due(step, self.config.sampling.check_every):
                    self._check()

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        apart = getattr(self.collector.sampler, "takes_adapters", False)
        return self.learner.policy.weights(apart=apart)

    def _make_room(self) -> None:
        """The learner's device is the sampler's next, where they share one."""
        if not getattr(self.collector.sampler, "beside_training", False):
            self.learner.make_room()

    def _check(self) -> None:
        """Hold the sampler's log-probs against the trainer's: stale or partial weights are silent otherwise."""
        step, params = self.learner.state.step, self.params
        # The trainer's log-probs are of the whole distribution.
        params = replace(params, max_tokens=min(16, params.max_tokens), top_p=1.0, top_k=0)
        # Where an environment asks the questions, any token is one to both.
        prompts = [each if each.tokens else replace(each, tokens=[0]) for each in self.problems[:8]]
        rollout = unscored(self.collector.sample(draws(prompts, 1, step), params, "check"))
        make_room(self.collector.sampler, until_sync=False)
        found = gap(self.learner.policy.token_stats(rollout, LOGPROBS).get("logprobs"), rollout)["sampler/gap_mean"]
        allowed = GAP_ALLOWED[self.config.model.dtype]
        if not found <= allowed:
            raise StaleWeightsError(
                f"step {step}: after the sync the sampler's log-probs are {found:.3g} nats from the trainer's on "
                f"average (at most {allowed} is allowed): it does not hold the trainer's weights, or does not compute "
                "with them what the trainer does. Training on would be off-policy unseen. Try "
                "`-s sampler=transformers`, and report it with the output of `rlkit doctor`"
            )


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
