"""`--nproc 2` makes the run that one rank makes: the same prompts and samples, the same weights but for rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

ACTS = [
    "--plugin", str(Path(__file__).parents[1] / "acting.py"), "-s", "environment={kind: sums, turns: 2, opens: Well}",
    "-s", "reward=[]", "-s", "sampling.max_tokens=48",
]  # fmt: skip


@pytest.mark.parametrize("more", [[], pytest.param(ACTS, marks=pytest.mark.slow, id="environment")])
def test_one_rank_and_two(more: list[str], tmp_path: Path) -> None:
    for ranks in ("1", "2"):
        command = [
            sys.executable, "-m", "rlkit.cli", "run", "embedded_xs", "--algo", "ppo", "--noise", "flip:0.25",
            "--nproc", ranks, "--name", ranks, "--out", str(tmp_path), "-s", "steps=2",
            "-s", "batch.prompts_per_step=5", "-s", "batch.samples_per_prompt=3", "-s", "eval.problems=8",
            "-s", "optimizer.lr=1e-5", *more,
        ]  # fmt: skip
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for step in (1, 2):
        one, two = (
            pq.read_table(tmp_path / ranks / "rollouts" / f"step-{step:06d}.parquet").to_pydict() for ranks in "12"
        )
        for column in ("prompt_id", "prompt", "response", "turns", "tokens", "reward"):
            assert one[column] == two[column]
    one, two = (
        load_file(tmp_path / ranks / "checkpoints" / "step-00000002" / "hf" / "model.safetensors") for ranks in "12"
    )
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6)
