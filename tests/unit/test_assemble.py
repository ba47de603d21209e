"""From scored completions to a rollout: groups of any size, masks, versions, and rewards that come on the way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from random_batches import fresh_seed

from rlkit import registry
from rlkit.data import Problem
from rlkit.generation.assemble import assemble, unscored
from rlkit.generation.sampled import Sampled, Scored
from rlkit.interfaces.generation import Completion
from rlkit.interfaces.learning import Batch, Rollout, TokenStats
from rlkit.interfaces.rewards import RewardResult, SampleKey


def answer(
    prompt: str,
    index: int,
    value: float | None = 1.0,
    *,
    tokens: Sequence[int] = (5, 6, 7),
    occurrence: int = 0,
    truncated: bool = False,
    version: int = 3,
    token_values: Sequence[float] | None = None,
) -> Scored:
    return Scored(
        key=SampleKey(prompt, 1, occurrence, index),
        problem=Problem(id=prompt, text=prompt, tokens=[1, len(prompt)], answer="", columns={}),
        completion=Completion(
            tokens=list(tokens),
            logprobs=[-0.1 * (t + 1) for t in range(len(tokens))],
            truncated=truncated,
            version=version,
        ),
        text="",
        result=RewardResult(value=value, status="abstain" if value is None else "ok", token_values=token_values),
    )


def test_groups_have_any_size_and_come_in_any_order() -> None:
    rng = random.Random(fresh_seed())
    wanted = [
        answer(prompt, index, rng.random(), occurrence=occurrence)
        for prompt, occurrence, size in (("a", 0, 1), ("bb", 0, 5), ("a", 1, 2), ("ccc", 0, 9))
        for index in range(size)
    ]
    rng.shuffle(wanted)
    rollout = assemble(wanted)
    names = [(s.key.prompt_id, s.key.occurrence) for s in wanted]
    for i, mine in enumerate(names):
        for j, other in enumerate(names):
            assert (rollout.group[i] == rollout.group[j]).item() == (mine == other)
    assert rollout.keys == [s.key for s in wanted]
    assert [prompt.tolist() for prompt in rollout.prompt_tokens] == [s.problem.tokens for s in wanted]
    assert rollout.reward.tolist() == pytest.approx([s.result.value for s in wanted])
    # A group of one is no group to be compared in.
    alone = [name == ("a", 0) for name in names]
    assert assemble(wanted, compares_groups=True).valid.tolist() == [not each for each in alone]


def test_a_sample_without_a_value_leaves_its_group_and_takes_a_lone_partner_with_it() -> None:
    wanted = [answer("a", 0), answer("a", 1, None), answer("b", 0), answer("b", 1, None), answer("b", 2)]
    assert assemble(wanted).valid.tolist() == [True, False, True, False, True]
    compared = assemble(wanted, compares_groups=True)
    assert compared.valid.tolist() == [False, False, True, False, True]
    assert compared.mask.any(1).tolist() == compared.valid.tolist()
    assert compared.reward[1] == 0


def test_truncated_and_replaced_samples_are_invalid_where_they_are_left_out() -> None:
    wanted = [answer("a", 0, truncated=True), answer("a", 1), answer("a", 2), answer("b", 0), answer("b", 1)]
    assert assemble(wanted).valid.all()
    assert assemble(wanted, leaves_out_truncated=True).valid.tolist() == [False, True, True, True, True]
    replaced = [False, False, False, True, True]
    assert assemble(wanted, replaced=replaced).valid.tolist() == [True, True, True, False, False]
    assert assemble(wanted).truncated.tolist() == [True, False, False, False, False]


def test_what_noise_has_made_of_a_reward_stands_beside_the_clean_one() -> None:
    wanted = [answer("a", 0, 1.0), answer("a", 1, 0.0), answer("a", 2, 1.0)]
    rollout = assemble(wanted, [0.0, 1.0, None])
    assert rollout.reward.tolist() == [0.0, 1.0, 0.0]
    assert rollout.clean_reward.tolist() == [1.0, 0.0, 1.0]
    assert rollout.valid.tolist() == [True, True, False]
    # Whole numbers are rewards like others.
    assert assemble(wanted, [1, 1, 2]).reward.dtype == torch.float32


def test_rows_are_as_sampled_and_padded_with_nothing() -> None:
    wanted = [answer("a", 0, tokens=[9]), answer("a", 1, tokens=[4, 2, 8, 3])]
    rollout = assemble(wanted)
    assert rollout.tokens.tolist() == [[9, 0, 0, 0], [4, 2, 8, 3]]
    assert rollout.length.tolist() == [1, 4]
    assert rollout.mask.tolist() == [[True, False, False, False], [True] * 4]
    assert rollout.action_counts.tolist() == [1, 4]
    torch.testing.assert_close(
        rollout.sampler_logprobs, torch.tensor([[-0.1, 0.0, 0.0, 0.0], [-0.1, -0.2, -0.3, -0.4]])
    )
    assert rollout.token_reward is None


def test_the_mask_is_the_turns_of_the_valid_samples() -> None:
    wanted = [answer("a", 0, tokens=[9]), answer("a", 1, None, tokens=[4, 2]), answer("a", 2, tokens=[4, 2, 8])]
    rollout = assemble(wanted)
    assert rollout.turns == [[(0, 1)], [(0, 2)], [(0, 3)]]
    for row, turns in enumerate(rollout.turns):
        chosen = {t for start, end in turns for t in range(start, end)}
        assert {t for t in range(3) if rollout.mask[row, t]} == (chosen if rollout.valid[row] else set())


def test_each_row_carries_the_version_that_sampled_it() -> None:
    rollout = assemble([answer("a", 0, version=4), answer("a", 1, version=6)])
    assert rollout.version.tolist() == [4, 6]
    assert rollout.last_version is not None
    assert rollout.last_version.tolist() == [4, 6]


def test_unscored_samples_all_count() -> None:
    sampled = [Sampled(s.key, s.problem, s.completion, s.text) for s in (answer("a", 0), answer("a", 1, tokens=[1]))]
    rollout = unscored(sampled)
    assert rollout.valid.all()
    assert rollout.mask.sum() == 4


# Rewards on the way


def on_the_way(rng: random.Random) -> list[Scored]:
    """Three groups: shares of every token, all at the end, or none at all."""
    wanted = []
    for prompt in "abc":
        for index in range(rng.randint(2, 4)):
            tokens = [rng.randint(1, 9) for _ in range(rng.randint(1, 6))]
            values = [round(rng.uniform(-1, 1), 3) for _ in tokens]
            value, shares = (sum(values), values) if rng.random() < 0.6 else (rng.random(), None)
            wanted.append(answer(prompt, index, value, tokens=tokens, token_values=shares))
    wanted.append(answer("c", 9, 0.25, tokens=[1, 2], token_values=[1.0, -0.75]))
    wanted.append(answer("c", 10, None))
    return wanted


@pytest.mark.parametrize("repeat", range(5))
def test_token_rewards_sum_to_the_reward_and_noise_stands_at_the_last_token(repeat: int) -> None:
    rng = random.Random(fresh_seed())
    wanted = on_the_way(rng)
    noisy = [None if s.result.value is None else s.result.value + rng.choice([0.0, 0.7, -1.3]) for s in wanted]
    dropped = rng.randrange(len(wanted))
    noisy[dropped] = None
    rollout = assemble(wanted, noisy)
    assert rollout.token_reward is not None
    torch.testing.assert_close(rollout.token_reward.sum(1), rollout.reward)
    for i, (one, reward) in enumerate(zip(wanted, noisy, strict=True)):
        row, last = rollout.token_reward[i].tolist(), len(one.completion.tokens) - 1
        assert not any(row[last + 1 :])
        if reward is None:
            assert not any(row)
            continue
        shares = one.result.token_values or [0.0] * last + [one.result.value or 0.0]
        expected = [*shares[:last], shares[last] + reward - (one.result.value or 0.0)]
        assert row[: last + 1] == pytest.approx(expected, abs=1e-6)


def batch_of(rollout: Rollout) -> Batch:
    zeros = torch.zeros_like(rollout.sampler_logprobs)
    stats = TokenStats(logprobs=rollout.sampler_logprobs, ref_logprobs=zeros, token_kl=zeros, values=zeros)
    return Batch(
        rollout=rollout, old=stats, now=stats, n_sequences=int(rollout.valid.sum()), n_tokens=int(rollout.mask.sum())
    )


def test_gae_sees_each_share_at_its_token_and_vimpo_sees_their_sum() -> None:
    wanted = on_the_way(random.Random(fresh_seed()))
    rollout = assemble(wanted, compares_groups=True)
    targets = registry.build("algorithms", "ppo", {}).advantage(batch_of(rollout), {})
    for i, one in enumerate(wanted):
        if rollout.valid[i]:
            last = len(one.completion.tokens) - 1
            shares = one.result.token_values or [0.0] * last + [one.result.value or 0.0]
            to_go = [sum(shares[t:]) for t in range(last + 1)]
            assert targets.returns[i, : last + 1].tolist() == pytest.approx(to_go, abs=1e-5)

    summed = [replace(s, result=replace(s.result, token_values=None)) for s in wanted]
    at_the_end = assemble(summed, compares_groups=True)
    assert at_the_end.token_reward is None
    for algo in ("vimpo", "vimpo_auto", "grpo"):
        advantage = registry.build("algorithms", algo, {}).advantage
        found = [advantage(batch_of(each), {}) for each in (rollout, at_the_end)]
        assert torch.equal(found[0].get("advantages"), found[1].get("advantages"))
        if algo == "vimpo":
            assert torch.equal(found[0].get("scores"), found[1].get("scores"))
            for i in range(len(wanted)):
                members = [
                    wanted[j].result.value or 0.0
                    for j in range(len(wanted))
                    if rollout.group[j] == rollout.group[i] and rollout.valid[j]
                ]
                expected = (wanted[i].result.value or 0.0) - sum(members) / len(members) if rollout.valid[i] else 0.0
                assert found[0].get("scores")[i].item() == pytest.approx(expected, abs=1e-5)
