"""Traces of steps, the operators of their phases, and the share of a GPU's peak."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from rlkit.cli import main
from rlkit.engine.flops import flops, has_experts, peak_of
from rlkit.engine.profiling import Profiler, phase

SMALL = ["batch.prompts_per_step=2", "batch.samples_per_prompt=2", "sampling.max_tokens=4", "eval.every=0"]
SMALL += ["eval.problems=2", "sampler=transformers"]


def one_step() -> None:
    x = torch.randn(200, 200)
    with phase("measure"):
        x @ x
    with phase("update"):
        x.cumsum(0).cumsum(0)
    x.sort()


def names(trace: Path) -> set[str]:
    return {
        event["name"] for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"] if "name" in event
    }


def test_each_operator_is_counted_to_its_phase(tmp_path: Path) -> None:
    profiler = Profiler(2, tmp_path / "profile")
    for step in (7, 8, 9, 10):
        with profiler.watch(step):
            one_step()
    traces = sorted((tmp_path / "profile").glob("*.json.gz"))
    assert [trace.name for trace in traces] == ["step-000008.json.gz", "step-000009.json.gz"]
    assert {"aten::mm", "aten::cumsum", "phase: update"} <= names(traces[0])
    sections = {part.partition(":")[0]: part for part in profiler.table_file.read_text().split("\n\n")}
    found = {name: [line.split()[1:] for line in sections[name].splitlines()[1:]] for name in ("measure", "update")}
    assert ["1", "aten::mm"] in found["measure"]
    assert ["2", "aten::cumsum"] in found["update"]
    assert "aten::cumsum" not in sections["measure"]
    assert "aten::sort" in sections["other"]
    assert str(profiler.said()).startswith("profile: 2 steps in ")


def test_who_asks_for_nothing_gets_nothing(tmp_path: Path) -> None:
    profiler = Profiler(0, tmp_path / "profile")
    for step in (1, 2, 3):
        with profiler.watch(step):
            one_step()
    assert profiler.said() is None
    assert not (tmp_path / "profile").exists()


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["run", *arguments])
    return result.exit_code, result.output


@pytest.mark.slow
def test_a_run_traces_steps_from_its_second_and_so_does_a_resume(tmp_path: Path) -> None:
    code, said = invoke("embedded_xs", *SMALL, "steps=3", "--profile", "1", "--out", str(tmp_path), "--name", "a")
    assert code == 0, said
    folder = tmp_path / "a" / "profile"
    assert f"profile: 1 step in {folder}" in said
    assert [file.name for file in folder.glob("*.json.gz")] == ["step-000002.json.gz"]
    table = (folder / "operators.txt").read_text()
    assert all(f"\n{name}: " in table for name in ("sample", "measure", "update", "sync"))
    code, said = invoke("--resume", str(tmp_path / "a"), "-s", "steps=4", "--profile", "2")
    assert code == 0, said
    assert "profile: nothing was traced. The first step is left out" in said
    code, said = invoke("--resume", str(tmp_path / "a"), "-s", "steps=6", "--profile", "2")
    assert code == 0, said
    assert sorted(file.name for file in folder.glob("*.json.gz")) == ["step-000002.json.gz", "step-000006.json.gz"]


@pytest.mark.parametrize("steps", ["0", "-3", "two"])
def test_a_number_of_steps_that_cannot_be_is_refused(steps: str) -> None:
    code, said = invoke("--profile", steps)
    assert code == 2
    assert "'--profile'" in said


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(gpu: str, peak: float | None) -> None:
    assert peak_of(gpu, "bfloat16") == peak
    assert peak_of(gpu, "float32") is None


def test_operations_are_those_of_the_formula() -> None:
    shapes = {"lm.embed.weight": [10, 4], "lm.layer.weight": [4, 4], "lm.norm.weight": [4]}
    size = sum(math.prod(shape) for shape in shapes.values())
    assert flops(shapes, "measure", 7) == 2 * size * 7
    assert flops(shapes, "update", 7) == 6 * size * 7
    adapted = shapes | {"lm.layer.lora_A.default.weight": [2, 4]}
    assert flops(adapted, "update", 7) == 4 * (size + 8) * 7
    assert not has_experts(adapted)
    assert has_experts({"lm.layers.0.mlp.experts.gate_up_proj": [4, 8, 4]})
