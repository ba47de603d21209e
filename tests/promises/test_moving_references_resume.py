"""Runs against a moving reference: killed and resumed they are the straight run; and vimpo_auto has nothing to tune."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rlkit import config as configs
from rlkit import registry
from rlkit.assembly import run as runs
from rlkit.embedded import resolve
from rlkit.records.folder import RunFolder

pytestmark = pytest.mark.slow

SMALL = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4", "checkpoint.every=2", "steps=4"]


def trained(out: Path, name: str, algo: str, *more: str) -> Path:
    config = configs.load("embedded_xs", [*SMALL, f"out={out}", f"name={name}", *more], algo)
    return runs.train(config, quiet=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step-00000004" / "hf" / "model.safetensors")


def untimed(folder: Path) -> list[dict[str, float]]:
    rows = RunFolder.open(folder).read_metrics()
    return [
        {name: value for name, value in row.items() if name.partition("/")[0] not in {"time", "throughput", "memory"}}
        for row in rows
    ]


@pytest.mark.parametrize(
    ("algo", "more"),
    [
        ("vimpo", ["reference=average", "batch.minibatches=2"]),
        ("vimpo", ["reference={kind: average, by: update, decay: 0.9}", "model.lora={rank: 4}", "optimizer.lr=2e-3"]),
        ("grpo", ["reference={kind: copy, every: 3}", "algo.kl_coef=0.1", "algo.kl_estimator=exact"]),
        ("vimpo_auto", ["batch.epochs=2"]),
        ("vimpo", ["algo.whiten=running", "algo.actor_ratio=0.1"]),
    ],
    ids=["average", "lora", "copy", "vimpo_auto", "running_whitening"],
)
def test_resume_equals_a_straight_run(algo: str, more: list[str], tmp_path: Path) -> None:
    straight = trained(tmp_path, "straight", algo, *more)
    halves = tmp_path / "halves"
    shutil.copytree(straight, halves)
    shutil.rmtree(halves / "checkpoints" / "step-00000004")
    config = configs.load(str(halves / "config.yaml")).model_copy(update={"name": "halves"})
    runs.train(config, resume=True, quiet=True)
    for name, weight in weights(straight).items():
        assert torch.equal(weight, weights(halves)[name]), name
    assert untimed(straight) == untimed(halves)
    kls = [row["policy/kl"] for row in untimed(straight)[1:]]
    assert max(kls) > 0


def test_grpo_with_exact_kl_feels_the_average(tmp_path: Path) -> None:
    """The KL to what follows the policy stays below that to what stands still."""
    common = ["algo.kl_coef=0.01", "algo.kl_estimator=exact", "optimizer.lr=1e-3", "steps=6"]
    frozen = untimed(trained(tmp_path, "frozen", "grpo", *common))
    average = untimed(trained(tmp_path, "average", "grpo", "reference=average", *common))
    assert average[2]["policy/kl"] < frozen[2]["policy/kl"]
    assert average[-1]["policy/kl"] < 0.7 * frozen[-1]["policy/kl"]


def samples(folder: Path, step: int) -> dict[str, Any]:
    table: dict[str, Any] = pq.read_table(folder / "rollouts" / f"step-{step:06d}.parquet").to_pydict()
    return table


def test_vimpo_auto_does_not_change_with_the_scale_of_rewards(tmp_path: Path) -> None:
    one = trained(tmp_path, "one", "vimpo_auto")
    ten = trained(tmp_path, "ten", "vimpo_auto", "reward.weight=10")
    for step in (1, 2, 3, 4):
        assert samples(one, step)["tokens"] == samples(ten, step)["tokens"]
        assert samples(ten, step)["reward"] == [10 * reward for reward in samples(one, step)["reward"]]
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(ten)[name], weight, rtol=1e-4, atol=1e-6)
    start = load_file(Path(resolve("embedded:xs")) / "model.safetensors")
    assert max(float((start[n] - w).abs().max()) for n, w in weights(one).items()) > 1e-4


def test_vimpo_auto_has_no_beta() -> None:
    assert not {"beta", "actor_ratio", "actor_coef"} & set(
        registry.find("algorithms", "vimpo_auto").options.model_fields
    )
    resolved = configs.resolve(configs.load("embedded_xs", [], "vimpo_auto"))
    assert resolved.reference == configs.AverageReference(decay=0.8, by="rollout")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["algo=vimpo", "reference=none"], "reference: none, but vimpo compares the policy with one"),
        (["algo=grpo", "reference=average"], "grpo as set here compares with no reference"),
        (
            ["algo=vimpo", "reference={kind: average, dekay: 0.5}"],
            "unknown key 'dekay' in 'reference'; did you mean 'decay'",
        ),
        (["algo=vimpo", "reference=averige"], "'reference': there is no 'averige'; did you mean 'average'"),
        (["algo=vimpo", "reference=copy"], "'reference.every' is missing"),
        (["algo=vimpo", "reference={kind: copy, every: 2, decay: 0.5}"], "unknown key 'decay' in 'reference'"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(arguments: list[str], said: str) -> None:
    from click.testing import CliRunner

    from rlkit.cli import main

    result = CliRunner().invoke(main, ["run", "embedded_xs", "--dry-run", *arguments])
    assert result.exit_code == 2, result.output
    assert said in result.output
