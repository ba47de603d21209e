"""One seed decides a run: the same config gives the same one, bit for bit, on the CPU. And what an algorithm makes of a
fixed rollout stays what it was, whatever is rebuilt around it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from traces import KEPT, Trace, trace

import rlkit
from rlkit import registry
from rlkit.records.folder import RunFolder

CLOSE, ALONG = 2e-3, 1e-2
"""Ten times what other instructions for the same arithmetic change (AVX-512 against plain): of a number, and of a way
along a direction as a share of the whole way."""
CLOCKS = {"time", "throughput", "memory"}


def _apart(now: Trace, kept: Trace) -> list[str]:
    """The numbers that are not as they were."""
    found = []
    for step, (here, there) in enumerate(zip(now, kept, strict=True), 1):
        for name in sorted(here.keys() | there.keys()):
            one, other = here.get(name, math.nan), there.get(name, math.nan)
            room = CLOSE * abs(other) + 1e-7
            if name.startswith("along/"):
                room = ALONG * there[f"moved/{name.removeprefix('along/')}"]
            if not abs(one - other) <= room:
                found.append(f"step {step}, {name}: {other} is now {one}")
    return found


@pytest.fixture(scope="module")
def kept() -> dict[str, Trace]:
    found: dict[str, Trace] = json.loads(KEPT.read_text())
    return found


def test_every_algorithm_has_a_trace(kept: dict[str, Trace]) -> None:
    own = {name for name in registry.names("algorithms") if "algorithms" in registry.find("algorithms", name).origin}
    assert own == kept.keys()


@pytest.mark.parametrize("algo", sorted(json.loads(KEPT.read_text())))
def test_an_algorithm_makes_of_a_rollout_what_it_did(algo: str, kept: dict[str, Trace]) -> None:
    assert _apart(trace(algo), kept[algo]) == []


@pytest.mark.parametrize("change", ["algo.kl_coef=0.051", "algo.clip_high=0.21", "optimizer.lr=3.01e-4"])
def test_a_trace_tells_a_small_change(change: str, kept: dict[str, Trace]) -> None:
    assert _apart(trace("grpo", change), kept["grpo"])


@pytest.mark.parametrize("algo", ["ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vimpo", "grpo"))])
def test_the_same_config_is_the_same_run(algo: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "batch.prompts_per_step": 4, "batch.samples_per_prompt": 4, "batch.minibatches": 2, "eval.problems": 8,
    }  # fmt: skip

    def made(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, torch.Tensor]]:
        rlkit.train(
            "embedded_xs", algo=algo, steps=2, seed=5, noise="group_flip:0.25", out=tmp_path, name=name,
            settings=settings, quiet=True,
        )  # fmt: skip
        run = RunFolder.open(tmp_path / name)
        rows = [
            {key: value for key, value in row.items() if key.partition("/")[0] not in CLOCKS}
            for row in run.read_metrics()
        ]
        samples = [pq.read_table(run.rollout_file(step)).to_pydict() for step in (1, 2)]
        return rows, samples, load_file(run.newest_model() / "model.safetensors")

    metrics, samples, weights = made("one")
    again, drawn, learnt = made("two")
    assert again == metrics
    assert drawn == samples
    assert all(torch.equal(learnt[name], weight) for name, weight in weights.items())
