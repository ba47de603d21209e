"""PPO against loops written from the formulas, in float64, with gradients."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from random_batches import actions, fresh_case
from test_grpo import assert_same, naive_surrogate
from torch import Tensor

from rlkit import registry
from rlkit.conformance.batches import Case
from rlkit.interfaces.learning import Targets


def naive_targets(
    case: Case, lam: float, gamma: float, kl_coef: float
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
    """(row, column) -> advantage before whitening, and -> return."""
    batch, rollout = case.batch, case.batch.rollout
    advantages, returns = {}, {}
    for i in range(len(rollout.keys)):
        columns = actions(rollout, i)
        following, next_value = 0.0, 0.0
        for t in reversed(columns):
            if rollout.token_reward is not None:
                reward = rollout.token_reward[i, t].item()
            else:
                reward = rollout.reward[i].item() if t == columns[-1] else 0.0
            reward -= kl_coef * (batch.old.logprobs[i, t] - batch.old.ref_logprobs[i, t]).item()
            value = batch.old.values[i, t].item()
            following = reward + gamma * next_value - value + gamma * lam * following
            next_value = value
            advantages[i, t], returns[i, t] = following, following + value
    return advantages, returns


@pytest.mark.parametrize("repeat", range(3))
@pytest.mark.parametrize(
    ("dense", "lam", "gamma", "kl_coef"), [(False, 1.0, 1.0, 0.0), (True, 0.9, 1.0, 0.3), (False, 0.7, 0.9, 0.1)]
)
def test_advantages_returns_and_policy_loss(repeat: int, dense: bool, lam: float, gamma: float, kl_coef: float) -> None:
    case = fresh_case(dense=dense, compares_groups=False)
    batch = case.batch
    algorithm = registry.build("algorithms", "ppo", {"lam": lam, "gamma": gamma, "reward_kl_coef": kl_coef})
    targets = algorithm.advantage(batch, {})
    raw, returns = naive_targets(case, lam, gamma, kl_coef)
    mean, var = statistics.fmean(raw.values()), statistics.pvariance(raw.values())
    naive = torch.zeros((), dtype=torch.float64)
    for (i, t), a in raw.items():
        white = (a - mean) / math.sqrt(var + 1e-8)
        assert targets.advantages[i, t].item() == pytest.approx(white, abs=1e-10)
        assert targets.returns[i, t].item() == pytest.approx(returns[i, t])
        ratio = (case.new.logprobs[i, t] - batch.old.logprobs[i, t]).exp()
        naive = naive + naive_surrogate(ratio, white, 0.2, 0.2) / len(raw)
    assert_same(algorithm.policy_loss(case.new, batch, targets)[0], naive, case)
    left = statistics.pvariance([returns[k] - batch.old.values[k].item() for k in raw])
    explained = 1 - left / statistics.pvariance(returns.values())
    assert targets.scalars["critic/explained_variance"] == pytest.approx(explained)


@pytest.mark.parametrize("value_clip", [0.2, None])
def test_the_value_loss_is_clipped_around_its_old_values(value_clip: float | None) -> None:
    case = fresh_case(compares_groups=False)
    batch, values = case.batch, case.new.get("values")
    algorithm = registry.build("algorithms", "ppo", {"value_clip": value_clip})
    targets = algorithm.advantage(batch, {})
    _, returns = naive_targets(case, 1.0, 1.0, 0.0)
    naive = torch.zeros((), dtype=torch.float64)
    for (i, t), g in returns.items():
        old = batch.old.values[i, t].item()
        near: Tensor | float = values[i, t]
        if value_clip is not None and abs(values[i, t].item() - old) > value_clip:
            near = old + math.copysign(value_clip, values[i, t].item() - old)
        far, clipped = (values[i, t] - g) ** 2, torch.as_tensor((near - g) ** 2, dtype=torch.float64)
        naive = naive + (far if far.item() >= clipped.item() else clipped) / 2 / len(returns)
    loss, metrics = algorithm.value_loss(values, batch, targets)
    assert_same(loss, naive, case)
    total, weight = metrics["critic/value_loss"]
    assert (total / weight).item() == pytest.approx(loss.item())


def test_truncated_responses_end_with_value_0() -> None:
    case = fresh_case(compares_groups=False)
    advantage = registry.build("advantages", "gae", {})
    found = []
    for truncated in (True, False):
        case.batch.rollout.truncated[:] = truncated
        found.append(advantage(case.batch, {}).returns)
    assert torch.equal(*found)
    rollout = case.batch.rollout
    for i in range(len(rollout.keys)):
        for t in actions(rollout, i):
            assert found[0][i, t].item() == pytest.approx(rollout.reward[i].item())


def test_where_every_return_is_the_same_no_share_is_explained_and_nothing_is_nan() -> None:
    case = fresh_case(p_invalid=0.0, compares_groups=False)
    case.batch.rollout.reward[:] = 1.0
    targets: Targets = registry.build("algorithms", "ppo", {}).advantage(case.batch, {})
    assert targets.advantages is not None
    assert targets.advantages.isfinite().all()
    assert targets.scalars == {}


def test_it_asks_for_a_critic_and_for_the_reference_only_where_it_is_used() -> None:
    plain = registry.build("algorithms", "ppo", {"critic_warmup_steps": 3})
    assert plain.value_loss is not None
    assert plain.critic_warmup_steps == 3
    assert plain.needs.old == {"values"}
    assert plain.needs.now == frozenset()
    assert registry.build("algorithms", "ppo", {"reward_kl_coef": 0.1}).needs.old == {
        "values",
        "logprobs",
        "ref_logprobs",
    }
    assert not plain.compares_groups
    assert registry.build("algorithms", "grpo", {}).compares_groups
