"""The two laws that every registered algorithm obeys.

1. The loss does not depend on how the batch is cut.
2. What is not there does not count: padding, invalid samples, environment tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batches import Case, bare, make_case
from torch import Tensor

from rlkit import registry
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, Targets, TokenStats

GRPO_VARIANTS: list[dict[str, Any]] = [
    {},
    {"kl_coef": 0.1, "kl_estimator": "k2", "entropy_coef": 0.01, "aggregation": "sequence_sum"},
    {"kl_coef": 0.1, "kl_estimator": "k3", "aggregation": "sequence_mean", "baseline": "leave_one_out"},
    {"kl_coef": 0.1, "kl_estimator": "exact", "aggregation": "token_mean", "divide_by_std": False},
    {"kl_coef": 0.1, "entropy_coef": 0.1, "ratio": "sequence"},
    {"overlong_penalty": {"limit": 5, "buffer": 4}, "ratio": "sequence"},
]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "vimpo": [
        {"beta": 0.05},
        {"beta": 0.05, "estimator": "k3", "lam": 0.7},
        {"beta": 0.05, "actor_coef": 0.01, "dual_clip": None},
        {"beta": 0.05, "actor_coef": 0.0},
        {"beta": 0.05, "whiten": "running", "actor_ratio": 0.1},
        {"beta": 0.05, "whiten": "running", "estimator": "k3", "lam": 0.7, "dual_clip": 1.5},
        {"beta": 0.05, "value": "soft"},
        {"beta": 0.05, "value": "soft", "estimator": "k3"},
    ],
    "ppo": [{}, {"lam": 0.9, "gamma": 0.8, "reward_kl_coef": 0.1, "dual_clip": 3.0, "value_clip": None}],
    **dict.fromkeys(("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"), GRPO_VARIANTS),
}
EVERY = [
    pytest.param(name, options, id=f"{name}-{i}")
    for name in registry.names("algorithms")
    for i, options in enumerate(VARIANTS.get(name, [{}]))
]

cases = st.builds(
    make_case,
    seed=st.integers(0, 2**31),
    groups=st.integers(1, 4),
    per_group=st.integers(2, 5),
    length=st.integers(1, 8),
    p_env=st.sampled_from([0.0, 0.4, 0.8]),
    p_invalid=st.sampled_from([0.0, 0.3, 0.7]),
    off_policy=st.sampled_from([0.0, 0.3, 3.0]),
    dense=st.booleans(),
)
few = settings(max_examples=15, deadline=None)


def build(name: str, options: dict[str, Any]) -> Algorithm:
    made: Algorithm = registry.build("algorithms", name, options)
    return made


def loss_of(algorithm: Algorithm, new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
    loss, metrics = algorithm.policy_loss(new, batch, targets)
    if algorithm.value_loss is not None:
        value, more = algorithm.value_loss(new.get("values"), batch, targets)
        loss, metrics = loss + value, metrics | more
    return loss, metrics


def remember(algorithm: Algorithm, metrics: dict[str, list[float]], state: dict[str, Any]) -> dict[str, Any]:
    """The state after an update that found these sums and weights."""
    algorithm.after_update({name: total / weight for name, (total, weight) in metrics.items() if weight}, state)
    return state


def known(algorithm: Algorithm, case: Case) -> dict[str, Any]:
    """What the algorithm knows once it has made an update on the case."""
    state: dict[str, Any] = {}
    _, metrics = loss_of(algorithm, case.new, case.batch, algorithm.advantage(case.batch, state))
    return remember(algorithm, {name: [float(x) for x in pair] for name, pair in metrics.items()}, state)


def gradients(loss: Tensor, case: Case) -> list[Tensor]:
    grads = torch.autograd.grad(loss, case.leaves(), allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, case.leaves(), strict=True)]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:vimpo")
@pytest.mark.parametrize(("name", "options"), EVERY)
@given(case=cases, seed=st.integers(0, 2**31), parts=st.integers(1, 5), weigh=st.booleans())
@few
def test_the_loss_does_not_depend_on_how_the_batch_is_cut(
    name: str, options: dict[str, Any], case: Case, seed: int, parts: int, weigh: bool
) -> None:
    algorithm, batch = build(name, options), case.batch
    rng = torch.Generator().manual_seed(seed)
    state = known(algorithm, case)
    targets = algorithm.advantage(batch, state)
    if weigh:
        targets.importance = torch.rand(batch.mask.shape, generator=rng, dtype=torch.float64)
    whole, metrics = loss_of(algorithm, case.new, batch, targets)
    assert whole.isfinite()

    rows = torch.randperm(len(batch.rollout.keys), generator=rng).tolist()
    owner = torch.randint(0, parts, (len(rows),), generator=rng).tolist()
    total, totals = torch.zeros((), dtype=torch.float64), {key: [0.0, 0.0] for key in metrics}
    for part in range(parts):  # a part may be empty
        mine = [row for row, o in zip(rows, owner, strict=True) if o == part]
        loss, some = loss_of(algorithm, case.new.rows(mine), batch.rows(mine), targets.rows(mine))
        total = total + loss
        assert some.keys() == metrics.keys()
        for key, (value, weight) in some.items():
            totals[key][0] += float(value)
            totals[key][1] += float(weight)

    close(total, whole)
    for a, b in zip(gradients(total, case), gradients(whole, case), strict=True):
        close(a, b)
    wholes = {key: [float(value), float(weight)] for key, (value, weight) in metrics.items()}
    for key, pair in wholes.items():
        close(torch.tensor(totals[key]), torch.tensor(pair))
    assert remember(algorithm, totals, dict(state)) == pytest.approx(remember(algorithm, wholes, dict(state)))


@pytest.mark.filterwarnings("ignore:vimpo")
@pytest.mark.parametrize(("name", "options"), EVERY)
@given(case=cases)
@few
def test_what_is_not_there_does_not_count(name: str, options: dict[str, Any], case: Case) -> None:
    """NaN stands wherever nothing should be read; the batch without any of that gives the same."""
    algorithm = build(name, options)
    small, places = bare(case)
    state, small_state = known(algorithm, case), known(algorithm, small)
    targets = algorithm.advantage(case.batch, state)
    small_targets = algorithm.advantage(small.batch, small_state)
    assert targets.scalars == pytest.approx(small_targets.scalars, rel=1e-9, abs=1e-11)
    assert state.keys() == small_state.keys()
    assert all(state[key] == pytest.approx(small_state[key]) for key in state)

    loss, metrics = loss_of(algorithm, case.new, case.batch, targets)
    small_loss, small_metrics = loss_of(algorithm, small.new, small.batch, small_targets)
    assert loss.isfinite()
    close(loss, small_loss)
    for big, little in zip(gradients(loss, case), gradients(small_loss, small), strict=True):
        close(torch.where(places >= 0, big.flatten()[places.clamp(min=0)], 0.0), little)
        close(big[~case.batch.mask], torch.zeros(int((~case.batch.mask).sum()), dtype=torch.float64))
    for key, pair in metrics.items():
        assert [float(x) for x in pair] == pytest.approx([float(x) for x in small_metrics[key]], rel=1e-9, abs=1e-11)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_part_without_tokens_weighs_nothing(name: str, options: dict[str, Any]) -> None:
    """Ranks that are short of rows run such micro-batches: a finite 0 with a gradient of zeros."""
    algorithm = build(name, options)
    case = make_case(5, p_invalid=1.0)
    targets = algorithm.advantage(case.batch, {})
    loss, _ = loss_of(algorithm, case.new, case.batch, targets)
    assert loss.item() == 0
    loss.backward()
    for leaf in case.leaves():
        assert leaf.grad is None or not leaf.grad.any()
    assert case.new.get("logprobs").grad is not None


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_needs_name_all_that_is_read(name: str, options: dict[str, Any]) -> None:
    """With everything else taken away, the algorithm still finds what it reads."""
    algorithm, case = build(name, options), make_case(6)
    needs = algorithm.needs
    state = known(algorithm, case)

    def only(stats: TokenStats, wanted: frozenset[str]) -> TokenStats:
        return TokenStats(**{stat: getattr(stats, stat) for stat in wanted})

    batch = case.batch
    advantage_old, values = needs.old, case.new.get("values")
    batch.old, batch.now = only(batch.old, advantage_old), only(batch.now, needs.now)
    targets = algorithm.advantage(batch, state)
    batch.old.logprobs = case.batch.rollout.sampler_logprobs  # the engine always gives it to the loss
    loss, _ = algorithm.policy_loss(only(case.new, needs.grad | needs.observe), batch, targets)
    assert loss.isfinite()
    if algorithm.value_loss is not None:
        assert algorithm.value_loss(values, batch, targets)[0].isfinite()
    assert algorithm.reads <= algorithm.gives
