"""The only way from problems to scored samples, in training, in its evaluations and in `rlkit eval`.

Each rank samples and scores its share; then all of them hold all that learning needs, in one order that does not
depend on the number of ranks. What only files and people need, the texts and what a reward said besides its value, goes
to the main rank alone.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rlkit.data import Problem
from rlkit.engine import distributed, profiling
from rlkit.errors import DroppedError, RlkitError
from rlkit.generation.stops import Stops
from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams
from rlkit.interfaces.progress import Progress, unseen
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey
from rlkit.scoring import Decoder, Scorer

PHASES = {"train": "sampling", "eval": "evaluating", "check": "checking the sampler"}
"""What a purpose is called while it is sampled for."""


@dataclass(frozen=True)
class Draw:
    """One completion to be had: the problem, and the name that its seed follows from."""

    key: SampleKey
    problem: Problem


@dataclass(frozen=True)
class Sampled:
    """One completion, as tokens and as text."""

    key: SampleKey
    problem: Problem
    completion: Completion
    text: str
    """On other ranks than the main one empty, once the ranks have exchanged what they have."""

    @property
    def sample(self) -> Sample:
        """As a reward function sees it."""
        return Sample(
            key=self.key,
            prompt=self.problem.text,
            response=self.text,
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Collector:
    """What turns problems into scored completions."""

    sampler: Sampler
    scorer: Scorer
    tokenizer: Decoder
    seed: int
    progress: Progress = unseen
    droppable: Callable[[], AbstractContextManager[None]] = nullcontext
    """Within, DroppedError may be raised at any place: nothing else on this rank is to be lost by it."""

    def collect(
        self,
        wanted: Sequence[Draw],
        params: SamplingParams,
        purpose: str,
        *,
        lenient: bool = False,
        unscored: Sequence[Sampled] = (),
        each: Callable[[Sampled], None] | None = None,
    ) -> tuple[list[Scored], dict[str, float]]:
        """All of `wanted`, in that order, on every rank; and the seconds that sampling took on this rank, and the
        scoring that was not done by then. What the sampler raises on one rank is raised on all.

        lenient: samples without a value are for the caller to count, however many there are; without it they end the
        run past `scoring.max_no_value` (see `Scorer.finish`). unscored: completions that exist already, of this rank:
        they are scored with the others, stay on this rank, and come first. each: called with every new completion of
        this rank as it ends. Raises DroppedError on every rank where one has dropped its share.
        """
        started = time.perf_counter()
        shares = deal(wanted, distributed.world_size())
        mine = [wanted[at] for at in shares[distributed.rank()]]
        sampled = []
        for one in unscored:
            self.scorer.submit(one.sample)
            sampled.append(one.compact())
        failure: RlkitError | DroppedError | None = None
        with profiling.phase("sample"):
            try:
                with self.droppable():
                    for one in self._sample(mine, params, purpose):
                        self.scorer.submit(one.sample)
                        if each is not None:
                            each(one)
                        sampled.append(one.compact())
            except (RlkitError, DroppedError) as error:
                failure = error
        between = time.perf_counter()
        distributed.raise_everywhere(failure)
        with profiling.phase("score"):
            results = self._results(lenient)
        scored = [Scored(**vars(s), result=r) for s, r in zip(sampled, results, strict=True)]
        seconds = {"sample": between - started, "score": time.perf_counter() - between}
        by_key = {s.key: s for s in scored[len(unscored) :]}
        return [*scored[: len(unscored)], *_exchanged([by_key[draw.key] for draw in mine], wanted, shares)], seconds

    def sample(self, wanted: Sequence[Draw], params: SamplingParams, purpose: str) -> list[Sampled]:
        """All of `wanted` without scores, in that order, on every rank. For few of them."""
        mine = [wanted[at] for at in deal(wanted, distributed.world_size())[distributed.rank()]]
        everywhere = distributed.gather_objects(list(self._sample(mine, params, purpose)))
        by_key = {s.key: s for part in everywhere for s in part}
        return [by_key[draw.key] for draw in wanted]

    def _sample(self, mine: Sequence[Draw], params: SamplingParams, purpose: str) -> Iterator[Sampled]:
        """This rank's share, as they end."""
        requests = [
            Request(prompt_tokens=draw.problem.tokens, seed=draw.key.seed(self.seed, purpose), params=params)
            for draw in mine
        ]
        stops = Stops(params.stop, self.tokenizer) if params.stop else None
        phase = PHASES.get(purpose, purpose)
        self.progress(phase, 0, len(mine))
        for done, (at, generated) in enumerate(self.sampler.generate(requests), 1):
            self.progress(phase, done, len(mine))
            if done == 1:  # by now it has all the memory that it takes
                distributed.look_at_memory()
            # A sampler need not know of stop texts.
            completion = stops.cut(generated) if stops else generated
            text = self.tokenizer.decode(completion.tokens, skip_special_tokens=True)
            yield Sampled(mine[at].key, mine[at].problem, completion, text)

    def _results(self, lenient: bool) -> list[RewardResult]:
        """Of this rank's samples, in the order of submission. What goes wrong on one rank is raised on all of them."""
        self.progress("scoring")
        return self.scorer.finish(lenient=lenient, gather=distributed.gather_objects)


def _exchanged(mine: Sequence[Scored], wanted: Sequence[Draw], shares: Sequence[Sequence[int]]) -> list[Scored]:
    """All of `wanted`, in that order, on every rank. `mine`: this rank's, in the order of its share."""
    if len(shares) == 1:
        return list(mine)
    light = distributed.gather_objects([_Light.of(s) for s in mine])
    words = distributed.gather_objects_on_main([(s.text, s.result.info) for s in mine])
    sizes = [sum(one.length for one in part) for part in light]
    tokens = distributed.gather_flat(_flat([s.completion.tokens for s in mine], torch.int32), sizes)
    logprobs = distributed.gather_flat(_flat([s.completion.logprobs for s in mine], torch.float32), sizes)
    found: dict[int, Scored] = {}
    for rank, share in enumerate(shares):
        ends = list(accumulate(one.length for one in light[rank]))
        for place, (at, one, end) in enumerate(zip(share, light[rank], ends, strict=True)):
            text = ""
            if words is not None:
                text, one.result.info = words[rank][place]
            completion = Completion(
                tokens=array("i", tokens[rank][end - one.length : end].numpy().tobytes()),
                logprobs=array("f", logprobs[rank][end - one.length : end].numpy().tobytes()),
                truncated=one.truncated,
                version=one.version,
            )
            found[at] = Scored(wanted[at].key, wanted[at].problem, completion, text, one.result)
    return [found[at] for at in range(len(wanted))]


@dataclass(frozen=True, slots=True)
class _Light:
    """What of a sample every rank is told at once; the rest travels in arrays, or to the main rank alone."""

    length: int
    truncated: bool
    version: int
    result: RewardResult

    @classmethod
    def of(cls, one: Scored) -> Self:
        values = one.result.token_values
        result = replace(one.result, token_values=None if values is None else array("f", values), info={})
        return cls(len(one.completion.tokens), one.completion.truncated, one.completion.version, result)


def _flat(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    """The rows, behind each other."""
    return torch.cat([torch.empty(0, dtype=dtype), *(torch.from_numpy(np.asarray(row)) for row in rows)])
