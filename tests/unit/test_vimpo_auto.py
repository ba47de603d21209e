"""VIMPO without tuning against the loss it stands for, in float64, with gradients; its scale, memory and reference."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from random_batches import actions, by_group, fresh_case
from test_grpo import naive_surrogate
from torch import Tensor

from rlkit import config as configs
from rlkit import registry
from rlkit.config import AverageReference, CopyReference, FrozenReference
from rlkit.conformance.batches import Case
from rlkit.errors import ConfigError
from rlkit.interfaces.learning import Algorithm, Targets


def build(**options: Any) -> Algorithm:
    made: Algorithm = registry.build("algorithms", "vimpo_auto", options)
    return made


def on_policy(case: Case) -> Case:
    """The gradient forward is of the weights that sampled: `now`, `old` and `new` agree."""
    batch = case.batch
    batch.old.logprobs = batch.now.get("logprobs").clone()
    case.new.logprobs = batch.now.get("logprobs").clone().requires_grad_()
    return case


def naive_targets(case: Case) -> dict[int, float]:
    """Row -> R_i - mean_group R, of valid rows."""
    rollout, found = case.batch.rollout, {}
    for members in by_group(rollout).values():
        mean = statistics.fmean(rollout.reward[i].item() for i in members)
        found |= {i: rollout.reward[i].item() - mean for i in members}
    return found


def naive_square(case: Case) -> float:
    """mean(T^2 n / (n - 1)) over the samples of groups whose rewards differ."""
    rollout, targets, terms = case.batch.rollout, naive_targets(case), []
    for members in by_group(rollout).values():
        if len({rollout.reward[i].item() for i in members}) > 1:
            terms += [targets[i] ** 2 * len(members) / (len(members) - 1) for i in members]
    return statistics.fmean(terms)


def mean_length(case: Case) -> float:
    rows = naive_targets(case)
    return statistics.fmean(len(actions(case.batch.rollout, i)) for i in rows)


def naive_weights(case: Case, spread: float, b: float) -> dict[int, float]:
    """Row -> w_i = T_i / s - b L_i, at the weights about to be updated."""
    now, found = case.batch.now, {}
    for i, target in naive_targets(case).items():
        nats = sum(
            (now.get("logprobs")[i, t] - now.get("ref_logprobs")[i, t] - now.get("token_kl")[i, t]).item()
            for t in actions(case.batch.rollout, i)
        )
        found[i] = (target / spread if spread else 0.0) - b * nats
    return found


def loss_of(algorithm: Algorithm, case: Case, state: dict[str, Any] | None = None) -> tuple[Tensor, Targets]:
    targets = algorithm.advantage(case.batch, {} if state is None else state)
    return algorithm.policy_loss(case.new, case.batch, targets)[0], targets


@pytest.mark.parametrize("b", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("repeat", range(3))
def test_on_policy_the_gradient_is_that_of_the_scaled_square(b: float, repeat: int) -> None:
    """1/(beta s l) mean_i 1/2 (beta L_i - T_i)^2 with beta = b s, and the KL detached."""
    case = on_policy(fresh_case(groups=4))
    new, now = case.new.get("logprobs"), case.batch.now
    targets, spread, length = naive_targets(case), math.sqrt(naive_square(case)), mean_length(case)
    beta, square = b * spread, torch.zeros((), dtype=torch.float64)
    for i, target in targets.items():
        nats = torch.zeros((), dtype=torch.float64)
        for t in actions(case.batch.rollout, i):
            nats = nats + new[i, t] - now.get("ref_logprobs")[i, t] - now.get("token_kl")[i, t].detach()
        square = square + (beta * nats - target) ** 2 / 2 / len(targets)
    (expected,) = torch.autograd.grad(square / (beta * spread * length), [new])
    loss, _ = loss_of(build(deviations_per_nat=b), case)
    (found,) = torch.autograd.grad(loss, [new])
    mask = case.batch.rollout.mask
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-10, atol=1e-13)
    assert not found[~mask].any()
    assert found.any()


@pytest.mark.parametrize("change", [lambda r: 10 * r, lambda r: r + 100.0, lambda r: 1e-3 * r, lambda r: 3 * r - 5])
def test_the_rewards_scale_and_origin_do_not_matter(change: Any) -> None:
    cases = [fresh_case(groups=5) for _ in range(3)]
    algorithm, state, other = build(), {}, {}
    for case in cases:
        before = algorithm.advantage(case.batch, state)
        case.batch.rollout.reward = change(case.batch.rollout.reward)
        after = algorithm.advantage(case.batch, other)
        torch.testing.assert_close(before.get("advantages"), after.get("advantages"), rtol=1e-12, atol=1e-12)
        assert before.get("advantages").any()
    scale = change(1.0) - change(0.0)
    assert math.sqrt(other["spread"]) == pytest.approx(scale * math.sqrt(state["spread"]), rel=1e-9)


def test_the_spread_begins_with_the_first_batch_and_is_a_running_mean_from_then_on() -> None:
    algorithm, state, square = build(), {}, None
    for _ in range(4):
        case = fresh_case(groups=4, p_invalid=0.4)
        here = naive_square(case)
        square = here if square is None else 0.9 * square + 0.1 * here
        targets = algorithm.advantage(case.batch, state)
        assert targets.scalars["vimpo_auto/reward_spread"] == pytest.approx(math.sqrt(square), rel=1e-12)
        weights = naive_weights(case, math.sqrt(square), 1.0)
        for i in range(len(case.batch.rollout.keys)):
            for t in range(case.batch.mask.shape[1]):
                expected = weights[i] / mean_length(case) if case.batch.mask[i, t] else 0.0
                assert targets.get("advantages")[i, t].item() == pytest.approx(expected, rel=1e-10, abs=1e-13)


def equal_but(case: Case, differs: list[int]) -> None:
    """Give each group one reward for all its samples, but for the groups of these numbers."""
    rollout = case.batch.rollout
    for number, members in by_group(rollout).items():
        if number not in differs:
            rollout.reward[members] = rollout.reward[members[0]].clone()


def test_groups_with_equal_rewards_do_not_shrink_the_spread() -> None:
    case = fresh_case(groups=5)
    number = next(iter(by_group(case.batch.rollout)))
    equal_but(case, [number])
    members = by_group(case.batch.rollout)[number]
    state: dict[str, Any] = {}
    build().advantage(case.batch, state)
    # Of one group: its unbiased variance.
    rewards = [case.batch.rollout.reward[i].item() for i in members]
    assert state["spread"] == pytest.approx(statistics.variance(rewards), rel=1e-10)

    # A batch in which none differs leaves the memory as it is, and is judged by it.
    equal_but(case, [])
    targets = build().advantage(case.batch, state)
    assert state["spread"] == pytest.approx(statistics.variance(rewards), rel=1e-10)
    assert targets.scalars["vimpo_auto/reward_spread"] == pytest.approx(statistics.stdev(rewards))


def test_rewards_that_differ_by_rounding_are_equal() -> None:
    """Else a first batch of such would begin the spread at 1e-7, and what is left of rounding would be learnt."""
    case = fresh_case(groups=6, p_invalid=0.0)
    rollout = case.batch.rollout
    flip = torch.rand(len(rollout.keys)) < 0.5
    rollout.reward = 2.1 * torch.where(flip, 1 + 1e-7, 1.0).double()
    assert len(set(rollout.reward.tolist())) == 2
    state: dict[str, Any] = {}
    targets = build().advantage(case.batch, state)
    assert not state
    assert targets.scalars["vimpo_auto/reward_spread"] == 0
    rollout.reward = torch.where(flip, 0.3, 0.301).double()
    build().advantage(case.batch, state)
    assert state["spread"] > 0


def test_where_no_group_has_ever_differed_there_is_the_pull_to_the_reference_alone() -> None:
    case = on_policy(fresh_case(groups=4))
    equal_but(case, [])
    state: dict[str, Any] = {}
    loss, targets = loss_of(build(), case, state)
    assert not state
    assert targets.scalars["vimpo_auto/reward_spread"] == 0
    assert not targets.credit["credit"].any()
    (found,) = torch.autograd.grad(loss, [case.new.get("logprobs")])
    weights = naive_weights(case, 0.0, 1.0)
    for i, weight in weights.items():
        for t in actions(case.batch.rollout, i):
            assert found[i, t].item() == pytest.approx(-weight / mean_length(case) / len(weights), rel=1e-10)
    assert found.any()


@pytest.mark.parametrize("clip", [{}, {"clip_low": 0.05, "clip_high": 0.1}])
@pytest.mark.parametrize("repeat", range(3))
def test_with_reuse_each_token_is_clipped(clip: dict[str, float], repeat: int) -> None:
    case = fresh_case(groups=4, off_policy=0.5)
    new, old = case.new.get("logprobs"), case.batch.old.get("logprobs")
    weights = naive_weights(case, math.sqrt(naive_square(case)), 1.0)
    naive = torch.zeros((), dtype=torch.float64)
    for i, weight in weights.items():
        for t in actions(case.batch.rollout, i):
            ratio = (new[i, t] - old[i, t]).exp()
            token = naive_surrogate(ratio, weight, clip.get("clip_low", 0.2), clip.get("clip_high", 0.28))
            naive = naive + token / mean_length(case) / len(weights)
    loss, _ = loss_of(build(**clip), case)
    torch.testing.assert_close(loss, naive, rtol=1e-9, atol=1e-12)
    (found,), (expected,) = (torch.autograd.grad(each, [new]) for each in (loss, naive))
    mask = case.batch.rollout.mask
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-8, atol=1e-12)
    assert (found[mask] == 0).any()


@pytest.mark.parametrize("b", [1.0, 0.25])
def test_a_tokens_credit_is_in_units_of_reward(b: float) -> None:
    """beta (lr_t - KL_t) with beta = b s, as VIMPO's: it grows with the rewards."""
    case = fresh_case(groups=4)
    targets = build(deviations_per_nat=b).advantage(case.batch, {})
    now, spread = case.batch.now, math.sqrt(naive_square(case))
    for i in naive_targets(case):
        for t in actions(case.batch.rollout, i):
            nats = now.get("logprobs")[i, t] - now.get("ref_logprobs")[i, t] - now.get("token_kl")[i, t]
            assert targets.credit["credit"][i, t].item() == pytest.approx(b * spread * nats.item(), rel=1e-10)
    assert not targets.credit["credit"][~case.batch.rollout.mask].any()


def test_it_asks_for_what_it_reads_and_has_no_beta() -> None:
    algorithm = build()
    assert algorithm.needs.now == {"logprobs", "ref_logprobs", "token_kl"}
    assert algorithm.needs.old == frozenset()
    assert algorithm.needs.grad == {"logprobs"}
    assert algorithm.compares_groups
    assert algorithm.reads_importance
    for option in ("beta", "actor_coef", "actor_ratio", "lam"):
        with pytest.raises(ConfigError, match=f"unknown key '{option}'"):
            build(**{option: 0.05})


def test_it_comes_with_a_running_mean_as_reference_and_a_config_has_its_way() -> None:
    def resolved(*settings: str, algo: str = "vimpo_auto") -> Any:
        return configs.resolve(configs.load("embedded_xs", list(settings), algo)).reference

    assert resolved() == AverageReference(decay=0.8, by="rollout")
    assert resolved("reference=frozen") == FrozenReference()
    assert resolved("reference={kind: copy, every: 5}") == CopyReference(every=5)
    assert resolved("reference={kind: average, decay: 0.5}") == AverageReference(decay=0.5)
    assert resolved(algo="vimpo") == FrozenReference()
    with pytest.raises(ConfigError, match="reference: none, but vimpo_auto compares the policy with one"):
        resolved("reference=none")
    again = configs.resolve(configs.load("embedded_xs", algo="vimpo_auto"))
    assert configs.resolve(configs.load(again.dump())) == again
