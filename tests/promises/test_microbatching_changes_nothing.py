"""How a batch is cut to fit into memory does not show in what is learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_worker import run, settings

SEED = 5


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_any_token_budget_gives_the_same_updates(stage: int, models: dict[str, Path]) -> None:
    found = {
        budget: run(
            "learn",
            settings(models["tied"], engine={"zero_stage": stage}, batch={"tokens_per_microbatch": budget}),
            models["reference"],
            SEED,
        )
        for budget in (1, 45, 10_000)
    }
    whole = found[10_000]
    for budget in (1, 45):
        for name, values in whole["before"].items():
            torch.testing.assert_close(found[budget]["before"][name], values, rtol=1e-5, atol=2e-5)
        for name, gradient in whole["gradients"][0].items():
            assert (found[budget]["gradients"][0][name] - gradient).norm() < 1e-5 * gradient.norm(), name
        for name, weight in whole["weights"].items():
            assert (found[budget]["weights"][name] - weight).norm() < 1e-5 * weight.norm(), name
        for here, there in zip(found[budget]["metrics"], whole["metrics"], strict=True):
            assert here == pytest.approx(there, rel=1e-4)
