"""VIMPO against loops written from the formulas, in float64, with gradients; its options and what it refuses."""

from __future__ import annotations

import dataclasses
import math
import statistics
import warnings
from typing import Any

import pytest
import torch
from random_batches import actions, by_group, fresh_case
from test_grpo import assert_same, naive_surrogate
from torch import Tensor

from rlkit import config as rlkit_config
from rlkit import registry
from rlkit.conformance.batches import NAN, Case
from rlkit.errors import ConfigError
from rlkit.interfaces.learning import Algorithm, TokenStats


def build(**options: Any) -> Algorithm:
    made: Algorithm = registry.build("algorithms", "vimpo", options)
    return made


def naive_kl(case: Case, i: int, t: int, estimator: str) -> float:
    if estimator == "exact":
        return case.batch.now.token_kl[i, t].item()
    x = (case.batch.now.logprobs[i, t] - case.batch.now.ref_logprobs[i, t]).item()
    return math.exp(-x) - 1 + x


def observing(case: Case) -> TokenStats:
    """What the gradient forward says where KL_t and the reference's log-probs are taken from it: those of `now`."""
    now = case.batch.now
    return dataclasses.replace(case.new, ref_logprobs=now.ref_logprobs, token_kl=now.token_kl)


def naive_scores(case: Case) -> dict[int, float]:
    rollout = case.batch.rollout
    scores = {}
    for members in by_group(rollout).values():
        mean = statistics.fmean(rollout.reward[i].item() for i in members)
        scores |= {i: rollout.reward[i].item() - mean for i in members}
    return scores


def naive_advantages(case: Case, beta: float, lam: float, estimator: str) -> dict[tuple[int, int], float]:
    raw = {}
    for i in naive_scores(case):
        columns = actions(case.batch.rollout, i)
        steps = [
            beta * (case.batch.now.logprobs[i, t] - case.batch.now.ref_logprobs[i, t]).item()
            - beta * naive_kl(case, i, t, estimator)
            for t in columns
        ]
        for k, t in enumerate(columns):
            raw[i, t] = sum(lam ** (m - k) * steps[m] for m in range(k, len(columns)))
    mean, var = statistics.fmean(raw.values()), statistics.pvariance(raw.values())
    return {at: (a - mean) / math.sqrt(var + (0.2 * beta) ** 2) for at, a in raw.items()}


@pytest.mark.filterwarnings("ignore:vimpo")
@pytest.mark.parametrize("repeat", range(2))
@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.05, "actor_ratio": 0.1},
        {"beta": 5e-4, "actor_coef": 5e-3, "lam": 0.9},
        {"beta": 0.2, "actor_ratio": 0.1, "estimator": "k3", "lam": 0.5},
        {"beta": 0.05, "actor_coef": 0.0, "clip_low": 0.05, "clip_high": 0.1, "dual_clip": 1.1},
        {"beta": 0.05, "actor_coef": 0.5, "clip_low": 0.05, "clip_high": 0.1, "dual_clip": 1.1},
    ],
)
def test_the_loss_is_the_formula(options: dict[str, Any], repeat: int) -> None:
    case = fresh_case()
    batch, new = case.batch, case.new
    beta, lam, estimator = options["beta"], options.get("lam", 1.0), options.get("estimator", "exact")
    scores, advantages = naive_scores(case), naive_advantages(case, beta, lam, estimator)
    rms = math.sqrt(statistics.fmean(s * s for s in scores.values()))
    c_a = options.get("actor_coef", options.get("actor_ratio", 0.0) * beta * len(advantages) / len(scores) * rms)
    importance = torch.rand(batch.mask.shape, dtype=torch.float64) if repeat else None

    naive, value_loss = torch.zeros((), dtype=torch.float64), 0.0
    for i, score in scores.items():
        total: Tensor | float = -score
        for t in actions(batch.rollout, i):
            total = total + beta * (new.logprobs[i, t] - batch.now.ref_logprobs[i, t])
            total = total - beta * naive_kl(case, i, t, estimator)
        term = total**2 / 2
        value_loss += term.item() / len(scores)
        naive = naive + term / len(scores)
    for (i, t), a in advantages.items():
        ratio = (new.logprobs[i, t] - batch.old.logprobs[i, t]).exp()
        term = naive_surrogate(
            ratio, a, options.get("clip_low", 0.2), options.get("clip_high", 0.28), options.get("dual_clip", 10.0)
        )
        naive = naive + c_a * term * (1.0 if importance is None else importance[i, t]) / len(advantages)

    algorithm = build(**options)
    if c_a == 0:  # without an actor part KL_t and the reference come from the update's own forward
        new = observing(case)
    targets = algorithm.advantage(batch, {})
    targets.importance = importance
    loss, metrics = algorithm.policy_loss(new, batch, targets)
    assert_same(loss, naive, case)
    for i in range(len(batch.rollout.keys)):
        assert targets.scores[i].item() == pytest.approx(scores.get(i, 0.0))
        for t in range(batch.mask.shape[1]) if c_a else ():
            assert targets.get("advantages")[i, t].item() == pytest.approx(advantages.get((i, t), 0.0), abs=1e-9)
    assert targets.coefs["vimpo/actor_coef"] == pytest.approx(c_a)
    assert targets.scalars["vimpo/target_rms"] == pytest.approx(rms)
    assert targets.scalars["vimpo/actor_ratio"] == pytest.approx(c_a / (beta * len(advantages) / len(scores) * rms))
    total, weight = metrics["vimpo/value_loss"]
    assert (total / weight).item() == pytest.approx(value_loss)
    total, weight = metrics["policy/kl"]
    kl = statistics.fmean(naive_kl(case, i, t, estimator) for i, t in advantages)
    assert (total / weight).item() == pytest.approx(kl)


def test_soft_regresses_the_sum_of_rho_on_the_soft_advantage() -> None:
    case, beta = fresh_case(), 0.1
    batch, naive = case.batch, torch.zeros((), dtype=torch.float64)
    for members in by_group(batch.rollout).values():
        kls = [sum(batch.old.token_kl[i, t].item() for t in actions(batch.rollout, i)) for i in members]
        rewards = [batch.rollout.reward[i].item() for i in members]
        baseline = statistics.fmean(r - beta * kl for r, kl in zip(rewards, kls, strict=True))
        for i, reward in zip(members, rewards, strict=True):
            columns = actions(batch.rollout, i)
            rho = sum(beta * (case.new.logprobs[i, t] - batch.old.ref_logprobs[i, t]) for t in columns)
            naive = naive + (rho - (reward - baseline)) ** 2 / 2 / batch.n_sequences
    algorithm = build(beta=beta, value="soft")
    loss, _ = algorithm.policy_loss(case.new, batch, algorithm.advantage(batch, {}))
    assert_same(loss, naive, case)


def at_the_reference(case: Case, noise: float = 0.0) -> None:
    """Make the policy the reference, up to float noise of this size."""
    batch = case.batch
    ref = batch.now.get("ref_logprobs")
    batch.now.logprobs = ref + noise * torch.randn_like(ref)
    batch.old.logprobs = batch.now.logprobs.clone()
    batch.now.token_kl = torch.zeros_like(ref) + (noise * torch.randn_like(ref)) ** 2
    case.new = dataclasses.replace(batch.now, logprobs=batch.now.logprobs.clone().requires_grad_())


def test_at_the_reference_the_actors_part_is_exactly_0() -> None:
    case = fresh_case()
    at_the_reference(case)
    algorithm = build()
    targets = algorithm.advantage(case.batch, {})
    assert targets.advantages is not None
    assert torch.equal(targets.advantages, torch.zeros_like(targets.advantages))
    loss, metrics = algorithm.policy_loss(case.new, case.batch, targets)
    assert metrics["vimpo/actor_loss"][0].item() == 0
    value_alone = build(actor_coef=0.0)
    alone, _ = value_alone.policy_loss(case.new, case.batch, value_alone.advantage(case.batch, {}))
    grads = [torch.autograd.grad(x, [case.new.logprobs])[0] for x in (loss, alone)]
    assert torch.equal(*grads)
    explained = metrics["vimpo/explained"]
    assert explained[0].item() == pytest.approx(0)


def test_float_noise_between_two_forwards_is_not_whitened_to_unit_size() -> None:
    case = fresh_case(length=12)
    at_the_reference(case, noise=1e-6)
    targets = build(beta=5e-4).advantage(case.batch, {})
    assert targets.advantages is not None
    assert 0 < targets.advantages.abs().max() < 1e-4


def test_the_actors_weight_is_scale_free() -> None:
    """It grows with beta and with the rewards' scale, as the value loss's gradient does."""
    case = fresh_case()
    before = build(beta=0.01).advantage(case.batch, {})
    case.batch.rollout.reward *= 3
    after = build(beta=0.02).advantage(case.batch, {})
    assert before.scalars["vimpo/actor_ratio"] == pytest.approx(0.0125)
    assert after.coefs["vimpo/actor_coef"] == pytest.approx(6 * before.coefs["vimpo/actor_coef"])


def test_equal_rewards_leave_a_pull_to_the_reference_and_no_actor() -> None:
    case = fresh_case(per_group=8)
    case.batch.rollout.reward = torch.where(case.batch.rollout.valid, torch.rand(()), NAN)
    algorithm = build()
    targets = algorithm.advantage(case.batch, {})
    assert targets.coefs["vimpo/actor_coef"] == 0
    assert targets.scalars["vimpo/target_rms"] == 0
    assert "vimpo/actor_ratio" not in targets.scalars
    loss, _ = algorithm.policy_loss(case.new, case.batch, targets)
    (grad,) = torch.autograd.grad(loss, [case.new.get("logprobs")])
    assert grad[case.batch.mask].any()


def test_a_heavy_actor_is_warned_about() -> None:
    case = fresh_case()
    with pytest.warns(UserWarning, match=r"the actor part weighs more than 0\.2 .*lower actor_coef or actor_ratio"):
        build(actor_ratio=0.21).advantage(case.batch, {})
    with pytest.warns(UserWarning, match="vimpo"):
        build(beta=5e-4, actor_coef=5e-3 * 100).advantage(case.batch, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(actor_ratio=0.19).advantage(case.batch, {})


def test_a_heavy_actor_is_warned_about_once_a_process() -> None:
    """What a checkpoint holds does not keep the process that resumes from being warned."""
    case, state = fresh_case(), {}
    first, resumed = (build(actor_ratio=0.3).advantage for _ in range(2))
    with pytest.warns(UserWarning, match="vimpo"):
        first(case.batch, state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first(case.batch, state)
    assert not state
    with pytest.warns(UserWarning, match="vimpo"):
        resumed(case.batch, state)


def test_it_asks_for_what_it_reads_and_no_more() -> None:
    assert build().needs.now == {"logprobs", "ref_logprobs", "token_kl"}
    assert build(estimator="k3").needs.now == {"logprobs", "ref_logprobs"}
    assert build().needs.old == frozenset()
    assert build(value="soft").needs.old == {"logprobs", "ref_logprobs", "token_kl"}
    assert build(value="soft").needs.now == frozenset()
    assert build().needs.grad == {"logprobs"}
    assert build().compares_groups


@pytest.mark.parametrize(
    "options", [{"whiten": "running"}, {"actor_coef": 0.0}, {"actor_ratio": 0.0, "whiten": "running"}]
)
def test_what_needs_no_pass_before_the_update_is_observed_in_it(options: dict[str, Any]) -> None:
    algorithm = build(**options)
    assert not algorithm.needs.old | algorithm.needs.now
    assert algorithm.needs.observe == {"ref_logprobs", "token_kl"}
    assert build(estimator="k3", **options).needs.observe == {"ref_logprobs"}
    assert algorithm.gives == algorithm.reads == {"scores", "coefs"}
    case = fresh_case()
    targets = algorithm.advantage(dataclasses.replace(case.batch, old=TokenStats(), now=TokenStats()), {})
    assert targets.advantages is None
    assert targets.credit == {}


@pytest.mark.filterwarnings("ignore:vimpo")
@pytest.mark.parametrize("estimator", ["exact", "k3"])
@pytest.mark.parametrize("lam", [1.0, 0.6])
def test_by_the_batchs_own_mean_and_spread_running_is_batch(estimator: str, lam: float) -> None:
    """Loss and gradient, where what is known of former updates is what the batch itself would say."""
    case = fresh_case(off_policy=0.0)
    batch, new = case.batch, observing(case)
    batch.now.logprobs = new.get("logprobs").detach()
    options = {"beta": 0.05, "actor_ratio": 0.5, "estimator": estimator, "lam": lam}
    whole, running = build(**options), build(whiten="running", **options)
    expected, before = whole.policy_loss(new, batch, whole.advantage(batch, {}))

    steps = torch.zeros_like(batch.now.logprobs)
    for i in naive_scores(case):
        later = 0.0
        for t in reversed(actions(batch.rollout, i)):
            lr = (batch.now.logprobs[i, t] - batch.now.get("ref_logprobs")[i, t]).item()
            steps[i, t] = later = 0.05 * (lr - naive_kl(case, i, t, estimator)) + lam * later
    raw = steps[batch.mask]
    state = {"mean": raw.mean().item(), "variance": raw.var(correction=0).item()}
    found, metrics = running.policy_loss(new, batch, running.advantage(batch, state))
    assert_same(found, expected, case)
    for name, pair in before.items():
        assert [x.item() for x in metrics[name]] == pytest.approx([x.item() for x in pair], rel=1e-9, abs=1e-12), name
    n = batch.n_tokens
    assert [x.item() for x in metrics["vimpo/whitened_mean"]] == pytest.approx([0, n], abs=1e-9)
    assert metrics["vimpo/whitened_square"][0].item() / n == pytest.approx(
        state["variance"] / (state["variance"] + (0.2 * 0.05) ** 2)
    )


@pytest.mark.filterwarnings("ignore:vimpo")
def test_the_value_loss_is_the_same_however_the_advantages_are_whitened() -> None:
    """And without an actor part it is all there is: with its gradient that of the loss with KL_t measured before."""
    case = fresh_case(off_policy=0.0)
    batch, new = case.batch, observing(case)
    batch.now.logprobs = new.get("logprobs").detach()
    grads, losses = [], []
    # An actor part of weight 1e-30 is none, but asks for the pass.
    for options in ({"actor_coef": 1e-30}, {"actor_coef": 0.0}, {"actor_coef": 1e-30, "whiten": "running"}):
        algorithm = build(beta=0.05, **options)
        loss, metrics = algorithm.policy_loss(new, batch, algorithm.advantage(batch, {"mean": 0.1, "variance": 2.0}))
        grads.append(torch.autograd.grad(loss, [new.logprobs])[0][batch.mask])
        losses.append((loss.item(), metrics["vimpo/value_loss"][0].item()))
    assert grads[0].any()
    for grad, pair in zip(grads[1:], losses[1:], strict=True):
        torch.testing.assert_close(grad, grads[0], rtol=1e-12, atol=1e-15)
        assert pair == pytest.approx(losses[0], rel=1e-12)


def test_mean_and_spread_follow_the_updates() -> None:
    """From the first, whose every A_t is 0 and whose actor part is off."""
    algorithm, beta, state = build(beta=0.05, actor_coef=0.01, whiten="running"), 0.05, {}
    case = fresh_case()
    at_the_reference(case)
    mean = variance = 0.0
    for update in range(4):
        targets = algorithm.advantage(case.batch, state)
        assert targets.coefs == {
            "vimpo/actor_coef": 0.01 if update else 0.0,
            "vimpo/running_mean": pytest.approx(mean),
            "vimpo/running_scale": pytest.approx(math.sqrt(variance + (0.2 * beta) ** 2)),
        }
        _, metrics = algorithm.policy_loss(case.new, case.batch, targets)
        algorithm.after_update({name: (a / b).item() for name, (a, b) in metrics.items()}, state)
        new, raw = case.new, []
        for i in naive_scores(case):
            later = 0.0
            for t in reversed(actions(case.batch.rollout, i)):
                lr = (new.get("logprobs")[i, t] - new.get("ref_logprobs")[i, t]).item()
                later += beta * (lr - new.get("token_kl")[i, t].item())
                raw.append(later)
        weight = 0.5 if update else 1.0
        mean += weight * (statistics.fmean(raw) - mean)
        variance += weight * (statistics.pvariance(raw) - variance)
        assert state == {"mean": pytest.approx(mean, abs=1e-15), "variance": pytest.approx(variance, abs=1e-15)}
        case = fresh_case()
    assert variance > 0


def test_an_update_with_another_loss_leaves_the_running_mean_alone() -> None:
    state: dict[str, Any] = {}
    build(whiten="running").after_update({"policy/loss": 1.0}, state)
    assert state == {}


def test_k1_is_refused_by_name_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="k1 cannot be VIMPO's estimator") as caught:
        build(estimator="k1")
    assert "rho - kappa is 0 whatever the policy" in str(caught.value)
    assert "Set exact or k3" in str(caught.value)
    assert caught.value.exit_code == 2
    run = rlkit_config.load("embedded", ["algo.estimator=k1"])
    with pytest.raises(ConfigError, match=r"'algo\.estimator': k1 cannot be VIMPO's estimator"):
        rlkit_config.resolve(run)


def test_the_actors_weight_is_said_in_one_way() -> None:
    with pytest.raises(ConfigError, match="actor_ratio and actor_coef both set the actor part's weight"):
        build(actor_ratio=0.1, actor_coef=0.1)
    with pytest.raises(ConfigError, match="actor_ratio is null and actor_coef is not given"):
        build(actor_ratio=None)
    for option in ({"actor_ratio": 0.1}, {"actor_coef": 0.1}):
        with pytest.raises(ConfigError, match="value: soft has no actor part"):
            build(value="soft", **option)
    with pytest.raises(ConfigError, match=r"value: soft has no actor part to whiten.*leave out whiten"):
        build(value="soft", whiten="running")
    with pytest.raises(ConfigError, match="whiten"):
        build(whiten="runing")


@pytest.mark.parametrize(
    "options", [{}, {"actor_coef": 0.005}, {"value": "soft"}, {"actor_ratio": 0.0}, {"whiten": "running"}]
)
def test_resolved_options_read_back_as_themselves(options: dict[str, Any]) -> None:
    model = registry.find("algorithms", "vimpo").options
    resolved = model.model_validate(options).model_dump(mode="json")
    assert model.model_validate(resolved).model_dump(mode="json") == resolved


def test_the_loss_uses_no_number_that_is_there_for_the_log() -> None:
    case = fresh_case()
    algorithm = build(actor_coef=0.05)
    targets = algorithm.advantage(case.batch, {})
    loss, _ = algorithm.policy_loss(case.new, case.batch, targets)
    targets.scalars = {}
    assert algorithm.policy_loss(case.new, case.batch, targets)[0].equal(loss)
    targets.coefs = {name: 2 * value for name, value in targets.coefs.items()}
    assert not algorithm.policy_loss(case.new, case.batch, targets)[0].equal(loss)
