"""A run that is interrupted, or whose reward breaks, goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlkit.records.folder import RunFolder

SMALL = [
    "-s", "batch.prompts_per_step=4", "-s", "batch.samples_per_prompt=4", "-s", "eval.problems=8",
]  # fmt: skip


def start(*arguments: str, through: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [*through, sys.executable, "-m", "rlkit.cli", "run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(*arguments: str) -> str:
    process = start(*arguments)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def test_a_first_interrupt_saves_what_is_done(tmp_path: Path) -> None:
    process = start("embedded_xs", *SMALL, "--out", str(tmp_path), "--name", "r", "-s", "steps=500")
    wait_for_step(process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "ending after this step" in said
    done = int(RunFolder.open(tmp_path / "r").read_metrics()[-1]["step"])
    assert 0 < done < 500
    assert [c.name for c in (tmp_path / "r" / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    assert "--resume" in said

    run("--resume", str(tmp_path / "r"), "-s", f"steps={done + 1}")
    assert RunFolder.open(tmp_path / "r").read_metrics()[-1]["step"] == done + 1


SLOW = """
import time
from rlkit import reward

@reward("slow")
def slow(samples):
    "Takes its time, so that a step can be interrupted twice"
    time.sleep(2)
    return [0.0] * len(samples)
"""


@pytest.mark.parametrize("ignored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_second_interrupt_ends_at_once(ignored: bool, tmp_path: Path) -> None:
    """Also where a shell started the run in its background, which has it ignore interrupts."""
    (tmp_path / "slow.py").write_text(SLOW)
    process = start(
        "embedded_xs", "--out", str(tmp_path), "--name", "r", "-s", "steps=500", "-s", "eval.problems=2",
        "-s", "batch.prompts_per_step=2", "--plugin", str(tmp_path / "slow.py"), "-s", "reward=slow",
        through=("sh", "-c", 'trap "" INT; exec "$@"', "sh") if ignored else (),
    )  # fmt: skip
    wait_for_step(process)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while "ending after this step" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert not list((tmp_path / "r" / "checkpoints").glob("step-*"))


def wait_for_step(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    for line in process.stdout:
        assert time.monotonic() < deadline
        if line.startswith("step 2/"):
            return
    raise AssertionError("the run ended before its second step")


FAILING = """
from rlkit import reward

calls = 0


@reward("failing")
def failing(samples, *, after: int):
    global calls
    calls += 1
    if calls > after:
        raise RuntimeError("the verifier broke")
    return [1.0 for _ in samples]


failing.in_process = True  # so that all calls are counted in one place
"""


def test_when_a_reward_breaks_the_steps_before_are_kept(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    arguments = ["--plugin", str(tmp_path / "failing.py"), "-s", "reward.kind=failing"]
    # One call is the evaluation at the start.
    process = start("embedded_xs", *SMALL, *arguments, "-s", "reward.after=3", "--out", str(tmp_path), "--name", "r")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "the verifier broke" in said
    edited = f"warning: {tmp_path / 'failing.py'}: edited since {tmp_path / 'r'} was last started"
    assert edited not in said
    with (tmp_path / "failing.py").open("a") as file:
        file.write("# mended\n")
    said = run("--resume", str(tmp_path / "r"), "-s", "reward.after=100", "-s", "steps=4")
    assert edited in said
    steps = [row["step"] for row in RunFolder.open(tmp_path / "r").read_metrics()]
    assert steps == [0, 1, 2, 3, 4]
