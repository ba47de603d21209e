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
from rlkit.conformance.batches import NAN
from rlkit.conformance.examining import examine
from rlkit.conformance.subject import Rigour

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
PRESETS = ("dr_grpo", "dapo", "gspo", "cispo", "rloo")
"""GRPO with other defaults: with its variants too they are left to the slow tests."""
EVERY = [
    pytest.param(name, options, id=f"{name}-{i}", marks=pytest.mark.slow if name in PRESETS and i else ())
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


def hold(kind: registry.Kind, name: str, options: dict[str, Any]) -> None:
    findings = list(examine(registry.find(kind, name), options, rigour=Rigour(fresh_seed(), 1e-9, NAN)))
    assert len(findings) == 11
    assert not [each for each in findings if each.wrong or each.left_out]
