"""GRPO and its descendants against loops written from the formulas, in float64, with gradients."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest
import torch
from random_batches import actions, by_group, fresh_case, fresh_seed
from torch import Tensor

from rlkit import registry
from rlkit.conformance.batches import Case
from rlkit.data import Problem
from rlkit.errors import ConfigError
from rlkit.generation.assemble import assemble
from rlkit.generation.sampled import Scored
from rlkit.interfaces.generation import Completion
from rlkit.interfaces.learning import Batch, Targets, TokenStats
from rlkit.interfaces.rewards import RewardResult, SampleKey


def run(name: str, options: dict[str, Any], case: Case, importance: Tensor | None = None) -> tuple[Tensor, Targets]:
    algorithm = registry.build("algorithms", name, options)
    targets = algorithm.advantage(case.batch, {})
    targets.importance = importance
    loss, _ = algorithm.policy_loss(case.new, case.batch, targets)
    return loss, targets


def naive_scores(
    batch: Batch, divide: bool = True, leave_one_out: bool = False, rewards: dict[int, float] | None = None
) -> dict[int, float]:
    """Row -> advantage, for valid rows (those in `rewards`, where given)."""
    rollout = batch.rollout
    scores = {}
    for members in by_group(rollout).values():
        kept = {
            i: rollout.reward[i].item() if rewards is None else rewards[i]
            for i in members
            if not rewards or i in rewards
        }
        for i, reward in kept.items():
            rest = [r for j, r in kept.items() if j != i]
            baseline = statistics.fmean(rest if leave_one_out and rest else kept.values())
            spread = statistics.stdev(kept.values()) if len(kept) > 1 else 0.0
            scores[i] = (reward - baseline) / (spread + 1e-6 if divide else 1.0)
    return scores


def naive_surrogate(ratio: Tensor, a: float, low: float, high: float, dual: float | None = None) -> Tensor:
    clipped = min(max(ratio.item(), 1 - low), 1 + high)
    gain = ratio * a if ratio.item() * a <= clipped * a else torch.tensor(clipped * a, dtype=torch.float64)
    if dual is not None and a < 0 and gain.item() < dual * a:
        gain = torch.tensor(dual * a, dtype=torch.float64)
    return -gain


def assert_same(loss: Tensor, naive: Tensor, case: Case) -> None:
    torch.testing.assert_close(loss, naive, rtol=1e-9, atol=1e-12)
    found = torch.autograd.grad(loss, case.leaves(), allow_unused=True)
    expected = torch.autograd.grad(naive, case.leaves(), allow_unused=True)
    for a, b, leaf in zip(found, expected, case.leaves(), strict=True):
        zeros = torch.zeros_like(leaf)
        torch.testing.assert_close(zeros if a is None else a, zeros if b is None else b, rtol=1e-8, atol=1e-12)
    assert any(g is not None and g.any() for g in found)


@pytest.mark.parametrize("repeat", range(3))
def test_grpo_is_the_papers_formula(repeat: int) -> None:
    case = fresh_case()
    batch, scores = case.batch, naive_scores(case.batch)
    naive = torch.zeros((), dtype=torch.float64)
    for i, a in scores.items():
        columns = actions(batch.rollout, i)
        for t in columns:
            ratio = (case.new.logprobs[i, t] - batch.old.logprobs[i, t]).exp()
            naive = naive + naive_surrogate(ratio, a, 0.2, 0.2) / len(columns) / len(scores)
    loss, targets = run("grpo", {}, case)
    assert_same(loss, naive, case)
    for i in range(len(batch.rollout.keys)):
        for t in range(batch.mask.shape[1]):
            expected = scores[i] if batch.mask[i, t] else 0.0
            assert targets.advantages[i, t].item() == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["k2", "k3", "exact"])
def test_kl_entropy_dual_clip_and_importance_weights(estimator: str) -> None:
    case = fresh_case(off_policy=1.5)
    batch, new, scores = case.batch, case.new, naive_scores(case.batch)
    importance = torch.rand(batch.mask.shape, dtype=torch.float64)
    n = sum(len(actions(batch.rollout, i)) for i in scores)
    naive = torch.zeros((), dtype=torch.float64)
    for i, a in scores.items():
        for t in actions(batch.rollout, i):
            ratio = (new.logprobs[i, t] - batch.old.logprobs[i, t]).exp()
            x = new.logprobs[i, t] - batch.old.ref_logprobs[i, t]
            kl = {"k2": x * x / 2, "k3": (-x).exp() - 1 + x, "exact": new.token_kl[i, t]}[estimator]
            token = importance[i, t] * naive_surrogate(ratio, a, 0.1, 0.3, dual=2.0)
            naive = naive + (token + 0.05 * kl - 0.02 * new.entropy[i, t]) / n
    options = {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 2.0, "aggregation": "token_mean", "kl_coef": 0.05}
    loss, _ = run("grpo", {**options, "kl_estimator": estimator, "entropy_coef": 0.02}, case, importance)
    assert_same(loss, naive, case)


def test_dr_grpo_has_neither_division() -> None:
    case = fresh_case()
    batch, scores = case.batch, naive_scores(case.batch, divide=False)
    naive = torch.zeros((), dtype=torch.float64)
    for i, a in scores.items():
        for t in actions(batch.rollout, i):
            ratio = (case.new.logprobs[i, t] - batch.old.logprobs[i, t]).exp()
            naive = naive + naive_surrogate(ratio, a, 0.2, 0.2) / (50 * len(scores))
    assert_same(run("dr_grpo", {"sequence_constant": 50}, case)[0], naive, case)


def test_dapo_clips_higher_and_averages_over_tokens() -> None:
    case = fresh_case()
    batch, scores = case.batch, naive_scores(case.batch)
    n = sum(len(actions(batch.rollout, i)) for i in scores)
    naive = torch.zeros((), dtype=torch.float64)
    for i, a in scores.items():
        for t in actions(batch.rollout, i):
            ratio = (case.new.logprobs[i, t] - batch.old.logprobs[i, t]).exp()
            naive = naive + naive_surrogate(ratio, a, 0.2, 0.28) / n
    assert_same(run("dapo", {}, case)[0], naive, case)


@pytest.mark.parametrize("width", [3e-4, 0.3])
def test_gspo_has_one_ratio_a_sequence(width: float) -> None:
    case = fresh_case(off_policy=2 * width)
    batch, scores = case.batch, naive_scores(case.batch)
    naive = torch.zeros((), dtype=torch.float64)
    for i, a in scores.items():
        columns = actions(batch.rollout, i)
        mean = sum(case.new.logprobs[i, t] - batch.old.logprobs[i, t] for t in columns) / len(columns)
        naive = naive + naive_surrogate(mean.exp(), a, width, 4e-4 if width == 3e-4 else 0.3) / len(scores)
    options = {} if width == 3e-4 else {"clip_low": width, "clip_high": width}
    assert_same(run("gspo", options, case)[0], naive, case)


def test_cispo_keeps_every_tokens_gradient() -> None:
    case = fresh_case(off_policy=1.5)
    batch, scores = case.batch, naive_scores(case.batch)
    n = sum(len(actions(batch.rollout, i)) for i in scores)
    naive, bounded = torch.zeros((), dtype=torch.float64), 0
    for i, a in scores.items():
        for t in actions(batch.rollout, i):
            ratio = (case.new.logprobs[i, t] - batch.old.logprobs[i, t]).exp().item()
            bounded += ratio > 1.5
            naive = naive - min(ratio, 1.5) * a * case.new.logprobs[i, t] / n
    algorithm = registry.build("algorithms", "cispo", {"clip_high": 0.5})
    targets = algorithm.advantage(batch, {})
    loss, metrics = algorithm.policy_loss(case.new, batch, targets)
    assert_same(loss, naive, case)
    assert [x.item() for x in metrics["policy/clip_share"]] == [bounded, n]
    clip = registry.build("losses", "clip", {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.5})
    torch.testing.assert_close(clip(case.new, batch, targets)[0], loss)


def test_rloo_leaves_the_sample_out_of_its_baseline() -> None:
    case = fresh_case(off_policy=0.0)
    batch, scores = case.batch, naive_scores(case.batch, divide=False, leave_one_out=True)
    naive = torch.zeros((), dtype=torch.float64)
    for i, a in scores.items():
        for t in actions(batch.rollout, i):
            ratio = (case.new.logprobs[i, t] - batch.old.logprobs[i, t]).exp()
            naive = naive - ratio * a / (1024 * len(scores))
    loss, targets = run("rloo", {}, case)
    assert_same(loss, naive, case)
    own = registry.build("advantages", "group", {"baseline": "leave_one_out", "divide_by_std": False})(batch, {})
    torch.testing.assert_close(own.advantages, targets.advantages)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"])
def test_overlong_mask_asks_that_truncated_samples_be_invalid(name: str) -> None:
    assert registry.build("algorithms", name, {"overlong_mask": True}).leaves_out_truncated
    assert not registry.build("algorithms", name, {}).leaves_out_truncated


def scored(rewards: list[float], lengths: list[int], truncated: list[bool], samples: int) -> list[Scored]:
    return [
        Scored(
            key=SampleKey(f"prompt{i // samples}", 1, 0, i % samples),
            problem=Problem(id=f"prompt{i // samples}", text="1+1=", tokens=[1, 2], answer="2", columns={}),
            completion=Completion(tokens=[3] * n, logprobs=[-0.5] * n, truncated=cut, version=0),
            text="2",
            result=RewardResult(value=reward),
        )
        for i, (reward, n, cut) in enumerate(zip(rewards, lengths, truncated, strict=True))
    ]


def test_left_out_truncated_samples_are_in_no_loss_baseline_or_count() -> None:
    rng = random.Random(fresh_seed())
    truncated = [True, False, False, True, True, True, False, True, False, False, False, False]
    rewards = [rng.random() for _ in truncated]
    lengths = [rng.randint(1, 5) for _ in truncated]
    algorithm = registry.build("algorithms", "dapo", {"overlong_mask": True})
    rollout = assemble(
        scored(rewards, lengths, truncated, 4),
        compares_groups=algorithm.compares_groups,
        leaves_out_truncated=algorithm.leaves_out_truncated,
    )
    # The second group has one answer that ended, which has nothing to be compared with.
    groups = [[1, 2], [8, 9, 10, 11]]
    assert rollout.valid.nonzero().flatten().tolist() == [*groups[0], *groups[1]]
    n = sum(lengths[i] for members in groups for i in members)
    assert rollout.action_counts.sum() == n

    new = TokenStats(logprobs=rollout.sampler_logprobs.clone().requires_grad_())
    batch = Batch(rollout=rollout, old=TokenStats(logprobs=rollout.sampler_logprobs), n_sequences=6, n_tokens=n)
    loss, _ = algorithm.policy_loss(new, batch, algorithm.advantage(batch, {}))
    loss.backward()
    expected = torch.zeros_like(rollout.sampler_logprobs)
    for members in groups:
        left = [rewards[i] for i in members]
        for i in members:
            a = (rewards[i] - statistics.fmean(left)) / (statistics.stdev(left) + 1e-6)
            expected[i, : lengths[i]] = -a / n
    torch.testing.assert_close(new.get("logprobs").grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_equal_rewards_give_an_advantage_of_exactly_0(name: str) -> None:
    rng = random.Random(fresh_seed())
    for samples in (2, 3, 8, rng.randint(2, 300)):
        value = rng.choice([0.1, 0.7, 100.1, rng.uniform(-1e4, 1e4)])
        rollout = assemble(scored([value] * samples, [1] * samples, [False] * samples, samples), compares_groups=True)
        batch = Batch(rollout=rollout, n_sequences=samples, n_tokens=samples)
        targets = registry.build("algorithms", name, {}).advantage(batch, {})
        assert not targets.get("advantages").any()


def test_the_overlong_penalty_grows_over_the_buffer() -> None:
    case = fresh_case(length=10, p_env=0.2)
    batch = case.batch
    rewards = {}
    for i in range(len(batch.rollout.keys)):
        over = len(actions(batch.rollout, i)) - (6 - 4)
        rewards[i] = batch.rollout.reward[i].item() - 0.5 * min(max(over / 4, 0.0), 1.0)
    scores = naive_scores(batch, rewards=rewards)
    _, targets = run("grpo", {"overlong_penalty": {"limit": 6, "buffer": 4, "scale": 0.5}}, case)
    for i, a in scores.items():
        assert targets.advantages[i].abs().sum().item() == pytest.approx(abs(a) * len(actions(batch.rollout, i)))


def test_a_log_ratio_of_any_size_gives_a_finite_loss_and_gradient() -> None:
    case = fresh_case()
    with torch.no_grad():
        case.new.logprobs.mul_(1000)
    for options in ({"kl_coef": 1.0}, {"surrogate": "cispo"}, {"ratio": "sequence"}):
        loss, _ = run("grpo", options, case)
        (grad,) = torch.autograd.grad(loss, [case.new.get("logprobs")])
        assert loss.isfinite()
        assert grad[case.batch.mask].isfinite().all()


def test_reported_kl_and_clip_share() -> None:
    case = fresh_case()
    batch = case.batch
    algorithm = registry.build("algorithms", "grpo", {})
    targets = algorithm.advantage(batch, {})
    _, metrics = algorithm.policy_loss(case.new, batch, targets)
    kl, stopped, n = 0.0, 0, 0
    for i, a in naive_scores(batch).items():
        for t in actions(batch.rollout, i):
            x = (case.new.logprobs[i, t] - batch.old.ref_logprobs[i, t]).item()
            ratio = (case.new.logprobs[i, t] - batch.old.logprobs[i, t]).exp().item()
            kl, n = kl + torch.tensor(-x).exp().item() - 1 + x, n + 1
            stopped += (a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8)
    assert [x.item() for x in metrics["policy/kl"]] == pytest.approx([kl, n], rel=1e-5)
    assert [x.item() for x in metrics["policy/clip_share"]] == [stopped, n]


def test_k1_is_refused_as_a_loss_with_the_reason() -> None:
    for kind, name in (("algorithms", "grpo"), ("algorithms", "dapo"), ("losses", "clip")):
        with pytest.raises(
            ConfigError, match=r"kl_estimator'?: k1 cannot be a loss: its gradient.* zero in expectation"
        ):
            registry.build(kind, name, {"kl_coef": 0.1, "kl_estimator": "k1"})


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="dual_clip has no meaning with surrogate: cispo"):
        registry.build("algorithms", "cispo", {"dual_clip": 3.0})
    with pytest.raises(ConfigError, match=r"buffer \(9\) must not be above limit \(8\)"):
        registry.build("algorithms", "dapo", {"overlong_penalty": {"limit": 8, "buffer": 9}})
    with pytest.raises(ConfigError, match=r"unknown key 'clip_hihg' in 'algorithm'; did you mean 'clip_high'"):
        registry.build("algorithms", "grpo", {"clip_hihg": 0.3})
