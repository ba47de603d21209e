"""The samples of one step: drawn, scored and disturbed; and, where asked for, groups that teach nothing replaced.

Dynamic sampling (DAPO, arXiv 2503.14476). The prompts a step begins with come in the order that the seed decides, for
every algorithm alike; replacements come in an order of their own, so that the next step begins where it would have
begun without them, and the runs of a sweep stay paired in their first draws. What was replaced stays in the rollout as
invalid samples: it is on disk, and enters nothing that is learnt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlkit.data import Problem
from rlkit.generation import make_room
from rlkit.generation.collector import Collector
from rlkit.generation.sampled import Scored, draws
from rlkit.interfaces.generation import SamplingParams
from rlkit.scoring.noise import Noise, apply_noise

Group = tuple[str, int]
"""(prompt id, occurrence)."""


@dataclass(frozen=True)
class Gathered:
    scored: list[Scored]
    """The first draw, then each round of replacements."""
    rewards: list[float | None]
    """After noise."""
    replaced: list[bool]
    """Of each sample: its group teaches nothing, and was replaced or should have been."""
    first: int
    """Samples of the first draw."""
    seconds: dict[str, float]
    """Phase -> seconds on this rank."""
    metrics: dict[str, float]
    """Of the replacements; none where they are off."""


@dataclass(frozen=True)
class Gatherer:
    """How a run gathers the samples of a step."""

    collector: Collector
    noises: Sequence[Noise]
    samples_per_prompt: int
    params: SamplingParams
    keep: Callable[[Sequence[float]], bool]
    """Whether a group whose valid samples have these rewards is worth learning from."""
    leaves_out_truncated: bool
    limit: int
    """Rounds of replacement; 0: off."""

    def gather(
        self, problems: Sequence[Problem], step: int, replacements: Callable[[int], Sequence[Problem]]
    ) -> Gathered:
        """The samples of a step that begins with `problems`. `replacements(n)` gives n problems more."""
        wanted, rounds = len(problems), 0
        seen: Counter[str] = Counter()
        scored: list[Scored] = []
        rewards: list[float | None] = []
        seconds: Counter[str] = Counter()
        useless: set[Group] = set()
        while True:
            more, spent = self.collector.collect(
                draws(problems, self.samples_per_prompt, step, seen), self.params, "train"
            )
            results = [s.result for s in more]
            noisy = apply_noise(
                self.noises, self.collector.seed, [s.key for s in more], results, self.collector.scorer.range
            )
            scored += more
            rewards += noisy
            seconds.update(spent)
            if self.limit:
                useless |= self._useless(more, noisy)
            kept = len({_group(s) for s in scored}) - len(useless)
            if not self.limit or kept >= wanted or rounds == self.limit:
                break
            rounds += 1
            problems = replacements(wanted - kept)
        make_room(self.collector.sampler, until_sync=True)
        first = wanted * self.samples_per_prompt
        metrics = {}
        if self.limit:
            metrics = {
                "refill/rounds": float(rounds),
                "refill/groups_drawn": float(len({_group(s) for s in scored})),
                "refill/groups": float(kept),
                "refill/groups_missing": float(wanted - kept),
            }
        return Gathered(scored, rewards, [_group(s) in useless for s in scored], first, dict(seconds), metrics)

    def _useless(self, scored: Sequence[Scored], rewards: Sequence[float | None]) -> set[Group]:
        """The groups that are not worth learning from."""
        groups: dict[Group, list[float]] = {}
        for one, reward in zip(scored, rewards, strict=True):
            values = groups.setdefault(_group(one), [])
            if reward is not None and not (self.leaves_out_truncated and one.completion.truncated):
                values.append(reward)
        return {group for group, values in groups.items() if not self.keep(values)}


def _group(one: Scored) -> Group:
    return one.key.prompt_id, one.key.occurrence
