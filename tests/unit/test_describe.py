"""What is logged of a rollout, against counts by hand: groups of any size, samples that count and that do not."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import pytest
from random_batches import fresh_seed
from test_assemble import answer

from rlkit.generation.assemble import assemble
from rlkit.generation.sampled import Scored
from rlkit.interfaces.rewards import RewardResult
from rlkit.loop.describe import describe, disturbed


def judged(one: Scored, result: RewardResult) -> Scored:
    return replace(one, result=result)


@pytest.mark.parametrize("repeat", range(5))
def test_of_groups_of_any_size_with_invalid_rows(repeat: int) -> None:
    rng = random.Random(fresh_seed())
    scored: list[Scored] = []
    for prompt in "abcdef":
        for index in range(rng.randint(1, 6)):
            value = None if rng.random() < 0.2 else rng.choice([0.0, 0.5, 1.0])
            tokens = [1] * rng.randint(1, 7)
            one = answer(prompt, index, value, tokens=tokens, truncated=rng.random() < 0.3)
            if value is not None:
                one = judged(one, replace(one.result, correct=value == 1.0, parts={"form": value / 2}))
            scored.append(one)
    rng.shuffle(scored)
    noisy = [None if s.result.value is None or rng.random() < 0.1 else s.result.value for s in scored]
    rollout = assemble(scored, noisy, compares_groups=True)
    metrics = describe(scored, rollout)

    clean = [s.result.value for s in scored if s.result.value is not None]
    kept = [value for value, here in zip(noisy, rollout.valid.tolist(), strict=True) if here and value is not None]
    equal = []
    for prompt in {s.key.prompt_id for s in scored}:
        members = [
            value
            for one, value, here in zip(scored, noisy, rollout.valid.tolist(), strict=True)
            if one.key.prompt_id == prompt and here
        ]
        equal.append(len(set(members)) <= 1)
    lengths = [len(s.completion.tokens) for s in scored]
    assert metrics["reward/clean"] == pytest.approx(statistics.fmean(clean))
    assert metrics["reward/std"] == pytest.approx(statistics.pstdev(clean))
    assert metrics["reward/mean"] == pytest.approx(statistics.fmean(kept) if kept else math.nan, nan_ok=True)
    assert metrics["reward/pass_rate"] == pytest.approx(clean.count(1.0) / len(clean))
    assert metrics["reward/part/form"] == pytest.approx(statistics.fmean(clean) / 2)
    assert metrics["groups/equal_rewards"] == pytest.approx(statistics.fmean(equal))
    assert metrics["response/length"] == pytest.approx(statistics.fmean(lengths))
    assert metrics["response/length_max"] == max(lengths)
    assert metrics["response/truncated"] == pytest.approx(statistics.fmean(s.completion.truncated for s in scored))
    assert metrics["samples/no_value"] == len(scored) - len(clean)
    assert metrics["samples/invalid"] == (~rollout.valid).sum()
    assert metrics["samples/ok"] == len(clean)
    assert metrics.get("samples/abstain", 0) == len(scored) - len(clean)


def test_a_group_teaches_where_two_of_its_valid_rewards_differ() -> None:
    scored = [
        *(answer("a", i, value) for i, value in enumerate([1.0, 1.0, 0.0])),
        *(answer("b", i, value) for i, value in enumerate([0.3, 0.3])),
        answer("c", 0, 1.0),
        *(answer("d", i, None) for i in range(3)),
    ]
    assert describe(scored, assemble(scored))["groups/equal_rewards"] == 3 / 4
    # The one that differed lost its reward to noise.
    lost = [1.0, 1.0, None, 0.3, 0.3, 1.0, None, None, None]
    assert describe(scored, assemble(scored, lost))["groups/equal_rewards"] == 1
    # Or noise made the difference.
    assert (
        describe(scored, assemble(scored, [1.0, 1.0, 0.0, 0.3, 0.7, 1.0, None, None, None]))["groups/equal_rewards"]
        == 2 / 4
    )


def test_where_nothing_is_valid_there_are_counts_and_no_means() -> None:
    scored = [answer("a", i, None, truncated=i == 0) for i in range(4)]
    metrics = describe(scored, assemble(scored, compares_groups=True))
    for name in ("reward/mean", "reward/clean", "reward/std"):
        assert math.isnan(metrics[name])
    assert metrics["samples/no_value"] == metrics["samples/invalid"] == metrics["samples/abstain"] == 4
    assert metrics["groups/equal_rewards"] == 1
    assert metrics["response/truncated"] == 0.25
    assert "samples/ok" not in metrics


def test_rewards_that_noise_took_away_are_in_the_clean_mean_alone() -> None:
    scored = [answer("a", i, 1.0) for i in range(3)]
    metrics = describe(scored, assemble(scored, [None, None, None], compares_groups=True))
    assert math.isnan(metrics["reward/mean"])
    assert (metrics["reward/clean"], metrics["samples/no_value"], metrics["samples/invalid"]) == (1.0, 0, 3)


def test_disturbed_is_the_share_of_rewards_that_noise_changed_or_took() -> None:
    results = [RewardResult(value=value) for value in (1.0, 1.0, 0.0, 0.0)]
    results.append(RewardResult(value=None, status="error"))
    assert disturbed(results, [1.0, 0.0, None, 0.0, None]) == 0.5
    assert disturbed(results[4:], [None]) == 0
