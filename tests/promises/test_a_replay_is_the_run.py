"""A run replayed from its stored rollouts makes the same updates, bit for bit, and samples nothing; another algorithm
learns from the same samples; and what cannot be replayed is refused with what can."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import rlkit
from rlkit import config as configs
from rlkit.assembly import run as runs
from rlkit.cli import main
from rlkit.environments.pool import Environments
from rlkit.errors import ConfigError, RlkitError
from rlkit.generation.collector import Collector
from rlkit.inspection.steps import load_step
from rlkit.records.checkpoints import read_manifest
from rlkit.records.folder import RunFolder
from rlkit.scoring import Scorer

BESIDE = Path(__file__).parents[2] / "tools" / "bench" / "beside.py"
ACTING = Path(__file__).parents[1] / "acting.py"
SMALL = [
    "batch.prompts_per_step=4", "batch.samples_per_prompt=4", "optimizer.lr=1e-3", "batch.minibatches=2", "steps=3",
    "noise=[{kind: group_flip, prob: 0.25}]", "optimizer.schedule=linear",
]  # fmt: skip
SAVES = ["checkpoint.every=1", "checkpoint.keep=9"]
NOT_COMPARED = ("time", "throughput", "memory", "refill", "sampler", "replay")


def trained(out: Path, name: str, algo: str, *more: str) -> RunFolder:
    config = configs.load("embedded_xs", [f"out={out}", f"name={name}", *SMALL, *more], algo)
    return RunFolder.open(runs.train(config, quiet=True))


def weights(run: RunFolder, step: int = 3) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / f"step-{step:08d}" / "hf" / "model.safetensors")


def assert_same_weights(one: RunFolder, other: RunFolder) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def compared(run: RunFolder, since: int = 0) -> dict[float, dict[str, float]]:
    """Step -> its metrics, without those of the machine and those that sampling alone knows."""
    return {
        row["step"]: {
            name: value
            for name, value in row.items()
            if name.partition("/")[0] not in NOT_COMPARED and not name.startswith("policy/staleness")
        }
        for row in run.read_metrics()
        if row["step"] >= since
    }


def table(file: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(file).to_pydict()
    return columns


def assert_same(one: RunFolder, other: RunFolder, since: int = 0) -> None:
    assert_same_weights(one, other)
    assert compared(one, since) == compared(other, since)
    for step in range(max(since, 1), 4):
        assert table(one.rollout_file(step)) == table(other.rollout_file(step))
        assert table(one.credit_file(step)) == table(other.credit_file(step))


@pytest.fixture
def no_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The setting of problems of which none is held out, with which a replay must do without sampler and rewards."""
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(20, 40) for b in range(30, 32)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={tmp_path / 'data.jsonl'}"


def forbid(patched: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("a replay samples or scores")

    patched.setattr("rlkit.generation.build_sampler", fails)
    patched.setattr(Collector, "collect", fails)
    patched.setattr(Scorer, "submit", fails)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """VIMPO with a moving reference and two epochs."""
    more = ["reference.kind=average", "reference.decay=0.5", "batch.epochs=2", "eval.problems=6", "eval.every=2"]
    return trained(tmp_path_factory.mktemp("sampled"), "sampled", "vimpo", *more, *SAVES)


def test_the_same_settings_make_the_same_run(sampled: RunFolder, tmp_path: Path) -> None:
    replayed = RunFolder.open(rlkit.replay(sampled.path, out=tmp_path, quiet=True).folder)
    assert replayed.path == tmp_path / "sampled-replayed-vimpo"
    assert_same(sampled, replayed)
    assert {step for step, row in compared(replayed).items() if "eval/heldout/mean@1" in row} == {0, 2, 3}
    gaps = [
        [row[f"{whose}/gap_mean"] for row in run.read_metrics()[1:]]
        for whose, run in (("sampler", sampled), ("replay", replayed))
    ]
    assert gaps[0] == gaps[1]
    origin = replayed.read_provenance()["from"]
    assert origin == {"run": str(sampled.path), "how": "replay", "steps": [1, 3]}


@pytest.mark.slow
def test_a_part_begins_at_a_checkpoint_and_a_resume_goes_on(sampled: RunFolder, tmp_path: Path) -> None:
    part = rlkit.replay(sampled.path, steps=(2, 2), out=tmp_path, name="part", quiet=True)
    assert (part.step, part.steps, part.metrics["step"].tolist()) == (2, 2, [2])
    part.resume(steps=3, quiet=True)
    assert_same(sampled, RunFolder(part.folder), since=2)


def test_ppo_without_a_sampler(tmp_path: Path, no_sampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = trained(tmp_path, "ppo", "ppo", "batch.epochs=2", no_sampling)
    forbid(monkeypatch)
    replayed = RunFolder.open(rlkit.replay(source.path, quiet=True).folder)
    assert_same(source, replayed)


def test_conversations_whose_environment_is_not_asked_again(
    tmp_path: Path, no_sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = [f"plugins=[{ACTING}]", "environment={kind: sums, opens: Well}", "reward=[]", "sampling.max_tokens=64"]
    source = trained(tmp_path, "acts", "vimpo", *acts, "algo.residual=turn", no_sampling)
    assert any(table(source.rollout_file(1))["token_values"])
    forbid(monkeypatch)
    monkeypatch.setattr(Environments, "start", lambda *_: pytest.fail("a replay acts"))
    replayed = RunFolder.open(rlkit.replay(source.path, quiet=True).folder)
    assert_same(source, replayed)
    assert all("environment/turns" in row for row in replayed.read_metrics()[1:])
    rows = table(replayed.rollout_file(3))
    assert all(len(turns) > 1 for turns in rows["turns"])
    assert all("Well" in prompt for prompt in rows["prompt"])


@pytest.mark.slow
def test_one_step_ahead_with_groups_replaced(tmp_path: Path, no_sampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = [f"plugins=[{BESIDE}]", "schedule=one_ahead", "sampler=beside", "batch.refill.limit=2"]
    source = trained(tmp_path, "ahead", "grpo", *ahead, no_sampling)
    assert any(row["refill/rounds"] for row in source.read_metrics())
    assert any(any(table(source.rollout_file(step))["replaced"]) for step in range(1, 4))
    forbid(monkeypatch)
    replayed = RunFolder.open(rlkit.replay(source.path, quiet=True, settings={"sampler": "transformers"}).folder)
    assert_same(source, replayed)


def test_another_algorithm_learns_from_the_same_samples(sampled: RunFolder, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main,
        ["replay", str(sampled.path), "--algo", "ppo", "--out", str(tmp_path), "--plain", "steps=2", "correction={}"],
    )
    assert result.exit_code == 0, result.output
    assert f"the samples of {sampled.path}, steps 1 to 2" in result.output
    assert "(named in the config, for evaluation alone)" in result.output
    other = RunFolder.open(tmp_path / "sampled-replayed-ppo")
    for name in ("tokens", "sampler_logprobs", "reward", "clean_reward"):
        assert table(other.rollout_file(2))[name] == table(sampled.rollout_file(2))[name]
    assert "values" in table(other.rollout_file(2))
    first, second = other.read_metrics()[1:]
    assert first["replay/gap_mean"] < 1e-5 < second["replay/gap_mean"]
    assert second["correction/weight_max"] > 1
    config = other.read_config()
    assert (config.algo.kind, config.reference and config.reference.kind) == ("ppo", "frozen")

    step = load_step(other, 2, lambda ids, text: [])
    assert step.notes[-1] == "sampled-replayed-ppo replays: its responses are those that sampled has sampled"
    assert f"replayed from {sampled.path}" in (other.path / "report.html").read_text()
    assert f"2 of 2 steps, replayed from {sampled.path}" in repr(rlkit.Run(other.path))


def test_another_algorithm_begins_with_the_weights_that_sampled(sampled: RunFolder, tmp_path: Path) -> None:
    part = rlkit.replay(sampled.path, steps=(3, 3), algo="ppo", out=tmp_path, quiet=True)
    (row,) = [row for row in RunFolder.open(part.folder).read_metrics() if "policy/loss" in row]
    assert row["step"] == 3
    assert row["replay/gap_mean"] < 1e-5
    manifest = read_manifest(part.folder / "checkpoints" / "step-00000003")
    assert manifest.engines.keys() == {"policy", "critic"}


@pytest.mark.slow
def test_other_noise_falls_on_the_clean_rewards(sampled: RunFolder, tmp_path: Path) -> None:
    settings = {"noise": [{"kind": "flip", "prob": 0.5}], "steps": 1}
    noisy = RunFolder.open(rlkit.replay(sampled.path, out=tmp_path, quiet=True, settings=settings).folder)
    before, after = table(sampled.rollout_file(1)), table(noisy.rollout_file(1))
    assert before["clean_reward"] == after["clean_reward"]
    flipped = sum(a != b for a, b in zip(after["reward"], after["clean_reward"], strict=True))
    assert 0 < flipped < 16
    assert noisy.read_metrics()[1]["reward/disturbed"] == flipped / 16
    assert before["reward"] != after["reward"]


def without(step: int) -> Callable[[RunFolder], None]:
    return lambda run: run.rollout_file(step).unlink()


def cut(run: RunFolder) -> None:
    file = run.rollout_file(3)
    file.write_bytes(file.read_bytes()[:-100])


def older(run: RunFolder) -> None:
    file = run.rollout_file(1)
    pq.write_table(pq.read_table(file).drop_columns(["replaced"]), file)


def other_tokens(run: RunFolder) -> None:
    change(run.rollout_file(1), "prompt_tokens", lambda tokens: [*tokens, 7])


def change(file: Path, column: str, to: Callable[[Any], Any]) -> None:
    rows = pq.read_table(file)
    at, field = rows.column_names.index(column), rows.schema.field(column)
    pq.write_table(rows.set_column(at, field, pa.array(map(to, rows[column].to_pylist()), field.type)), file)


def nothing(run: RunFolder) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "arguments", "said"),
    [
        (without(2), [], "has no samples of step 2; it has those of 1, 3: choose steps that are all there (those "
         "before it can: --steps 1-1)"),
        (lambda run: shutil.rmtree(run.rollouts), [], "holds no samples: it has made no step"),
        (cut, [], "step 3 cannot be replayed (those before it can: --steps 1-2): "),
        (older, [], "has no replaced: it was made by an older rlkit"),
        (other_tokens, [], "its prompts are other tokens than they are to the model of this run"),
        (nothing, ["--steps", "2-9"], "has no samples of step 4 to 9; it has those of 1 to 3"),
        (lambda run: shutil.rmtree(run.checkpoints / "step-00000002"), ["--steps", "3-3"],
         "begins with the checkpoint of step 2, and"),
        (nothing, ["--steps", "3-2"], "--steps 3-2: expected the first and the last step, as in 1-20"),
        (nothing, ["--steps", "1-2", "steps=3"], "--steps 1-2 and steps=3 both say where the replay ends"),
        (nothing, ["seed=3", "data.max_prompt_tokens=9", "sampling.temperature=0.5"],
         "seed, data.max_prompt_tokens, sampling.temperature: a replay learns from samples that"),
        (nothing, ["--algo", "grpoo"], "unknown algorithm 'grpoo'; did you mean 'grpo'"),
        (nothing, ["data.path=embedded:countdown"], "to a prompt that the data lack"),
        (nothing, ["replay.first=9"], "replay.first (9) comes after the last step, steps (3)"),
    ],
)  # fmt: skip
def test_what_cannot_be_replayed_is_said(
    sampled: RunFolder, damage: Callable[[RunFolder], None], arguments: list[str], said: str, tmp_path: Path
) -> None:
    shutil.copytree(sampled.path, tmp_path / "sampled")
    run = RunFolder(tmp_path / "sampled")
    damage(run)
    # What the source says is known before anything is loaded; what the data say is not.
    planned = [] if damage is other_tokens or said.endswith("data lack") else ["--dry-run"]
    result = CliRunner().invoke(main, ["replay", str(run.path), *arguments, "--quiet", "--name", "again", *planned])
    assert said in " ".join(result.output.split()), result.output
    assert result.exit_code == 2
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_token_that_the_model_does_not_know_ends_the_replay_with_what_is_done(
    sampled: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(sampled.path, tmp_path / "sampled")
    change(RunFolder(tmp_path / "sampled").rollout_file(2), "tokens", lambda tokens: [900, *tokens[1:]])
    with pytest.raises(RlkitError, match=r"step-000002.parquet holds token 900, and embedded:xs knows \d+ tokens"):
        rlkit.replay(tmp_path / "sampled", name="again", quiet=True)
    assert (tmp_path / "again" / "checkpoints" / "step-00000001").is_dir()


def test_python_is_spoken_to_who_calls_from_there(sampled: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"has no samples of step 4 to 7; .* can: steps=\(1, 3\)\)$"):
        rlkit.replay(sampled.path, steps=(1, 7), name="again", quiet=True)


@pytest.mark.slow
def test_two_ranks_replay_what_two_ranks_made(tmp_path: Path) -> None:
    more = [part for setting in ("eval.problems=4", *SMALL) for part in ("-s", setting)]
    for words in (["run", "embedded_xs", "--algo", "ppo", "--name", "r", "--out", str(tmp_path), *more], ["replay"]):
        arguments = words if len(words) > 1 else ["replay", str(tmp_path / "r"), "--name", "again"]
        command = [sys.executable, "-m", "rlkit.cli", *arguments, "--nproc", "2"]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert_same(RunFolder(tmp_path / "r"), RunFolder(tmp_path / "again"))
