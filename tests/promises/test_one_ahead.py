"""One step ahead: a run whose samples are a step old is made of the steps that it says, resumes bit for bit, and says
how old they were."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from rlkit import config as configs
from rlkit.assembly import run as runs
from rlkit.assembly.build import build_loop
from rlkit.cli import main
from rlkit.config import CorrectionConfig
from rlkit.data import Cursor
from rlkit.errors import ConfigError, NotFiniteError, RlkitError, StoppedError
from rlkit.evaluation.in_training import evaluate
from rlkit.generation.assemble import assemble
from rlkit.loop.log import Log
from rlkit.records.folder import RunFolder

BESIDE = Path(__file__).parents[2] / "tools" / "bench" / "beside.py"
ACTING = Path(__file__).parents[1] / "acting.py"
STEPS = 6
AHEAD = ["schedule=one_ahead", "sampler=beside"]
SMALL = [
    "batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=6", "eval.every=2", f"steps={STEPS}",
    "checkpoint.every=0", "optimizer.lr=1e-3",
]  # fmt: skip
SAVES = ["checkpoint.every=1", "checkpoint.keep=9"]
REFILL = ["batch.refill.limit=2", "noise=[{kind: flip, prob: 0.2}]", "batch.minibatches=2"]


def settings(out: Path, name: str, *more: str, plugins: tuple[Path, ...] = ()) -> list[str]:
    named = ", ".join(map(str, (BESIDE, *plugins)))
    return [f"out={out}", f"name={name}", f"plugins=[{named}]", *SMALL, *AHEAD, *more]


def trained(out: Path, name: str, algo: str, *more: str, plugins: tuple[Path, ...] = ()) -> RunFolder:
    config = configs.load("embedded_xs", settings(out, name, *more, plugins=plugins), algo)
    return RunFolder.open(runs.train(config, quiet=True))


def weights(run: RunFolder, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / f"step-{step:08d}" / "hf" / "model.safetensors")


def rows_of(run: RunFolder, step: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run.rollout_file(step)).to_pylist()
    return rows


def untimed(run: RunFolder) -> list[dict[str, float]]:
    machine = {"time", "throughput", "memory"}
    return [{k: v for k, v in row.items() if k.partition("/")[0] not in machine} for row in run.read_metrics()]


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """GRPO with noise, two updates a rollout, and groups that are replaced."""
    return trained(tmp_path_factory.mktemp("straight"), "straight", "grpo", *REFILL, *SAVES)


def test_a_run_is_what_its_steps_by_hand_make(straight: RunFolder, tmp_path: Path) -> None:
    """One thing after the other, in one thread: sample k + 1, then learn from k, then sync."""
    own = ["schedule=synchronous", "correction={}", "eval.every=0"]
    config = configs.load("embedded_xs", settings(tmp_path, "hand", *REFILL, *own), "grpo")
    resolved, algorithm = configs.resolve_with_algorithm(config)
    logged = {int(row["step"]): row for row in straight.read_metrics()}
    with ExitStack() as stack:
        loop = build_loop(resolved, algorithm, stack, resume=False)
        learner, gatherer, problems = loop.learner, loop.gatherer, loop.problems
        first, others = (Cursor(len(problems), resolved.seed + more, 0) for more in (0, 1))

        def sampled(step: int) -> Any:
            drawn = [problems[i] for i in first.take(4)]
            return gatherer.gather(drawn, step, lambda n: [problems[i] for i in others.take(n)])

        def sync(version: int) -> None:
            gatherer.collector.sampler.sync(learner.policy.weights(), version)

        sync(0)
        here = sampled(1)
        for step in range(1, STEPS + 1):
            following = sampled(step + 1) if step < STEPS else None
            rollout = assemble(here.scored, here.rewards, compares_groups=True, replaced=here.replaced)
            assert rollout.version.unique().tolist() == [max(step - 2, 0)]
            for one, row in zip(here.scored, rows_of(straight, step), strict=True):
                assert list(one.completion.tokens) == row["tokens"]
            learner.learn(rollout, learner.measure(rollout, step), step)
            learner.state.step = step
            sync(step)
            assert same(weights(straight, step), dict(learner.policy.weights()))
            if step % 2 == 0:
                bench = loop.benchmarks[0]
                found = evaluate(bench.collector, bench.problems, resolved.eval, gatherer.params)
                assert found.items() <= logged[step].items()
            here = following
    assert {step for step, row in logged.items() if "eval/heldout/mean@1" in row} == {0, 2, 4, 6}
    assert sum(row.get("refill/rounds", 0) for row in logged.values()) > 0


def test_what_it_logs_of_age_and_of_weights(straight: RunFolder) -> None:
    for step, row in enumerate(straight.read_metrics()[1:], 1):
        samples = rows_of(straight, step)
        assert {sample["version"] for sample in samples} == {max(step - 2, 0)}
        assert row["policy/staleness_mean"] == row["policy/staleness_max"] == min(step - 1, 1)
        # Of two policies that are meant to differ it would say nothing of the sampler.
        assert ("sampler/gap_mean" in row) == (step == 1)
        ratios = [
            math.exp(p - q)
            for sample in samples
            for p, q, mask in zip(sample["logprobs"], sample["sampler_logprobs"], sample["mask"], strict=True)
            if mask
        ]
        used = [min(ratio, 2.0) for ratio in ratios]
        assert row["correction/weight_mean"] == pytest.approx(sum(used) / len(used), rel=1e-4)
        assert row["correction/weight_max"] == pytest.approx(max(used), rel=1e-4)
        effective = sum(used) ** 2 / sum(w * w for w in used) / len(used)
        assert row["correction/effective"] == pytest.approx(effective, rel=1e-4)
        assert (row["correction/effective"] < 1 - 1e-5) == (step > 1)
        assert min(row["time/learner_waited_s"], row["time/ahead_s"]) > 0
        assert "time/sampler_waited_s" in row
        assert "time/sample_s" not in row


def test_nothing_is_sampled_for_a_step_after_the_last(straight: RunFolder) -> None:
    states = [
        torch.load(straight.checkpoints / f"step-{step:08d}" / "state.pt", weights_only=True)["ahead"]
        for step in (STEPS - 1, STEPS)
    ]
    assert states[0]["step"] == STEPS
    assert states[1] is None


def test_the_ratio_is_to_the_weights_that_sampled(tmp_path: Path) -> None:
    """With one update a rollout it is 1 to those that the learner began with, which would say nothing."""
    run = trained(tmp_path, "one", "grpo", "steps=3", "eval.every=0")
    for step, row in enumerate(run.read_metrics()[1:], 1):
        ratios = [
            math.exp(p - q)
            for sample in rows_of(run, step)
            for p, q in zip(sample["logprobs"], sample["sampler_logprobs"], strict=True)
        ]
        assert row["policy/ratio_mean"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)
        assert row["policy/ratio_max"] == pytest.approx(max(ratios), rel=1e-5)
        k3 = sum(ratio - 1 - math.log(ratio) for ratio in ratios) / len(ratios)
        assert row["policy/approx_kl"] == pytest.approx(k3, rel=1e-3, abs=1e-7)
        assert (row["policy/approx_kl"] > 1e-5) == (step > 1)
        assert row["policy/clip_share"] == 0


def cut(straight: RunFolder, out: Path, step: int) -> RunFolder:
    """As a kill after `step` would have left it: with its checkpoint, and traces of steps that are made again."""
    run = RunFolder(out / "cut")
    shutil.copytree(straight.path, run.path)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(run.checkpoints / f"step-{later:08d}")
    return run


def resumed(run: RunFolder, *more: str) -> RunFolder:
    here = [f"out={run.path.parent}", f"name={run.path.name}", "checkpoint.every=0"]
    config = configs.load(str(run.config_file), [*here, *more])
    return RunFolder.open(runs.train(config, resume=True, quiet=True))


def assert_equal(run: RunFolder, straight: RunFolder) -> None:
    assert same(weights(run), weights(straight))
    for step in range(1, STEPS + 1):
        assert rows_of(run, step) == rows_of(straight, step)
    assert untimed(run) == untimed(straight)


@pytest.mark.parametrize("step", [1, pytest.param(STEPS - 1, marks=pytest.mark.slow)])
def test_resumed_after_a_kill_it_is_the_straight_run(step: int, straight: RunFolder, tmp_path: Path) -> None:
    assert_equal(resumed(cut(straight, tmp_path, step)), straight)


def test_resumed_after_an_interrupt_it_is_the_straight_run(
    straight: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint is due there: what is in flight is waited for, and saved."""
    metrics = Log.metrics

    def interrupted(self: Log, step: int, found: Mapping[str, float]) -> None:
        metrics(self, step, found)
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "metrics", interrupted)
        with pytest.raises(StoppedError) as stopped:
            trained(tmp_path, "interrupted", "grpo", *REFILL)
    assert stopped.value.exit_code == 130
    run = RunFolder.open(tmp_path / "interrupted")
    assert [place.name for place in run.checkpoints.iterdir()] == ["step-00000003"]
    state = torch.load(run.checkpoints / "step-00000003" / "state.pt", weights_only=True)
    assert state["ahead"]["step"] == 4
    assert_equal(resumed(run), straight)


@pytest.mark.slow
def test_vimpo_and_a_critic_resume_too(tmp_path: Path) -> None:
    """PPO's critic learns from what is a step old, and VIMPO's running whitening is remembered."""
    for algo, own in (("ppo", []), ("vimpo", ["algo.whiten=running", "algo.actor_ratio=0.1"])):
        run = trained(tmp_path, algo, algo, *own, *SAVES, "eval.every=0")
        assert_equal(resumed(cut(run, tmp_path / f"{algo} again", 3)), run)


def test_conversations_are_held_beside_the_updates_and_resumed(tmp_path: Path) -> None:
    acts = ["environment={kind: sums, turns: 2, opens: Well}", "reward=[]", "sampling.max_tokens=48", "eval.every=0"]
    run = trained(tmp_path, "acts", "grpo", *acts, *SAVES, "steps=4", plugins=(ACTING,))
    flown = torch.load(run.checkpoints / "step-00000002" / "state.pt", weights_only=True)["ahead"]
    for saved, row in zip(flown["samples"], rows_of(run, 3), strict=True):
        assert [list(span) for span in saved["turns"]] == row["turns"]
        assert saved["prompt"][0] == row["prompt"]
        assert row["prompt"].endswith("=Well")
    assert all(row["time/environment_s"] > 0 for row in run.read_metrics()[1:])
    cut_run = RunFolder(tmp_path / "cut")
    shutil.copytree(run.path, cut_run.path)
    for later in (3, 4):
        shutil.rmtree(cut_run.checkpoints / f"step-{later:08d}")
    again = resumed(cut_run)
    assert same(weights(again, 4), weights(run, 4))
    assert [rows_of(again, step) for step in range(1, 5)] == [rows_of(run, step) for step in range(1, 5)]
    assert untimed(again) == untimed(run)


FAILS = """
from rlkit import reward

calls = 0


@reward("fails")
def fails(samples, *, after: int):
    global calls
    calls += 1
    if calls > after:
        raise RuntimeError("the verifier broke")
    return [float(len(s.tokens) % 2) for s in samples]


fails.in_process = True  # so that all calls are counted in one place
"""


def test_when_the_rollout_in_flight_fails_the_steps_before_are_kept(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    own = ["reward.kind=fails", "eval.every=0"]
    # One call is the evaluation at the start, so the rollout of step 4 fails, while step 3 is made.
    with pytest.raises(RlkitError, match="the verifier broke"):
        trained(tmp_path, "r", "grpo", *own, "reward.after=4", plugins=(tmp_path / "fails.py",))
    run = RunFolder.open(tmp_path / "r")
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 3]
    assert [place.name for place in run.checkpoints.iterdir()] == ["step-00000003"]
    resumed(run, "reward.after=100")
    rows = run.read_metrics()
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    # What failed is sampled anew, with the weights that there are.
    assert [row["policy/staleness_max"] for row in rows[1:]] == [0, 1, 1, 0, 1, 1]


BREAKS = """
from rlkit import loss
from rlkit.ops.masked import masked_sum


@loss("breaks_ahead")
def breaks(*, after: int):
    def compute(new, batch, targets):
        broken = float("nan") if batch.update >= after else 1.0
        per_token = -targets.get("advantages") * new.get("logprobs") * broken
        return masked_sum(per_token, batch.mask) / max(batch.n_tokens, 1), {}

    return compute
"""


def test_updates_that_are_not_finite_end_it_with_the_rollout_that_they_were_made_from(tmp_path: Path) -> None:
    """And with `correction: off`, for a loss that weighs nothing."""
    (tmp_path / "breaks.py").write_text(BREAKS)
    own = ["loss.kind=breaks_ahead", "loss.after=2", "correction=off", "eval.every=0"]
    with (
        pytest.warns(UserWarning, match="the loss is not finite; no step was made"),
        pytest.raises(NotFiniteError, match="step 5: "),
    ):
        trained(tmp_path, "r", "grpo", *own, plugins=(tmp_path / "breaks.py",))
    run = RunFolder.open(tmp_path / "r")
    assert [place.name for place in run.checkpoints.iterdir()] == ["step-00000004"]
    evidence = rows_of(run, 5)
    resumed(run, "loss.after=100")
    assert rows_of(run, 5) == evidence
    assert [row["step"] for row in run.read_metrics()] == list(range(STEPS + 1))
    assert not [name for row in run.read_metrics() for name in row if name.startswith("correction/")]


@pytest.mark.slow
def test_a_checkpoint_goes_from_one_schedule_to_the_other(straight: RunFolder, tmp_path: Path) -> None:
    run = resumed(cut(straight, tmp_path, 4), "schedule=synchronous", "correction=off")
    assert [{row["version"] for row in rows_of(run, step)} for step in (4, 5, 6)] == [{2}, {4}, {5}]
    assert "policy/staleness_max" not in run.read_metrics()[-1]


def test_weights_are_the_default_and_can_be_turned_off(tmp_path: Path) -> None:
    def resolved(*more: str) -> configs.RunConfig:
        return configs.resolve(configs.load("embedded_xs", settings(tmp_path, "r", *more)))

    assert resolved().correction == CorrectionConfig(mode="truncate", level="token", limit=2.0)
    assert resolved("correction.mode=mask").corrects == CorrectionConfig(mode="mask")
    assert resolved("correction=off").correction == "off"
    assert resolved("correction=off").corrects is None
    assert resolved("schedule=synchronous").correction is None
    with pytest.raises(ConfigError, match=r"Set correction: \{\} to weigh them"):
        resolved("correction=off", "sampling.top_p=0.9")
    (tmp_path / "deaf.py").write_text(BREAKS.replace("breaks_ahead", "deaf_ahead"))
    deaf = settings(tmp_path, "r", "loss.kind=deaf_ahead", "loss.after=1", plugins=(tmp_path / "deaf.py",))
    with pytest.raises(ConfigError, match=r"does not read `importance`.*set correction: off, or have the loss"):
        configs.resolve(configs.load("embedded_xs", deaf, "grpo"))


@pytest.mark.parametrize("sampler", ["auto", "transformers", "vllm"])
def test_with_a_sampler_in_the_training_process_it_is_refused_and_says_why(sampler: str) -> None:
    asked = ["run", "embedded_xs", "--dry-run", "-s", "schedule=one_ahead", "-s", f"sampler={sampler}"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    works = "stands for one that works" if sampler == "auto" else "works"
    assert f"sampler: {sampler} {works} in the training process, on the learner's own device" in result.output
    assert "or set schedule: synchronous" in result.output


PLAIN = """
from rlkit import sampler
from rlkit.generation.transformers import TransformersConfig, _Transformers


@sampler("plain_here")
def plain(config: TransformersConfig, model, context, seed):
    return _Transformers(config, model, context)
"""


def test_a_plugins_sampler_that_does_not_say_it_may_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    with pytest.raises(ConfigError, match="sampler: plain_here works in the training process"):
        trained(tmp_path, "r", "grpo", "sampler=plain_here", plugins=(tmp_path / "plain.py",))
    assert not (tmp_path / "r").exists()


def test_the_plan_says_it(tmp_path: Path) -> None:
    asked = [part for each in settings(tmp_path, "r") for part in ("-s", each)]
    result = CliRunner().invoke(main, ["run", "embedded_xs", "--dry-run", *asked])
    assert result.exit_code == 0, result.output
    assert "schedule      one ahead: the next rollout is sampled beside the updates" in result.output
    assert "correction    each token by pi_old / pi_sampler, at most 2" in result.output


def started(*more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rlkit.cli", "run", "embedded_xs", "--algo", "grpo", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_two_ranks_make_the_run_that_one_makes(straight: RunFolder, tmp_path: Path) -> None:
    """Each rank's thread speaks with the other's while the learners speak too."""
    asked = [part for each in settings(tmp_path, "ranks", *REFILL, "optimizer.lr=1e-5") for part in ("-s", each)]
    one = trained(tmp_path, "one", "grpo", *REFILL, "optimizer.lr=1e-5")
    process = started("--nproc", "2", *asked)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    two = RunFolder.open(tmp_path / "ranks")
    for step in range(1, STEPS + 1):
        for a, b in zip(rows_of(one, step), rows_of(two, step), strict=True):
            assert all(a[name] == b[name] for name in ("prompt_id", "tokens", "reward", "version"))
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_killed_in_the_middle_of_a_step_it_goes_on_as_the_straight_run(straight: RunFolder, tmp_path: Path) -> None:
    asked = [part for each in settings(tmp_path, "killed", *REFILL, *SAVES) for part in ("-s", each)]
    process = started(*asked)
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    for line in process.stdout:
        assert time.monotonic() < deadline
        if line.startswith("step 3/"):
            break
    process.kill()
    process.wait()
    run = RunFolder.open(tmp_path / "killed")
    assert 3 <= len(list(run.checkpoints.glob("step-*"))) < STEPS
    assert_equal(resumed(run), straight)
