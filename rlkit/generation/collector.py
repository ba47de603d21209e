"""The only way from problems to scored samples, in training, in its evaluations and in `rlkit eval`.

Each rank samples and scores its share; then all of them hold all that learning needs, in one order that does not
depend on the number of ranks. What only files and people need, the texts and what a reward said besides its value, goes
to the main rank alone.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rlkit.engine import distributed, profiling
from rlkit.errors import DroppedError, RlkitError
from rlkit.generation.conversations import Conversations, Setting
from rlkit.generation.sampled import Draw, Sampled, Scored, deal
from rlkit.generation.stops import Stops
from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams
from rlkit.interfaces.progress import Progress, unseen
from rlkit.interfaces.rewards import RewardResult
from rlkit.scoring import Decoder, Scorer

PHASES = {"train": "sampling", "eval": "evaluating", "check": "checking the sampler"}
"""What a purpose is called while it is sampled for."""


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
    setting: Setting | None = None
    """The environment in which the model acts; None: it answers once."""

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
            self.scorer.submit(one.sample, one.acted)
            sampled.append(one.compact())
        waited: list[float] = []
        failure: RlkitError | DroppedError | None = None
        with profiling.phase("sample"):
            try:
                with self.droppable():
                    for one in self._share(mine, params, purpose, waited):
                        self.scorer.submit(one.sample, one.acted)
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
        seconds |= {"environment": sum(waited)} if self.setting is not None else {}
        by_key = {s.key: s for s in scored[len(unscored) :]}
        return [*scored[: len(unscored)], *_exchanged([by_key[draw.key] for draw in mine], wanted, shares)], seconds

    def sample(self, wanted: Sequence[Draw], params: SamplingParams, purpose: str) -> list[Sampled]:
        """A response to each of `wanted` without scores, in that order, on every rank; of a trajectory, the model's
        first turn. For few of them."""
        mine = [wanted[at] for at in deal(wanted, distributed.world_size())[distributed.rank()]]
        everywhere = distributed.gather_objects(list(self._sample(mine, params, purpose)))
        by_key = {s.key: s for part in everywhere for s in part}
        return [by_key[draw.key] for draw in wanted]

    def _share(
        self, mine: Sequence[Draw], params: SamplingParams, purpose: str, waited: list[float]
    ) -> Iterator[Sampled]:
        """This rank's share, as they end. `waited` is given the seconds that a trajectory has waited, in the mean."""
        if self.setting is None:
            yield from self._sample(mine, params, purpose)
            return
        held = Conversations(
            mine,
            self.setting,
            params,
            lambda draw, part: draw.key.seed(self.seed, f"{purpose}/{part}" if part else purpose),
            self.tokenizer,
            Stops(params.stop, self.tokenizer) if params.stop else None,
        )
        phase = PHASES.get(purpose, purpose)
        self.progress(phase, 0, len(mine))
        try:
            for done, one in enumerate(held.all(self.sampler), 1):
                self.progress(phase, done, len(mine))
                if done == 1:
                    distributed.look_at_memory()
                yield one
        finally:
            held.close()
            waited.append(held.seconds)

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
    light = distributed.gather_objects(
        [_Light.of(s, wanted[at]) for s, at in zip(mine, shares[distributed.rank()], strict=True)]
    )
    words = distributed.gather_objects_on_main([(s.text, s.problem.text, s.result.info) for s in mine])
    sizes = [sum(one.length for one in part) for part in light]
    tokens = distributed.gather_flat(_flat([s.completion.tokens for s in mine], torch.int32), sizes)
    logprobs = distributed.gather_flat(_flat([s.completion.logprobs for s in mine], torch.float32), sizes)
    found: dict[int, Scored] = {}
    for rank, share in enumerate(shares):
        ends = list(accumulate(one.length for one in light[rank]))
        for place, (at, one, end) in enumerate(zip(share, light[rank], ends, strict=True)):
            text, problem = "", wanted[at].problem
            if one.prompt is not None:
                problem = replace(problem, tokens=one.prompt.tolist())
            if words is not None:
                text, prompt, one.result.info = words[rank][place]
                problem = replace(problem, text=prompt) if one.prompt is not None else problem
            completion = Completion(
                tokens=array("i", tokens[rank][end - one.length : end].numpy().tobytes()),
                logprobs=array("f", logprobs[rank][end - one.length : end].numpy().tobytes()),
                truncated=one.truncated,
                version=one.version,
            )
            found[at] = Scored(wanted[at].key, problem, completion, text, one.turns, result=one.result)
    return [found[at] for at in range(len(wanted))]


@dataclass(frozen=True, slots=True)
class _Light:
    """What of a sample every rank is told at once; the rest travels in arrays, or to the main rank alone."""

    length: int
    truncated: bool
    version: int
    result: RewardResult
    turns: tuple[tuple[int, int], ...] | None
    prompt: array[int] | None
    """Where it is not the problem's, since an environment has said something first."""

    @classmethod
    def of(cls, one: Scored, wanted: Draw) -> Self:
        values = one.result.token_values
        result = replace(one.result, token_values=None if values is None else array("f", values), info={})
        prompt = None if one.problem is wanted.problem else array("i", one.problem.tokens)
        said = one.completion
        return cls(len(said.tokens), said.truncated, said.version, result, one.turns, prompt)


def _flat(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    """The rows, behind each other."""
    return torch.cat([torch.empty(0, dtype=dtype), *(torch.from_numpy(np.asarray(row)) for row in rows)])
