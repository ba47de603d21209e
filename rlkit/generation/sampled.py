"""What is wanted of a sampler, and what came of it."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from rlkit.data import Problem
from rlkit.interfaces.generation import Completion
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey
from rlkit.scoring import Acted


@dataclass(frozen=True)
class Draw:
    """One completion to be had: the problem, and the name that its seed follows from."""

    key: SampleKey
    problem: Problem


@dataclass(frozen=True)
class Sampled:
    """One completion, as tokens and as text; or one trajectory, whose `completion` holds what the environment said
    too, with log-probs of 0."""

    key: SampleKey
    problem: Problem
    completion: Completion
    text: str
    """On other ranks than the main one empty, once the ranks have exchanged what they have."""
    turns: tuple[tuple[int, int], ...] | None = None
    """The model's turns, each the tokens [start, end); None: all of it is one."""
    last: str | None = None
    """What the model has said in its last turn; None: all of it."""
    acted: Acted | None = None
    """What an environment said of it, where there is one."""

    @property
    def sample(self) -> Sample:
        """As a reward function sees it."""
        return Sample(
            key=self.key,
            prompt=self.problem.text,
            response=self.text if self.last is None else self.last,
            tokens=self.completion.tokens,
            answer=self.problem.answer,
            truncated=self.completion.truncated,
            columns=self.problem.columns,
            question=self.problem.question,
            gold=self.problem.gold,
        )

    def compact(self) -> Self:
        """With arrays in the place of lists: no object for each number, and they travel as they are."""
        tokens, logprobs = array("i", self.completion.tokens), array("f", self.completion.logprobs)
        return replace(self, completion=replace(self.completion, tokens=tokens, logprobs=logprobs))


@dataclass(frozen=True, kw_only=True)
class Scored(Sampled):
    """One completion with what its reward function said."""

    result: RewardResult
    """On other ranks than the main one without `info`, as `text`."""


def draws(problems: Sequence[Problem], samples: int, step: int, seen: Counter[str] | None = None) -> list[Draw]:
    """`samples` of each problem, group by group. `seen` counts how often a prompt came before in the step, and goes on
    counting."""
    seen = Counter() if seen is None else seen
    found = []
    for problem in problems:
        found += [Draw(SampleKey(problem.id, step, seen[problem.id], index), problem) for index in range(samples)]
        seen[problem.id] += 1
    return found


def deal(wanted: Sequence[Draw], ranks: int) -> list[list[int]]:
    """Of each rank, which of `wanted` it samples: whole groups in turn, whose prompt is then read once; or parts of
    them, where there are more ranks than groups."""
    groups: dict[tuple[str, int], list[int]] = {}
    for at, draw in enumerate(wanted):
        groups.setdefault((draw.key.prompt_id, draw.key.occurrence), []).append(at)
    parts = max(1, ranks // max(1, len(groups)))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for number, group in enumerate(groups.values()):
        for part in range(parts):
            shares[(number * parts + part) % ranks] += group[part::parts]
    return shares
