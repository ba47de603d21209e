"""Each algorithm learns the embedded task: the smallest model, one seed."""

from __future__ import annotations

from pathlib import Path

import pytest

import rlkit
from rlkit import config as configs
from rlkit.records.folder import RunFolder


@pytest.mark.parametrize("algo", ["vimpo", "grpo", "ppo"])
def test_it_learns(algo: str, tmp_path: Path) -> None:
    config = configs.load("embedded_xs", ["eval.every=0", f"out={tmp_path}"], algo)
    metrics = RunFolder.open(rlkit.train(config, quiet=True)).read_metrics()
    passed = [m["eval/heldout/mean@1"] for m in metrics if "eval/heldout/mean@1" in m]
    assert len(passed) == 2
    assert passed[0] < 0.5
    assert passed[1] > 0.7
    assert max(m["sampler/gap_max"] for m in metrics[1:]) < 1e-4


@pytest.mark.slow
def test_it_learns_over_turns(tmp_path: Path) -> None:
    config = configs.load("embedded_keys", ["steps=30", "eval.every=0", f"out={tmp_path}"], "vimpo")
    metrics = RunFolder.open(rlkit.train(config, quiet=True)).read_metrics()
    passed = [m["eval/heldout/mean@1"] for m in metrics if "eval/heldout/mean@1" in m]
    assert passed[0] < 0.3
    assert passed[1] > 0.45
    assert max(m["sampler/gap_max"] for m in metrics[1:-1]) < 1e-4
