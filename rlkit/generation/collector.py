"""The only way from problems to scored samples, in training, in its evaluations and in `rlkit eval`.

Each rank samples and scores its share of the groups; then all of them hold all of it, in one order that does not
depend on the number of ranks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rlkit.data import Problem
from rlkit.engine import distributed, profiling
from rlkit.errors import RlkitError
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


@dataclass(frozen=True)
class Scored(Sampled):
    """One completion with what its reward function said."""

    result: RewardResult


def draws(problems: Sequence[Problem], samples: int, step: int, seen: Counter[str] | None = None) -> list[Draw]:
    """`samples` of each problem, group by group. `seen` counts how often a prompt came before in the step, and goes on
    counting."""
    seen = Counter() if seen is None else seen
    found = []
    for problem in problems:
        found += [Draw(SampleKey(problem.id, step, seen[problem.id], index), problem) for index in range(samples)]
        seen[problem.id] += 1
    return found


@dataclass(frozen=True)
class Collector:
    """What turns problems into scored completions."""

    sampler: Sampler
    scorer: Scorer
    tokenizer: Decoder
    seed: int
    progress: Progress = unseen

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
        """All of `wanted`, in that order, the same list on every rank; and the seconds that sampling took on this rank,
        and the scoring that was not done by then.

        lenient: samples without a value are for the caller to count, however many there are; without it they end the
        run past `scoring.max_no_value` (see `Scorer.finish`). unscored: completions that exist already, of this rank:
        they are scored with the others and come first. each: called with every new completion of this rank as it ends.
        """
        started = time.perf_counter()
        sampled = [*unscored]
        for one in unscored:
            self.scorer.submit(one.sample)
        with profiling.phase("sample"):
            for one in self._sample(wanted, params, purpose):
                self.scorer.submit(one.sample)
                sampled.append(one)
                if each is not None:
                    each(one)
        between = time.perf_counter()
        with profiling.phase("score"):
            results = self._results(lenient)
        scored = [Scored(**vars(s), result=r) for s, r in zip(sampled, results, strict=True)]
        seconds = {"sample": between - started, "score": time.perf_counter() - between}
        everywhere = {s.key: s for part in distributed.gather_objects(scored) for s in part}
        order = [*(s.key for s in unscored), *(draw.key for draw in wanted)]
        return [everywhere[key] for key in order], seconds

    def sample(self, wanted: Sequence[Draw], params: SamplingParams, purpose: str) -> list[Sampled]:
        """All of `wanted` without scores, in that order, the same list on every rank."""
        everywhere = distributed.gather_objects(list(self._sample(wanted, params, purpose)))
        by_key = {s.key: s for part in everywhere for s in part}
        return [by_key[draw.key] for draw in wanted]

    def _sample(self, wanted: Sequence[Draw], params: SamplingParams, purpose: str) -> Iterator[Sampled]:
        """This rank's share, as they end."""
        group: dict[tuple[str, int], int] = {}
        for draw in wanted:
            group.setdefault((draw.key.prompt_id, draw.key.occurrence), len(group))
        ranks, rank = distributed.world_size(), distributed.rank()
        mine = [draw for draw in wanted if group[draw.key.prompt_id, draw.key.occurrence] % ranks == rank]
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
        results, failure = [], None
        self.progress("scoring")
        try:
            results = self.scorer.finish(lenient=lenient)
        except RlkitError as error:
            failure = error
        for error_there in distributed.gather_objects(failure):
            if error_there is not None:
                raise error_there
        return results
