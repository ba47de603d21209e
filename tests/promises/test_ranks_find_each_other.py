"""Ranks that launchers start find each other, say what is wrong once, and notice when one of them is gone."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RLKIT = [sys.executable, "-m", "rlkit", "run", "embedded_xs", "--algo", "grpo", "-s", "eval.problems=2"]
LIMIT_S = 200


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Started:
    """A process whose output is kept."""

    def __init__(self, command: list[str], here: Path, **environment: str) -> None:
        self.log = here / f"log-{len(list(here.glob('log-*')))}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=here, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def ended(self) -> int:
        return self.process.wait(LIMIT_S)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for child in self.children():
                os.kill(child, signal.SIGKILL)
            self.process.kill()
            self.process.wait()


def wait_for(there: Callable[[], bool], of: Started) -> None:
    limit = time.monotonic() + LIMIT_S
    while not there():
        assert of.process.poll() is None, of.said
        assert time.monotonic() < limit, of.said
        time.sleep(0.05)


def steps_of(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return (
        max([json.loads(line)["step"] for line in metrics.read_text().splitlines()] or [0]) if metrics.exists() else 0
    )


def test_the_tasks_of_one_srun_are_the_ranks_of_one_run(tmp_path: Path) -> None:
    step = {"SLURM_JOB_ID": free_port(), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    command = [*RLKIT, "-s", "steps=1", "--name", "x"]
    with ExitStack() as stack:
        tasks = [
            stack.enter_context(Started(command, tmp_path, SLURM_PROCID=task, SLURM_LOCALID=task, **step))
            for task in "01"
        ]
        assert [task.ended() for task in tasks] == [0, 0], tasks[0].said + tasks[1].said
    assert tasks[0].said.startswith("2 ranks, started by srun: waiting until all are there\n")
    assert ", 2 ranks, micro-batches" in tasks[0].said
    assert tasks[1].said == ""
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["x"]


def test_ranks_that_all_have_the_same_mistake_say_it_once(tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    with ExitStack() as stack:
        command = [*RLKIT, "-s", "optimizer.lrr=1"]
        started = [
            stack.enter_context(Started(command, tmp_path, RANK=rank, LOCAL_RANK=rank, **shared)) for rank in "01"
        ]
        assert [each.ended() for each in started] == [2, 2]
    assert "".join(each.said for each in started).count("unknown key 'lrr'") == 1


def test_deepspeed_s_launcher_starts_ranks(tmp_path: Path) -> None:
    world = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}", "--node_rank=0"]
    launcher += ["--master_addr=127.0.0.1", f"--master_port={free_port()}", "--module"]
    with Started([*launcher, *RLKIT[2:], "--dry-run"], tmp_path) as started:
        assert started.ended() == 0, started.said
    assert "'--local_rank=1', 'run'" in started.said, "the launcher adds it, before the command"
    assert started.said.count(", 2 ranks, micro-batches") == 1


def test_two_machines_one_of_which_dies_in_mid_step(tmp_path: Path) -> None:
    """Two of torchrun's agents, each in a working folder of its own. The run is rank 0's; when rank 1 is killed, rank 0
    notices, says so once, and the run can be resumed."""
    here = [tmp_path / "first", tmp_path / "second"]
    for folder in here:
        folder.mkdir()
    run = here[0] / "runs" / "x"

    def agents(stack: ExitStack, *arguments: str) -> list[Started]:
        port = free_port()
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--master-addr", "127.0.0.1", "--master-port", port]
        return [
            stack.enter_context(
                Started([*torchrun, "--node-rank", str(node), "-m", *RLKIT[2:4], *arguments], here[node])
            )
            for node in range(2)
        ]

    with ExitStack() as stack:
        settings = ["-s", "steps=500", "-s", "checkpoint.every=1", "-s", "eval.problems=2"]
        first, second = agents(stack, "embedded_xs", "--algo", "grpo", "--name", "x", *settings)
        wait_for(lambda: steps_of(run) >= 2, first)
        (worker,) = second.children()
        os.kill(worker, signal.SIGKILL)
        assert first.ended() == 1
        assert second.ended() == 1
    assert len(re.findall(r"^rlkit: ", first.said, flags=re.MULTILINE)) == 1
    assert "rlkit: rank 0 of 2, on " in first.said
    assert "has lost another rank: it has died, or the network between has failed (" in first.said
    assert f"in the same way with `--resume {Path('runs/x')}`" in first.said
    assert not (here[1] / "runs").exists(), "the run is rank 0's"

    done = steps_of(run)
    with ExitStack() as stack:
        # One step more than is done, or than is saved.
        again = agents(stack, "--resume", str(run), "-s", f"steps={done + 1}")
        assert [each.ended() for each in again] == [0, 0], again[0].said
    assert f"of {done + 1}" in re.search(r"going on from step .*", again[0].said)[0]  # type: ignore[index]
    assert steps_of(run) == done + 1
    assert (run / "checkpoints" / f"step-{done + 1:08d}" / "policy").is_dir()


def test_a_rank_that_hangs_ends_the_run_within_its_limit(tmp_path: Path) -> None:
    """The other says so, leaves its stacks, and ends with a code of its own."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [*RLKIT, "-s", "steps=500", "-s", "engine.timeout_minutes=0.1", "--name", "x"]
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(Started(command, tmp_path, RANK=rank, LOCAL_RANK=rank, **shared)) for rank in "01"
        )
        wait_for(lambda: steps_of(tmp_path / "runs" / "x") >= 1, first)
        second.process.send_signal(signal.SIGSTOP)
        assert first.ended() == 4
    run = Path("runs/x")
    assert "rlkit: the run is ended: no sign of life for 6 s (engine.timeout_minutes)." in first.said
    assert re.search(r"\n  rank 0 of 2, on .*, for \d+ s; .*; at rlkit/|\n  rank 0 of 2, on .*; at /", first.said)
    assert "\n  no answer from rank 1: stopped, stuck or ended, or the machine is gone\n" in first.said
    assert f"\nThe stacks of all threads: {run / 'stalls' / '1'}\n" in first.said
    stacks = (tmp_path / run / "stalls" / "1" / "rank-0.txt").read_text()
    assert "Current thread" in stacks
    assert "in train" in stacks
    assert "Traceback" not in first.said
    newest = f"{run / 'checkpoints'}/step-"
    assert f"\nThe last checkpoint is {newest}" in first.said or "There is no checkpoint yet" in first.said
