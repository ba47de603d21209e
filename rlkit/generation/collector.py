"""From problems to scored completions, and from those to a Rollout.

Each rank samples and scores its share of the prompts; then all of them hold all of it, in one order that does not
depend on the number of ranks.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.data import Problem
from rlkit.engine import distributed
from rlkit.errors import RlkitError
from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams
from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey
from rlkit.scoring import Decoder, Scorer


@dataclass(frozen=True)
class Sampled:
    """One completion, as tokens and as text."""

    key: SampleKey
    problem: Problem
    completion: Completion
    text: str


@dataclass(frozen=True)
class Scored(Sampled):
    """One completion with what its reward function said."""

    result: RewardResult


@dataclass(frozen=True)
class Collector:
    """What turns problems into scored completions."""

    sampler: Sampler
    scorer: Scorer
    tokenizer: Decoder
    seed: int

    def collect(
        self, problems: Sequence[Problem], samples: int, step: int, params: SamplingParams, purpose: str
    ) -> tuple[list[Scored], dict[str, float]]:
        """`samples` completions for each problem, in the problems' order, the same list on every rank; and the
        seconds that sampling took on this rank, and the scoring that was not done by then."""
        started = time.perf_counter()
        sampled = []
        for one in self._sample(problems, samples, step, params, purpose):
            self.scorer.submit(_as_sample(one))
            sampled.append(one)
        between = time.perf_counter()
        scored = [Scored(**vars(s), result=result) for s, result in zip(sampled, self._results(), strict=True)]
        seconds = {"sample": between - started, "score": time.perf_counter() - between}
        everywhere = {s.key: s for part in distributed.gather_objects(scored) for s in part}
        return [everywhere[key] for key in _keys(problems, samples, step)], seconds

    def _sample(
        self, problems: Sequence[Problem], samples: int, step: int, params: SamplingParams, purpose: str
    ) -> Iterator[Sampled]:
        """This rank's share, as they end."""
        keys = _keys(problems, samples, step)
        mine = [i for i in range(len(keys)) if (i // samples) % distributed.world_size() == distributed.rank()]
        requests = [
            Request(prompt_tokens=problems[i // samples].tokens, seed=keys[i].seed(self.seed, purpose), params=params)
            for i in mine
        ]
        for at, completion in self.sampler.generate(requests):
            text = self.tokenizer.decode(completion.tokens, skip_special_tokens=True)
            yield Sampled(keys[mine[at]], problems[mine[at] // samples], completion, text)

    def _results(self) -> list[RewardResult]:
        """Of this rank's samples, in the order of submission. What goes wrong on one rank is raised on all of them."""
        results, failure = [], None
        try:
            results = self.scorer.finish()
        except RlkitError as error:
            failure = error
        for error_there in distributed.gather_objects(failure):
            if error_there is not None:
                raise error_there
        return results

    def sample_unscored(self, problems: Sequence[Problem], step: int, params: SamplingParams) -> Rollout:
        """One completion a problem, to look at log-probs alone: every sample counts, and has no reward."""
        everywhere = distributed.gather_objects(list(self._sample(problems, 1, step, params, "check")))
        by_key = {s.key: s for part in everywhere for s in part}
        nothing = RewardResult(value=0.0)
        return assemble([Scored(**vars(by_key[key]), result=nothing) for key in _keys(problems, 1, step)], 1)


def _as_sample(sampled: Sampled) -> Sample:
    return Sample(
        key=sampled.key,
        prompt=sampled.problem.text,
        response=sampled.text,
        tokens=sampled.completion.tokens,
        answer=sampled.problem.answer,
        truncated=sampled.completion.truncated,
        columns=sampled.problem.columns,
    )


def _keys(problems: Sequence[Problem], samples: int, step: int) -> list[SampleKey]:
    seen: Counter[str] = Counter()
    keys = []
    for problem in problems:
        keys += [SampleKey(problem.id, step, seen[problem.id], index) for index in range(samples)]
        seen[problem.id] += 1
    return keys


def assemble(
    scored: Sequence[Scored],
    samples: int,
    compares_groups: bool = False,
    leaves_out_truncated: bool = False,
    rewards: Sequence[float | None] | None = None,
) -> Rollout:
    """The Rollout of whole groups of `samples`, groups one after the other.

    The flags are those of `Algorithm`; `rewards` are the values after noise, None: the clean ones.
    """
    clean = [s.result.value for s in scored]
    rewards = clean if rewards is None else rewards
    group = torch.arange(len(scored)) // samples
    truncated = torch.tensor([s.completion.truncated for s in scored])
    valid = torch.tensor([value is not None for value in rewards])
    if leaves_out_truncated:
        valid = valid & ~truncated
    if compares_groups:
        members = torch.zeros(len(scored) // samples, dtype=torch.long).index_add_(0, group, valid.long())
        valid = valid & (members[group] > 1)
    length = torch.tensor([len(s.completion.tokens) for s in scored])
    exists = torch.arange(int(length.max())) < length[:, None]
    return Rollout(
        keys=[s.key for s in scored],
        prompt_tokens=[torch.tensor(s.problem.tokens) for s in scored],
        tokens=_padded([torch.tensor(s.completion.tokens) for s in scored]),
        length=length,
        mask=exists & valid[:, None],
        valid=valid,
        group=group,
        reward=torch.tensor([value or 0.0 for value in rewards]),
        clean_reward=torch.tensor([value or 0.0 for value in clean]),
        sampler_logprobs=_padded([torch.tensor(s.completion.logprobs) for s in scored]),
        version=torch.tensor([s.completion.version for s in scored]),
        truncated=truncated,
    )


def _padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def describe(scored: Sequence[Scored], rollout: Rollout) -> dict[str, float]:
    """What is logged of a rollout: rewards, verdicts, lengths, groups, statuses."""
    valued = [s.result for s in scored if s.result.value is not None]
    clean = rollout.clean_reward[[s.result.value is not None for s in scored]]
    groups = int(rollout.group.max()) + 1
    valid = rollout.valid.view(groups, -1)
    lowest = rollout.reward.view(groups, -1).masked_fill(~valid, math.inf).amin(1)
    highest = rollout.reward.view(groups, -1).masked_fill(~valid, -math.inf).amax(1)
    metrics = {
        "reward/mean": float(rollout.reward[rollout.valid].mean()) if rollout.valid.any() else float("nan"),
        "reward/clean": float(clean.mean()) if len(clean) else float("nan"),
        "reward/std": float(clean.std(unbiased=False)) if len(clean) else float("nan"),
        "reward/pass_rate": sum(bool(r.correct) for r in valued) / max(len(valued), 1),
        "response/length": float(rollout.length.float().mean()),
        "response/length_max": float(rollout.length.max()),
        "response/truncated": float(rollout.truncated.float().mean()),
        # A group without a valid sample is one that teaches nothing, too.
        "groups/equal_rewards": float((lowest >= highest).float().mean()),
        "samples/no_value": float(len(scored) - len(valued)),
        "samples/invalid": float((~rollout.valid).sum()),
    }
    for status, count in Counter(s.result.status for s in scored).items():
        metrics[f"samples/{status}"] = float(count)
    for name in sorted({name for r in valued for name in r.parts}):
        metrics[f"reward/part/{name}"] = sum(r.parts.get(name, 0.0) for r in valued) / len(valued)
    return metrics


def disturbed(results: Sequence[RewardResult], rewards: Sequence[float | None]) -> float:
    """The share of rewards that noise has changed or taken away, among those that had a value."""
    pairs = [(r.value, noisy) for r, noisy in zip(results, rewards, strict=True) if r.value is not None]
    return sum(clean != noisy for clean, noisy in pairs) / max(len(pairs), 1)
