"""Every registered algorithm, advantage and loss keeps its contract, the two laws first of all.

1. The loss does not depend on how the batch is cut.
2. What is not there does not count: padding, invalid samples, environment tokens.

The checks are `rlkit.conformance`'s, as anybody's plugin meets them; here in float64 and with NaN wherever nothing
should be read.
"""

from __future__ import annotations

from typing import Any

import pytest
from random_batches import fresh_seed

from rlkit import registry
from rlkit.conformance.batches import NAN, make_case
from rlkit.conformance.examining import examine
from rlkit.conformance.subject import Rigour, losses
from rlkit.interfaces.learning import Algorithm

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
        {"beta": 0.05, "residual": "turn"},
        {"beta": 0.05, "residual": "turn", "whiten": "running", "actor_ratio": 0.1, "lam": 0.7},
        {"beta": 0.05, "residual": "turn", "value": "soft"},
    ],
    "ppo": [{}, {"lam": 0.9, "gamma": 0.8, "reward_kl_coef": 0.1, "dual_clip": 3.0, "value_clip": None}],
    **dict.fromkeys(("dr_grpo", "dapo", "gspo", "cispo", "rloo"), GRPO_VARIANTS),
    "grpo": [*GRPO_VARIANTS, {"credit": "turn", "overlong_penalty": {"limit": 5, "buffer": 4}, "kl_coef": 0.1}],
}
EVERY = [
    pytest.param(name, options, id=f"{name}-{i}")
    for name in registry.names("algorithms")
    for i, options in enumerate(VARIANTS.get(name, [{}]))
]


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_an_algorithm_keeps_its_contract(name: str, options: dict[str, Any]) -> None:
    hold("algorithms", name, options)


@pytest.mark.parametrize("kind", ["advantages", "losses"])
def test_a_lone_advantage_or_loss_keeps_its_contract(kind: registry.Kind) -> None:
    for name in registry.names(kind):
        hold(kind, name, {})


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_part_without_tokens_weighs_nothing(name: str, options: dict[str, Any]) -> None:
    """Ranks that are short of rows run such micro-batches: a finite 0 with a gradient of zeros."""
    algorithm: Algorithm = registry.build("algorithms", name, options)
    case = make_case(5, p_invalid=1.0)
    loss, _ = losses(algorithm, case.new, case.batch, algorithm.advantage(case.batch, {}))
    assert loss.item() == 0
    loss.backward()
    for leaf in case.leaves():
        assert leaf.grad is None or not leaf.grad.any()
    assert case.new.get("logprobs").grad is not None


def hold(kind: registry.Kind, name: str, options: dict[str, Any]) -> None:
    for _ in range(2):
        findings = list(examine(registry.find(kind, name), options, rigour=Rigour(fresh_seed(), 1e-9, NAN)))
        assert len(findings) == 11
        assert not [each for each in findings if each.wrong or each.left_out]
