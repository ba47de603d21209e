"""Whatever a sampler, a verifier and an environment may bring, an update is made of it or it is left out and counted:
responses without a token or of one, trajectories of any turns, samples without a value, equal rewards, one group,
groups of unlike sizes."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit import config as configs
from rlkit import registry
from rlkit.data import Problem
from rlkit.engine import distributed
from rlkit.engine.loading import load_engines
from rlkit.generation.assemble import assemble
from rlkit.generation.sampled import Scored
from rlkit.interfaces.generation import Completion
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.loop.describe import describe
from rlkit.loop.learner import Learner
from rlkit.loop.state import RunState

LONGEST = 6


@dataclass(frozen=True)
class One:
    """A sample: how many tokens, its value, and whether its value comes on the way."""

    length: int
    value: float | None
    dense: bool
    truncated: bool
    heard: list[bool] | None
    """Which tokens an environment said, if they lie between others; None: there was none."""

    @property
    def turns(self) -> tuple[tuple[int, int], ...] | None:
        if self.heard is None:
            return None
        said = [0 < at < self.length - 1 and self.heard[at] for at in range(self.length)]
        ends = list(itertools.accumulate(len(list(run)) for _, run in itertools.groupby(said)))
        return tuple(itertools.pairwise([0, *ends]))[::2]


ones = st.builds(
    One,
    length=st.integers(0, LONGEST),
    value=st.sampled_from([None, 0.0, 1.0, 1.0, -2.5]),
    dense=st.booleans(),
    truncated=st.booleans(),
    heard=st.none() | st.lists(st.booleans(), min_size=LONGEST, max_size=LONGEST),
)
groups = st.lists(st.lists(ones, min_size=1, max_size=5), min_size=1, max_size=4)


@cache
def learner_of(algo: str) -> Learner:
    changes = ["batch.minibatches=2", "batch.epochs=2", "optimizer.lr=1e-5", "batch.tokens_per_microbatch=40"]
    config, algorithm = configs.resolve_with_algorithm(configs.load("embedded_xs", changes, algo))
    distributed.init()
    return Learner(config, algorithm, *load_engines(config, algorithm, None), RunState())


def scored_of(drawn: Sequence[Sequence[One]]) -> list[Scored]:
    found = []
    for number, group in enumerate(drawn):
        problem = Problem(f"p{number}", "", [4 + number, 13, 5, 19], "", {})
        for index, one in enumerate(group):
            tokens = [(number + index + at) % 9 + 3 for at in range(one.length)]
            turns = one.turns
            acts = [any(start <= at < end for start, end in turns or [(0, one.length)]) for at in range(one.length)]
            logprobs = [-0.5 if own else 0.0 for own in acts]
            completion = Completion(tokens=tokens, logprobs=logprobs, truncated=one.truncated, version=0)
            share = None
            if one.dense and one.value is not None and one.length:
                share = [one.value / sum(acts) if own else 0.0 for own in acts]
            result = RewardResult(
                value=one.value, status="ok" if one.value is not None else "error", token_values=share
            )
            found.append(Scored(SampleKey(problem.id, 1, 0, index), problem, completion, "", turns, result=result))
    return found


@pytest.mark.parametrize("algo", registry.names("algorithms"))
def test_it_is_learnt_from_or_counted(algo: str) -> None:
    learner = learner_of(algo)

    @settings(max_examples=6)
    @given(groups)
    def learns(drawn: list[list[One]]) -> None:
        scored, algorithm = scored_of(drawn), learner.algorithm
        rollout = assemble(
            scored,
            [one.result.value for one in scored],
            compares_groups=algorithm.compares_groups,
            leaves_out_truncated=algorithm.leaves_out_truncated,
        )
        assert [int(length) for length in rollout.length] == [one.length for group in drawn for one in group]
        assert not any(math.isinf(value) for value in describe(scored, rollout).values())
        before, made = weights(learner), learner.policy.updates
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metrics, _ = learner.learn(rollout, learner.measure(rollout, 1), 1)
        assert [name for name, value in metrics.items() if not math.isfinite(value)] == []
        assert metrics["updates/not_finite"] == 0
        done = learner.policy.updates - made
        assert done + metrics["updates/skipped"] == learner.config.updates_per_step
        after = weights(learner)
        assert torch.isfinite(after).all()
        if not rollout.mask.any():
            assert done == 0
            assert torch.equal(before, after)

    learns()


def weights(learner: Learner) -> torch.Tensor:
    return torch.cat([weight.flatten().clone() for _, weight in learner.policy.weights()])
