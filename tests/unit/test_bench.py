"""The benchmarks of steps run, and say what they have measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "rows"),
    [
        ("step.py", {"rlkit GRPO", "rlkit VIMPO"}),
        ("head.py", {"log-probs", "and entropy", "and exact KL"}),
        ("vimpo.py", {"VIMPO", "VIMPO, whiten: running", "VIMPO, all logits", "GRPO, exact KL", "GRPO, KL by k3"}),
        ("packing.py", {"padded", "packed", "packed, prompts shared"}),
        ("waiting.py", {"transformers"}),
        ("scale.py", {"tokens", "samples", "vocabulary", "parameters", "ranks"}),
        (
            "growth.py",
            {"collect", "assemble", "measure", "plan", "rows", "write"}
            | {f"advantage, {name}" for name in ("grpo", "vimpo", "ppo")},
        ),
    ],
)
def test_a_benchmark_runs_in_short(script: str, rows: set[str], tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    command = [sys.executable, str(BENCH / script), "--quick", "--json", str(file)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    found = json.loads(file.read_text())
    assert {row.get("what", row.get("grows")) for row in found["rows"]} == rows
    assert all(row["seconds"] > 0 for row in found["rows"] if "seconds" in row)
    assert found["about"]["threads"] >= 1
    assert ("name an environment with TRL by --trl-python" in made.stdout) == (script == "step.py")


@pytest.mark.slow
def test_both_schedules_are_timed_with_a_real_server(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    file = tmp_path / "found.json"
    command = [sys.executable, str(BENCH / "schedules.py"), "embedded_xs", "--rounds", "1", "--steps", "4"]
    small = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "sampling.max_tokens=8"]
    command += [part for setting in small for part in ("-s", setting)]
    made = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    found = json.loads(file.read_text())
    assert all(len(found[name]["step_s"]) == 2 for name in ("synchronous", "one_ahead"))
    assert all(found["synchronous"]["sample_s"])
    assert all(found["one_ahead"]["ahead_s"])
    assert "synchronous takes" in made.stdout
