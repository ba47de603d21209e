"""A run that samples with vLLM learns from what vLLM drew, and what it saves loads into vLLM again."""

from __future__ import annotations

from pathlib import Path

import rlkit
from rlkit import config as configs
from rlkit.engine import checkpoint
from rlkit.records.folder import RunFolder


def test_a_run_and_one_from_its_export(tmp_path: Path) -> None:
    settings = ["sampler=vllm", "eval.problems=64", f"out={tmp_path}", "sampling.check_every=2"]
    first = rlkit.train(configs.load("embedded_xs", ["name=first", "steps=8", *settings]), quiet=True).folder
    metrics = RunFolder.open(first).read_metrics()
    assert metrics[-1]["reward/mean"] > metrics[1]["reward/mean"] + 0.1
    assert max(row["sampler/gap_max"] for row in metrics[1:]) < 1e-4

    newest = checkpoint.latest(first / "checkpoints")
    assert newest is not None
    settings += ["name=second", "steps=1", f"model.path={newest / 'hf'}"]
    second = RunFolder.open(rlkit.train(configs.load("embedded_xs", settings), quiet=True)).read_metrics()
    assert second[1]["sampler/gap_max"] < 1e-4
    # The same seeds, the same weights, the same problems.
    assert second[0]["eval/heldout/mean@1"] == metrics[-1]["eval/heldout/mean@1"]
