"""From problems to scored completions, and from those to a Rollout.

Each rank samples and scores its share of the prompts; then all of them hold all of it, in one order that does not
depend on the number of ranks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit import scoring
from rlkit.data import Problem
from rlkit.engine import distributed
from rlkit.interfaces import (
    Completion,
    Request,
    RewardFn,
    RewardResult,
    Rollout,
    Sample,
    SampleKey,
    Sampler,
    SamplingParams,
)


@dataclass(frozen=True, slots=True)
class Scored:
    """One completion with what its reward function said."""

    key: SampleKey
    problem: Problem
    completion: Completion
    text: str
    result: RewardResult


@dataclass(frozen=True)
class Collector:
    """What turns problems into scored completions."""

    sampler: Sampler
    reward: RewardFn
    reward_name: str
    tokenizer: scoring.Decoder
    seed: int

    def collect(
        self, problems: Sequence[Problem], samples: int, step: int, params: SamplingParams, purpose: str
    ) -> tuple[list[Scored], dict[str, float]]:
        """`samples` completions for each problem, in the problems' order, the same list on every rank; and the
        seconds that sampling and scoring took on this rank."""
        started = time.perf_counter()
        keys = _keys(problems, samples, step)
        mine = [i for i in range(len(keys)) if (i // samples) % distributed.world_size() == distributed.rank()]
        requests = [
            Request(prompt_tokens=problems[i // samples].tokens, seed=keys[i].seed(self.seed, purpose), params=params)
            for i in mine
        ]
        completions: dict[int, Completion] = {mine[at]: done for at, done in self.sampler.generate(requests)}
        sampled = time.perf_counter()
        texts = {i: self.tokenizer.decode(completions[i].tokens, skip_special_tokens=True) for i in mine}
        results = scoring.score(
            self.reward,
            self.reward_name,
            [self._sample(keys[i], problems[i // samples], completions[i], texts[i]) for i in mine],
        )
        here = [
            Scored(keys[i], problems[i // samples], completions[i], texts[i], result)
            for i, result in zip(mine, results, strict=True)
        ]
        seconds = {"sample": sampled - started, "score": time.perf_counter() - sampled}
        everywhere = {s.key: s for part in distributed.gather_objects(here) for s in part}
        return [everywhere[key] for key in keys], seconds

    def _sample(self, key: SampleKey, problem: Problem, completion: Completion, text: str) -> Sample:
        return Sample(
            key=key,
            prompt=problem.text,
            response=text,
            tokens=completion.tokens,
            answer=problem.answer,
            truncated=completion.truncated,
            columns=problem.columns,
        )


def _keys(problems: Sequence[Problem], samples: int, step: int) -> list[SampleKey]:
    seen: Counter[str] = Counter()
    keys = []
    for problem in problems:
        keys += [SampleKey(problem.id, step, seen[problem.id], index) for index in range(samples)]
        seen[problem.id] += 1
    return keys


def assemble(scored: Sequence[Scored], samples: int, compares_groups: bool) -> Rollout:
    """The Rollout of whole groups of `samples`, groups one after the other."""
    group = torch.arange(len(scored)) // samples
    has_value = torch.tensor([s.result.value is not None for s in scored])
    members = torch.zeros(len(scored) // samples, dtype=torch.long).index_add_(0, group, has_value.long())
    valid = has_value & (members[group] > 1) if compares_groups else has_value
    length = torch.tensor([len(s.completion.tokens) for s in scored])
    exists = torch.arange(int(length.max())) < length[:, None]
    reward = torch.tensor([s.result.value or 0.0 for s in scored])
    return Rollout(
        keys=[s.key for s in scored],
        prompt_tokens=[torch.tensor(s.problem.tokens) for s in scored],
        tokens=_padded([torch.tensor(s.completion.tokens) for s in scored]),
        length=length,
        mask=exists & valid[:, None],
        valid=valid,
        group=group,
        reward=reward,
        clean_reward=reward.clone(),
        sampler_logprobs=_padded([torch.tensor(s.completion.logprobs) for s in scored]),
        version=torch.tensor([s.completion.version for s in scored]),
        truncated=torch.tensor([s.completion.truncated for s in scored]),
    )


def _padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def describe(scored: Sequence[Scored], rollout: Rollout) -> dict[str, float]:
    """What is logged of a rollout: rewards, verdicts, lengths, groups, statuses."""
    valued = [s.result for s in scored if s.result.value is not None]
    clean = rollout.clean_reward[[s.result.value is not None for s in scored]]
    groups = rollout.reward.view(int(rollout.group.max()) + 1, -1)
    metrics = {
        "reward/mean": float(rollout.reward[rollout.valid].mean()) if rollout.valid.any() else float("nan"),
        "reward/clean": float(clean.mean()) if len(clean) else float("nan"),
        "reward/std": float(clean.std(unbiased=False)) if len(clean) else float("nan"),
        "reward/pass_rate": sum(bool(r.correct) for r in valued) / max(len(valued), 1),
        "response/length": float(rollout.length.float().mean()),
        "response/length_max": float(rollout.length.max()),
        "response/truncated": float(rollout.truncated.float().mean()),
        "groups/equal_rewards": float((groups == groups[:, :1]).all(1).float().mean()),
        "samples/no_value": float(len(scored) - len(valued)),
        "samples/invalid": float((~rollout.valid).sum()),
    }
    for status, count in Counter(s.result.status for s in scored).items():
        metrics[f"samples/{status}"] = float(count)
    for name in sorted({name for r in valued for name in r.parts}):
        metrics[f"reward/{name}"] = sum(r.parts.get(name, 0.0) for r in valued) / len(valued)
    return metrics
