"""A run that is told to end ends saved: within a deadline, whoever is told, and when its terminal is gone."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rlkit import config as configs
from rlkit.assembly import run as runs
from rlkit.errors import StoppedError
from rlkit.evaluation.in_training import evaluate
from rlkit.generation.transformers import _Transformers
from rlkit.interfaces.generation import Completion, Request
from rlkit.loop.learner import Learner
from rlkit.records.folder import RunFolder

BESIDE = Path(__file__).parents[2] / "tools" / "bench" / "beside.py"
STEPS = 3
SMALL = [
    "batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4", "eval.every=2", f"steps={STEPS}",
    "checkpoint.every=0",
]  # fmt: skip


def trained(out: Path, name: str, *more: str) -> RunFolder:
    config = configs.load("embedded_xs", [f"out={out}", f"name={name}", *SMALL, *more], "grpo")
    return RunFolder.open(runs.train(config, quiet=True))


def resumed(run: RunFolder) -> None:
    here = [f"out={run.path.parent}", f"name={run.path.name}"]
    runs.train(configs.load(str(run.config_file), here), resume=True, quiet=True)


def checkpoints(run: RunFolder) -> list[str]:
    return sorted(place.name for place in run.checkpoints.iterdir())


def assert_equal(run: RunFolder, straight: RunFolder) -> None:
    def said(of: RunFolder) -> Any:
        machine = {"time", "throughput", "memory"}
        rows = [{k: v for k, v in row.items() if k.partition("/")[0] not in machine} for row in of.read_metrics()]
        rollouts = [pq.read_table(of.rollout_file(step)).to_pylist() for step in range(1, STEPS + 1)]
        return rows, rollouts, of.metrics_file.read_text().count("\n")

    assert said(run) == said(straight)
    one, other = (load_file(of.checkpoints / f"step-{STEPS:08d}/hf/model.safetensors") for of in (run, straight))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("straight"), "straight")


@pytest.mark.parametrize(
    ("asks", "saved"),
    [
        # Completions before the signal: 8 of each check of the sampler, 4 of an evaluation, 16 of a step.
        pytest.param(2 * 8 + 2, 0, id="the first evaluation", marks=pytest.mark.slow),
        pytest.param(2 * 8 + 4 + 16 + 8 + 5, 1, id="a step"),
        pytest.param(2 * 8 + 4 + 16 + 8 + 16 + 2, 2, id="an evaluation", marks=pytest.mark.slow),
    ],
)
def test_what_is_sampled_when_it_is_late_is_dropped_and_made_again(
    asks: int, saved: int, straight: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, done = _Transformers.generate, 0

    def slow(self: Any, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        nonlocal done
        for pair in generate(self, requests):
            done += 1
            if done == asks:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(60)
            yield pair

    with monkeypatch.context() as patched:
        patched.setattr(_Transformers, "generate", slow)
        with pytest.raises(StoppedError) as stopped:
            trained(tmp_path, "r", "checkpoint.grace_s=0.2")
    assert stopped.value.exit_code == 143
    run = RunFolder.open(tmp_path / "r")
    assert checkpoints(run) == [f"step-{saved:08d}"]
    resumed(run)
    assert_equal(run, straight)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["measure", "learn"])
def test_what_was_measured_when_it_is_late_is_dropped_and_what_has_begun_to_learn_is_not(
    phase: str, straight: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = getattr(Learner, phase)

    def slow(self: Learner, *given: Any) -> Any:
        if given[-1] == 2:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.3)
        return usual(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, phase, slow)
        with pytest.raises(StoppedError):
            trained(tmp_path, "r", "checkpoint.grace_s=0.2")
    run = RunFolder.open(tmp_path / "r")
    assert checkpoints(run) == ["step-00000001" if phase == "measure" else "step-00000002"]
    resumed(run)
    assert_equal(run, straight)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["measure", "learn"])
def test_one_ahead_a_late_run_ends_saved_and_goes_on(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that was measured keeps its samples, and is made again as it was; the rollout in flight may be lost."""
    ahead = ["schedule=one_ahead", "sampler=beside", f"plugins=[{BESIDE}]"]
    usual = getattr(Learner, phase)

    def slow(self: Learner, *given: Any) -> Any:
        if given[-1] == 2:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.3)
        return usual(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, phase, slow)
        with pytest.raises(StoppedError):
            trained(tmp_path, "r", "checkpoint.grace_s=0.2", *ahead)
    run = RunFolder.open(tmp_path / "r")
    assert checkpoints(run) == ["step-00000001" if phase == "measure" else "step-00000002"]
    resumed(run)
    if phase == "measure":
        assert_equal(run, trained(tmp_path, "straight", *ahead))
    assert run.metrics_file.read_text().count('"reward/mean"') == STEPS


def test_told_in_its_last_evaluation_it_makes_it(
    straight: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a deadline what is in hand ends; then nothing is left, and the run is done."""

    def told(*given: Any) -> Any:
        if f'"step": {STEPS}' in RunFolder(tmp_path / "r").metrics_file.read_text():
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*given)

    monkeypatch.setattr("rlkit.loop.base.evaluate", told)
    assert_equal(trained(tmp_path, "r"), straight)


# From the command line.

LONG = [
    "embedded_xs", "--algo", "grpo", "-s", "batch.prompts_per_step=4", "-s", "batch.samples_per_prompt=4",
    "-s", "eval.problems=4", "-s", "steps=5000", "-s", "checkpoint.every=0",
]  # fmt: skip


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.05)


def lines_of(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def saved_at_its_end(run: Path) -> bool:
    done = int(RunFolder.open(run).read_metrics()[-1]["step"])
    return 0 < done < 5000 and checkpoints(RunFolder.open(run)) == [f"step-{done:08d}"]


@pytest.mark.slow
def test_when_its_terminal_goes_away_it_ends_saved(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rlkit", "run", *LONG, "--out", str(tmp_path), "--name", "r"]
    # The terminal is the one of its session, as a login's is.
    attach = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", attach, *command], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    said = b""
    while b"step 2/" not in said:
        said += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(60) == 128 + signal.SIGHUP, said
    assert saved_at_its_end(tmp_path / "r")


def processes_of(mark: str) -> list[str]:
    """Command lines of the processes that were started with this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"RLKIT_TEST={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_sweep_whose_own_process_is_killed_leaves_nothing_running_and_goes_on(tmp_path: Path) -> None:
    sweep = [sys.executable, "-m", "rlkit", "sweep"]
    settings = [part for part in LONG if "=" in part]
    asked = ["--algos", "grpo,rloo", "--base", "embedded_xs", "--jobs", "2", "--out", str(tmp_path), "--name", "s"]
    asked += [part for setting in [*settings, "steps=60"] for part in ("-s", setting)]
    mark = f"{os.getpid()}-sweep"
    process = subprocess.Popen(
        [*sweep, *asked],
        env={**os.environ, "RLKIT_TEST": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    made = [tmp_path / "s/runs/grpo-seed0", tmp_path / "s/runs/rloo-seed0"]
    wait_for(lambda: min(map(lines_of, made)) > 3)
    process.kill()
    process.wait()
    wait_for(lambda: not processes_of(mark), 60)
    for run in made:
        done = int(RunFolder.open(run).read_metrics()[-1]["step"])
        assert checkpoints(RunFolder.open(run)) == [f"step-{done:08d}"]
    again = subprocess.run([*sweep, "--resume", str(tmp_path / "s"), "--jobs", "2"], check=False, capture_output=True)
    assert again.returncode == 0, again.stdout + again.stderr
    for run in made:
        rows = (run / "metrics.jsonl").read_text().splitlines()
        assert sum('"reward/mean"' in row for row in rows) == 60
