"""A rollout that waits in a checkpoint is read back as the learner, the folder and the trackers would have met it."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from rlkit import config as configs
from rlkit.data import Problem
from rlkit.errors import RlkitError
from rlkit.generation.assemble import assemble
from rlkit.generation.sampled import Scored
from rlkit.interfaces.generation import Completion
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.loop.dynamic_sampling import Gathered
from rlkit.loop.rollouts import Taken, restored, saved, stored, take
from rlkit.loop.state import Place
from rlkit.records.folder import RunFolder

PROBLEMS = [
    Problem("p0", "1+1=", [4, 5], "2", {"level": 1}, question="1+1="),
    Problem("p1", "2+2=", [6], "4", {}, question=[{"role": "user", "content": "2+2="}]),
    Problem("p1", "2+2=", [6], "four", {}, question=[{"role": "user", "content": "2+2="}]),
]
RESULTS = [
    RewardResult(value=0.75, correct=True, parts={"right": 1.0}, token_values=[0.5, 0.25], info={"answer": "2"}),
    RewardResult(value=None, status="timeout"),
    RewardResult(value=0.0, status="refused", correct=False, info={"found": Fraction(1, 3), "at": (1, 2)}),
]


def taken(ranks: int = 1) -> Taken:
    """ranks: of several, each has what the others sampled as arrays."""
    torch.manual_seed(0)
    scored = [
        Scored(
            key=SampleKey(problem.id, 5, int(index == 2), 0),
            problem=problem,
            completion=Completion(
                tokens=list(range(70000, 70000 + length)),
                logprobs=torch.randn(length).tolist(),
                truncated=index == 1,
                version=3,
            ),
            text=f"a text with \ud800 and é, {index}",
            result=replace(result),
        )
        for index, (problem, result, length) in enumerate(zip(PROBLEMS, RESULTS, [2, 5, 3], strict=True))
    ]
    if ranks > 1:
        for one in scored:
            one.completion.tokens, one.completion.logprobs = (
                array("i", one.completion.tokens),
                array("f", one.completion.logprobs),
            )
        scored[0].result.token_values = array("f", RESULTS[0].token_values or [])
    rewards = [0.25, None, 1.0]
    gathered = Gathered(scored, rewards, [False, True, False], 2, {"sample": 1.5}, dict(METRICS))
    return Taken(5, gathered, Place(12, 3))


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_is_read_back_as_it_was(ranks: int, tmp_path: Path) -> None:
    before = taken(ranks)
    torch.save({"ahead": saved(before)}, tmp_path / "state.pt")
    after = restored(torch.load(tmp_path / "state.pt", weights_only=True)["ahead"], PROBLEMS)
    assert_same(before, after)


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_is_read_back_from_where_it_was_logged(ranks: int, tmp_path: Path) -> None:
    before = taken(ranks)
    for one in before.gathered.scored:
        object.__setattr__(one, "text", one.text.replace("\ud800", ""))
    # Neither is what it is in 32 bits.
    before.gathered.rewards[:] = [0.1, None, 1 / 3]
    before.gathered.scored[0].result.parts = {"right": 0.7}
    folder = RunFolder(tmp_path)
    folder.rollouts.mkdir()
    scored, rewards, replaced = (getattr(before.gathered, name) for name in ("scored", "rewards", "replaced"))
    folder.log_rollout(
        5,
        assemble(scored, rewards, compares_groups=True, leaves_out_truncated=True, replaced=replaced),
        prompts=[one.problem.text for one in scored],
        answers=[one.problem.answer for one in scored],
        texts=[one.text for one in scored],
        results=[one.result for one in scored],
        rewards=rewards,
        replaced=replaced,
    )
    after = stored(folder.rollout_file(5), 5, before.after, 2, PROBLEMS)
    assert (after.gathered.seconds, after.gathered.metrics) == ({}, {})
    assert_same(before, replace(after, gathered=replace(after.gathered, seconds={"sample": 1.5}, metrics=METRICS)))


METRICS = {"refill/rounds": 1.0}


def assert_same(before: Taken, after: Taken) -> None:
    assert (after.step, after.after) == (before.step, before.after)
    one, other = before.gathered, after.gathered
    for name in ("rewards", "replaced", "first", "seconds", "metrics"):
        assert getattr(one, name) == getattr(other, name)
    for a, b in zip(one.scored, other.scored, strict=True):
        assert (a.key, a.text) == (b.key, b.text)
        for name in ("truncated", "version"):
            assert getattr(a.completion, name) == getattr(b.completion, name)
        assert list(a.completion.tokens) == b.completion.tokens
        assert b.completion.logprobs == pytest.approx(list(a.completion.logprobs), rel=1e-7)
        # Two rows of the data may share a prompt and not the gold.
        for name in ("id", "text", "tokens", "answer", "question"):
            assert getattr(a.problem, name) == getattr(b.problem, name)
        for name in ("value", "status", "correct", "parts"):
            assert getattr(a.result, name) == getattr(b.result, name)
        assert b.result.token_values == (None if a.result.token_values is None else list(a.result.token_values))
        assert json.dumps(a.result.info, default=str) == json.dumps(b.result.info, default=str)
    first, second = (assemble(g.scored, g.rewards, replaced=g.replaced) for g in (one, other))
    for name in ("tokens", "mask", "reward", "clean_reward", "token_reward", "sampler_logprobs", "version", "group"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@dataclass
class Stale:
    """A gatherer whose sampler answers with other weights than it was given."""

    version: int

    def gather(self, problems: Sequence[Problem], step: int, replacements: object) -> Gathered:
        gathered = taken().gathered
        for one in gathered.scored:
            one.completion.version = self.version
        assert sorted(problem.id for problem in problems) == ["p0", "p1", "p1"]
        return gathered


def test_samples_of_other_weights_than_the_sampler_was_given_are_refused() -> None:
    settings = ["seed=1", "batch.prompts_per_step=3"]
    config = configs.load("embedded_xs", settings)
    found = take(config, Stale(4), PROBLEMS, 6, Place(3, 1), version=4)  # type: ignore[arg-type]
    assert (found.step, found.after) == (6, Place(6, 1))
    with pytest.raises(RlkitError, match="step 6: the sampler gave samples of policy version 3, and was given the wei"):
        take(config, Stale(3), PROBLEMS, 6, Place(3, 1), version=4)  # type: ignore[arg-type]


def test_data_without_its_prompts_are_refused() -> None:
    found = saved(taken())
    with pytest.raises(RlkitError, match="samples for step 5 to a prompt that the data lack: go on with the"):
        restored(found, PROBLEMS[:1])
