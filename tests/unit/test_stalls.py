"""A wait is named where it is long; where no sign of life comes, the run ends and its stacks are left. Ranks are plain
processes here, which import no torch."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rlkit
from rlkit import config as configs
from rlkit.interfaces.progress import signs, waiting
from rlkit.loop.stalls import Patience, Watch
from rlkit.records.checkpoints import MANIFEST, Manifest
from rlkit.records.folder import RunFolder


def looks(patience: Patience, at: tuple[int, str, int, int], seconds: int, sign: int = 0) -> list[str]:
    """What is said in so many looks, a second apart."""
    return [patience.said() for _ in range(seconds) if patience.look(at, sign, 1.0)]


def test_what_takes_long_is_named_at_times_that_grow_apart() -> None:
    patience = Patience()
    assert looks(patience, (1, "sampling", 40, 64), 55) == []
    with waiting("the other ranks"):
        said = looks(patience, (1, "sampling", 41, 64), 300)
    assert said == [
        f"sampling: 41 of 64, for {whole}{silent}; waiting for the other ranks"
        for whole, silent in (
            ("1 min 00 s", ""),
            ("1 min 55 s", "; nothing new for 1 min 00 s"),
            ("2 min 55 s", "; nothing new for 2 min 00 s"),
            ("4 min 55 s", "; nothing new for 4 min 00 s"),
        )
    ]
    assert looks(patience, (2, "scoring", 0, 0), 62, sign=1) == ["scoring, for 1 min 00 s; nothing new for 1 min 00 s"]


def test_a_phase_that_always_takes_long_is_not_named_again_unless_nothing_comes() -> None:
    patience, sign = Patience(), itertools.count(1)
    for step in range(1, 3):
        said = [patience.said() for i in range(100) if patience.look((step, "sampling", i, 100), next(sign), 1.0)]
        assert len(said) == (1 if step == 1 else 0)
    assert looks(patience, (2, "sampling", 99, 100), 70) == [
        "sampling: 99 of 100, for 2 min 40 s; nothing new for 1 min 00 s"
    ]


WATCHED = """
import sys, threading, time
from pathlib import Path
from rlkit.interfaces.progress import alive
from rlkit.loop import stalls
from rlkit.records.folder import RunFolder

stalls.POLL_S, stalls._SPOKEN_S, stalls._LONGEST_TICK_S, stalls.GRACE_S = 0.05, 0.3, 0.2, float(sys.argv[3])
watch = stalls.Watch(RunFolder(Path(sys.argv[1])), "go on with: this", None)
watch.before_end = lambda: print("the terminal is as it was", flush=True)
watch.limit_minutes = 1.0 / 60
watch("sampling", 3, 8)

def stuck():
    print("begun", flush=True)
    threading.Lock().acquire() and threading.Event().wait()

def repeats():
    print("begun", flush=True)
    while True:
        watch("sampling", 3, 8)
        time.sleep(0.02)

def lives(seconds):
    print("begun", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        alive()
        time.sleep(0.02)
    watch.close()

eval(sys.argv[2])
"""


def rank(number: int, count: int, folder: Path, does: str, grace: float = 10.0) -> subprocess.Popen[str]:
    environment = {**os.environ, "RANK": str(number), "WORLD_SIZE": str(count)}
    command = [sys.executable, "-c", WATCHED, str(folder), does, str(grace)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent
    )


def test_a_rank_that_waits_for_ever_ends_all_with_their_stacks(tmp_path: Path) -> None:
    """One of them gives signs of life all the time."""
    folder = tmp_path / "x"
    (folder / "checkpoints" / "step-00000006").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000006" / MANIFEST).write_text(Manifest().text())
    (folder / "stalls" / "1").mkdir(parents=True)  # of an earlier time
    ranks = [rank(0, 2, folder, "lives(100)"), rank(1, 2, folder, "stuck()")]
    (out, said), (_, other) = (each.communicate(timeout=60) for each in ranks)
    assert [each.returncode for each in ranks] == [4, 4]
    assert other == "", "one says it"
    assert out.splitlines() == ["begun", "the terminal is as it was"]
    first, one, two, *rest = said.splitlines()
    assert first.startswith("rlkit: the run is ended: no sign of life for 1 s (engine.timeout_minutes). Where")
    assert one.startswith("  rank 0 of 2, on ")
    assert ": sampling: 3 of 8, for " in one
    assert two.startswith("  rank 1 of 2, on ")
    assert rest == [
        f"The stacks of all threads: {folder / 'stalls' / '2'}",
        f"The last checkpoint is {folder / 'checkpoints' / 'step-00000006'}; go on with: this",
    ]
    stacks = [(folder / "stalls" / "2" / f"rank-{each}.txt").read_text() for each in range(2)]
    assert "in lives" in stacks[0]
    assert "in stuck" in stacks[1]
    assert stacks[1].startswith(two.strip())


def test_a_rank_that_does_not_answer_is_named_and_a_folder_that_is_full_hides_nothing(tmp_path: Path) -> None:
    alone = rank(1, 2, tmp_path / "x", "repeats()", grace=0.2)  # what is said again and again is no sign of life
    assert "no answer from rank 0: stopped, stuck or ended, or the machine is gone" in alone.communicate(timeout=60)[1]
    assert alone.returncode == 4
    (tmp_path / "y").write_text("no folder")
    unwritten = rank(0, 1, tmp_path / "y", "stuck()")
    _, said = unwritten.communicate(timeout=60)
    assert unwritten.returncode == 4
    assert "in stuck" in said
    assert "The stacks stand above, since " in said
    assert "There is no checkpoint yet; go on with: this" in said


def test_where_rewards_are_waited_for_their_log_is_named(tmp_path: Path) -> None:
    for name, does in (("x", "watch('scoring') or stuck()"), ("y", "stuck()")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rewards.log").write_text("")
        _, said = rank(0, 1, tmp_path / name, does).communicate(timeout=60)
        line = f"Those of rewards that are near their deadline (scoring.timeout_s): {tmp_path / name / 'rewards.log'}"
        assert (line in said.splitlines()) == (name == "x"), said


def test_what_lives_and_what_was_stopped_goes_on(tmp_path: Path) -> None:
    """Both for longer than the limit."""
    process = rank(0, 1, tmp_path / "x", "lives(3)")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(1.3)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.3)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    assert not (tmp_path / "x").exists()


def test_every_phase_of_a_run_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    told = Watch.__call__

    def noted(self: Watch, phase: str, done: int = 0, total: int = 0) -> None:
        seen.append((phase, signs()))
        told(self, phase, done, total)

    monkeypatch.setattr(Watch, "__call__", noted)
    settings = ["batch.prompts_per_step=2", "batch.samples_per_prompt=2", "eval.problems=2", "steps=1"]
    config = configs.load("embedded_xs", [*settings, f"out={tmp_path}", "name=r", "batch.tokens_per_microbatch=64"])
    rlkit.train(config, quiet=True)
    grown: dict[str, int] = {}
    for (phase, before), (_, after) in itertools.pairwise(seen):
        grown[phase] = grown.get(phase, 0) + after - before
    (row,) = [row for row in RunFolder.open(tmp_path / "r").read_metrics() if row["step"] == 1]
    assert grown["sampling"] >= row["response/length"], "a token"
    assert grown["scoring"] + grown["sampling"] >= 4, "a sample"
    assert grown["measuring"] >= 2
    assert grown["updating"] >= 2, "a micro-batch"
    assert grown["syncing weights"] > 10, "a weight"
    assert not RunFolder(tmp_path / "r").stalls.exists()


HANGING = """
import threading
from rlkit import reward

calls = 0


@reward("hanging")
def hanging(samples):
    "Never answers in the second step"
    global calls
    calls += 1
    if calls > 2:
        threading.Event().wait()
    return [0.0 for _ in samples]


hanging.in_process = True  # where no worker can be killed for it
"""


@pytest.mark.slow
def test_a_run_that_hangs_ends_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)

    def run(*arguments: str) -> Any:
        command = [sys.executable, "-m", "rlkit", "run", *arguments, "-s", "engine.timeout_minutes=0.1"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)

    more = ["-s", "eval.problems=2", "-s", "checkpoint.every=1", "-s", "steps=3", "--plugin", "hanging.py"]
    hung = run("embedded_xs", "--name", "x", "-s", "reward=hanging", *more)
    assert hung.returncode == 4
    assert "; at hanging.py:14, hanging\nThe stacks of all threads: runs/x/stalls/1\n" in hung.stderr
    last = "The last checkpoint is runs/x/checkpoints/step-00000001; go on with: rlkit run --resume runs/x\n"
    assert hung.stderr.endswith(last)
    (tmp_path / "hanging.py").write_text(HANGING.replace("threading.Event().wait()", "pass"))
    again = run("--resume", "runs/x")
    assert again.returncode == 0, again.stderr


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The day is for people; what lasts is measured by a clock that does not jump."""
    now, jumps = time.time, itertools.cycle([0.0, 86400.0, -86400.0])
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    settings = ["batch.prompts_per_step=2", "batch.samples_per_prompt=2", "eval.problems=2", "steps=2"]
    settings += ["scoring.timeout_s=60", "engine.timeout_minutes=1"]
    rlkit.train(configs.load("embedded_xs", [*settings, f"out={tmp_path}", "name=r"]), quiet=True)
    for row in RunFolder.open(tmp_path / "r").read_metrics():
        lasted = {name: value for name, value in row.items() if name.startswith("time/")}
        assert all(0 <= value < 600 for value in lasted.values()), lasted
        assert not row.get("samples/no_value")
