"""The arms of a sweep meet the same prompts, draws and noise; one that dies ends no other, and --resume makes what is
missing and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rlkit.records.folder import RunFolder
from rlkit.sweeps.sweep_folder import SweepFolder

SMALL = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4", "sampling.max_tokens=16"]
ALGOS = ("vimpo", "grpo", "ppo")


def command(*arguments: str) -> list[str]:
    settings = [part for setting in SMALL for part in ("-s", setting)] if "--resume" not in arguments else []
    return [sys.executable, "-m", "rlkit", "sweep", *settings, *arguments]


def sweep(*arguments: str, exit_code: int = 0) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout + done.stderr


def samples(folder: Path, algo: str, seed: int, step: int) -> dict[str, list[Any]]:
    sweep = SweepFolder.open(folder)
    (run,) = [run for run in sweep.runs if (run.arm, run.seed) == (algo, seed)]
    table: dict[str, list[Any]] = pq.read_table(sweep.run_folder(run) / f"rollouts/step-{step:06d}.parquet").to_pydict()
    return table


def test_arms_are_paired_and_a_resume_makes_what_is_missing(tmp_path: Path) -> None:
    """One test, so that one process makes the six runs."""
    said = sweep(
        "--algos", ",".join(ALGOS), "--seeds", "0-1", "--noise", "group_flip:0.5+flip:0.1", "--base", "embedded_xs",
        "-s", "steps=3", "--jobs", "2", "--name", "paired", "--out", str(tmp_path),
    )  # fmt: skip
    assert "[6/6]" in said
    folder = tmp_path / "paired"
    for seed in (0, 1):
        for step in (1, 2, 3):
            check_that_prompts_and_noise_are_the_same(folder, seed, step)
        check_that_the_first_draws_are_the_same(folder, seed)
    check_that_seeds_differ(folder)
    check_that_noise_disturbs_some_and_not_all(folder)
    check_that_a_resume_makes_what_is_missing_and_only_that(folder)


def check_that_prompts_and_noise_are_the_same(folder: Path, seed: int, step: int) -> None:
    vimpo, *others = (samples(folder, algo, seed, step) for algo in ALGOS)
    flipped = [noisy != clean for noisy, clean in zip(vimpo["reward"], vimpo["clean_reward"], strict=True)]
    for other in others:
        for column in ("prompt_id", "occurrence", "index", "prompt"):
            assert other[column] == vimpo[column], (seed, step)
        there = [a != b for a, b in zip(other["reward"], other["clean_reward"], strict=True)]
        assert there == flipped, (seed, step)


def check_that_the_first_draws_are_the_same(folder: Path, seed: int) -> None:
    """Before the first update all policies are one, so what they sample is the same, token for token."""
    vimpo, *others = (samples(folder, algo, seed, 1) for algo in ALGOS)
    for other in others:
        assert other["tokens"] == vimpo["tokens"], seed
    assert samples(folder, "grpo", seed, 3)["tokens"] != vimpo["tokens"]


def check_that_seeds_differ(folder: Path) -> None:
    first, second = samples(folder, "vimpo", 0, 1), samples(folder, "vimpo", 1, 1)
    assert first["prompt_id"] != second["prompt_id"]
    assert first["tokens"] != second["tokens"]


@pytest.mark.slow
def test_arms_of_a_seed_begin_with_the_same_conversations(tmp_path: Path) -> None:
    acting = Path(__file__).parents[1] / "acting.py"
    sweep(
        "--algos", "vimpo,grpo", "--base", "embedded_xs", "--noise", "flip:0.3", "--plugin", str(acting),
        "-s", "environment={kind: sums, turns: 2, opens: Well}", "-s", "reward=[]", "-s", "steps=1",
        "-s", "sampling.max_tokens=48", "-s", "eval.every=0", "--name", "acts", "--out", str(tmp_path),
    )  # fmt: skip
    vimpo, grpo = (samples(tmp_path / "acts", algo, 0, 1) for algo in ("vimpo", "grpo"))
    assert any(len(turns) > 1 for turns in vimpo["turns"])
    for column in ("prompt_id", "prompt", "tokens", "turns", "info", "clean_reward", "reward"):
        assert grpo[column] == vimpo[column]
    assert vimpo["reward"] != vimpo["clean_reward"]


def check_that_noise_disturbs_some_and_not_all(folder: Path) -> None:
    pairs = [
        pair
        for step in (1, 2, 3)
        for table in [samples(folder, "ppo", 1, step)]
        for pair in zip(table["reward"], table["clean_reward"], strict=True)
    ]
    assert 0 < sum(noisy != clean for noisy, clean in pairs) < len(pairs)


def check_that_a_resume_makes_what_is_missing_and_only_that(folder: Path) -> None:
    swept = SweepFolder.open(folder)
    lost, *others = map(swept.run_folder, swept.runs)
    before = {file: file.stat().st_mtime_ns for run in others for file in run.rglob("*")}
    was = RunFolder.open(lost).read_metrics()
    for file in sorted(lost.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    said = sweep("--resume", str(folder))
    assert "5 of them are done" in said
    assert {file: file.stat().st_mtime_ns for run in others for file in run.rglob("*")} == before
    assert [row["reward/mean"] for row in RunFolder.open(lost).read_metrics()[1:]] == [
        row["reward/mean"] for row in was[1:]
    ]


PLUGIN = """
from rlkit import Algorithm, Targets, algorithm


@algorithm("fragile")
def fragile() -> Algorithm:
    "REINFORCE that fails once it is to learn."

    def advantage(batch, state):
        return Targets(advantages=batch.rollout.reward[:, None] * batch.mask)

    def loss(new, batch, targets):
        if {broken}:
            raise RuntimeError("no <b>luck</b> today")
        return -(new.get("logprobs") * targets.get("advantages"))[batch.mask].sum() / batch.n_tokens, {{}}

    return Algorithm(advantage=advantage, policy_loss=loss)
"""


def test_a_run_that_dies_ends_no_other_and_is_made_once_mended(tmp_path: Path) -> None:
    plugin, out = tmp_path / "fragile.py", tmp_path / "runs"
    plugin.write_text(PLUGIN.format(broken=True))
    common = ["--base", "embedded_xs", "--out", str(out), "--name", "mixed", "--plugin", str(plugin)]
    said = sweep("--algos", "fragile,grpo", *common, "-s", "steps=2", exit_code=1)
    assert "no <b>luck</b> today" in said
    assert "fragile-seed0 died after step 0 of 2; the others go on" in said
    assert "1 run died: fragile-seed0" in said
    assert RunFolder.open(out / "mixed/runs/grpo-seed0").read_metrics()[-1]["step"] == 2
    plugin.write_text(PLUGIN.format(broken=False))
    sweep("--resume", str(out / "mixed"))
    assert RunFolder.open(out / "mixed/runs/fragile-seed0").read_metrics()[-1]["step"] == 2


@pytest.mark.slow
def test_each_arm_is_tuned_alike_on_seeds_of_its_own_and_scored_with_the_best(tmp_path: Path) -> None:
    said = sweep(
        "--algos", "grpo,rloo", "--base", "embedded_xs", "--out", str(tmp_path), "--name", "tuned", "-s", "steps=2",
        "--tune", "lr=1e-4,1e-2", "--tune-seeds", "100", "--jobs", "2",
    )  # fmt: skip
    assert "tuned by reward/clean" in said
    tuning = SweepFolder.open(tmp_path / "tuned").read_tuning()
    assert [each.arm for each in tuning] == ["grpo", "rloo"]
    for each in tuning:
        assert [dict(trial.settings) for trial in each.trials] == [{"optimizer.lr": 1e-4}, {"optimizer.lr": 1e-2}]
        for trial in each.trials:
            lr = {1e-4: "0.0001", 1e-2: "0.01"}[trial.settings["optimizer.lr"]]
            run = RunFolder.open(tmp_path / f"tuned/tuning/{each.arm}-lr={lr}-seed100")
            assert run.read_config().optimizer.lr == trial.settings["optimizer.lr"]
            assert trial.scores["100"] == run.read_metrics()[-1]["reward/clean"]
        best = max(each.trials, key=lambda trial: trial.mean or 0.0)
        assert each.chosen == best.settings
        scored = RunFolder.open(tmp_path / f"tuned/runs/{each.arm}-seed0")
        assert scored.read_config().optimizer.lr == best.settings["optimizer.lr"]


def test_an_interrupted_sweep_saves_its_runs_and_goes_on(tmp_path: Path) -> None:
    arguments = ["--algos", "grpo", "--base", "embedded_xs", "--out", str(tmp_path), "--name", "cut", "-s", "steps=400"]
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "cut/runs/grpo-seed0/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"interrupted; go on with: rlkit sweep --resume {tmp_path / 'cut'}" in said
    done = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert 3 <= done < 400
    assert (metrics.parent / f"checkpoints/step-{done:08d}").is_dir()
