"""An environment that hangs, dies, floods or leaves things behind costs the one trajectory it does so in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlkit.config import ConversationConfig, PluginRef
from rlkit.environments.pool import Answer, Answered, Environments, Lost
from rlkit.errors import RlkitError
from rlkit.interfaces.environments import Task

PLUGIN = """
import ctypes, os, signal, subprocess, sys, threading, time
import rlkit
from rlkit import Observation


@rlkit.environment("hostile")
class Hostile:
    def __init__(self, *, folder: str):
        self.folder = folder
        self.said = []

    def start(self, task, seed):
        if task.answer:
            return self.step(task.answer)
        return "begun"

    def step(self, action):
        self.said.append(action[:20])
        match action:
            case "loop":
                while True:
                    pass
            case "loop elsewhere":
                subprocess.run(["sleep", "600"])
            case "memory":
                return str(len(bytearray(8 << 30)))
            case "sigkill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os._exit(3)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "close and hang":
                os.closerange(3, 256)
                time.sleep(600)
            case "close":
                os.closerange(3, 256)
            case "die later":
                self.leave(os.getpid())
                threading.Timer(0.1, os._exit, (5,)).start()
            case "daemon":  # it has left its parent, its group and its session
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        self.leave(os.getpid())
                        time.sleep(600)
                    os._exit(0)
                os.wait()
            case "daemon and hang":
                self.step("daemon")
                time.sleep(600)
            case "fork":
                self.leave(subprocess.Popen(["sleep", "600"]).pid)
                self.leave(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
            case "fork and return":
                os.fork()
            case "print":
                for _ in range(64):
                    print("x" * (1 << 20))
            case "alarm":
                signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError()))
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                try:
                    time.sleep(600)
                except TimeoutError:
                    pass
            case "leave an alarm":
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, 0.2)
            case "closed streams":
                sys.stdout.close()
                sys.stderr = None
            case "system exit":
                sys.exit("left")
            case "interrupt":
                raise KeyboardInterrupt
            case "raise":
                print("nearly there")
                raise ValueError("my own mistake")
            case "kill the parent":
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(600)
            case "none":
                return None
            case "wait":
                time.sleep(0.3)
        return Observation(text=f"{len(action)} characters, {len(self.said)} steps", reward=1.0)

    def cut(self, unheard):
        return self.step(unheard)

    def leave(self, pid):
        with open(os.path.join(self.folder, str(pid)), "w"):
            pass
"""

TAKES_IT_DOWN = {
    "loop": (
        "timeout",
        r"step gave no answer within 1\.5 s \(conversation\.timeout_s\); it was at .*hostile\.py:2\d, in ",
    ),
    "loop elsewhere": ("timeout", r"no answer within 1\.5 s .*; it was at .*hostile\.py:2\d, in step"),
    "stop": ("timeout", r"step gave no answer within 1\.5 s"),
    "daemon and hang": ("timeout", r"no answer within 1\.5 s .*hostile\.py:\d+, in step"),
    "memory": ("error", r"its process ended in step: out of memory \(conversation\.memory_gib is 4\)"),
    "sigkill": ("error", r"its process ended in step: it was killed by SIGKILL"),
    "segfault": ("error", r"(?s)it was killed by SIGSEGV.*hostile\.py\", line 3\d in step"),
    "exit": ("error", r"its process ended in step: it exited with code 3"),
    "close and hang": ("error", r"its process ended in step: it closed its connection"),
    "close": ("error", r"its process ended in step: it closed its connection"),
    "system exit": ("error", r"(?s)environment 'hostile': step raised:\n.*SystemExit: left"),
    "interrupt": ("error", r"(?s)step raised:\n.*KeyboardInterrupt"),
    "raise": ("error", r"(?s)step raised:\n.*hostile\.py.*ValueError: my own mistake"),
}
RUDE = ["daemon", "fork", "fork and return", "print", "alarm", "leave an alarm", "closed streams", "z" * 3_000_000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile.py").write_text(PLUGIN)
    return folder


def environments_of(folder: Path, left: Path | None = None, **changes: Any) -> Environments:
    settings = ConversationConfig.model_validate({"timeout_s": 60, **changes})
    ref = PluginRef(kind="hostile", **{"folder": str(left or folder)})
    return Environments(ref, [str(folder / "hostile.py")], settings)


def all_of(environments: Environments, count: int) -> dict[int, Answer]:
    """The next answers, as many."""
    found: dict[int, Answer] = {}
    while len(found) < count:
        found.update(environments.answered(wait=True))
    assert len(found) == count
    return found


def start(environments: Environments, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        environments.start(number, Task(), seed=number)
    for answer in all_of(environments, count).values():
        assert text(answer) == "begun"


def ask(environments: Environments, actions: list[str], first: int = 0) -> list[Answer]:
    """What comes of the actions, one for each trajectory."""
    for number, action in enumerate(actions, first):
        environments.step(number, action)
    found = all_of(environments, len(actions))
    return [found[number] for number in range(first, first + len(actions))]


def text(answer: Answer) -> str:
    assert isinstance(answer, Answered), answer
    assert isinstance(answer.observation.text, str)
    return answer.observation.text


def lost(answer: Answer) -> Lost:
    assert isinstance(answer, Lost)
    return answer


def running(pid: int) -> bool:
    """A child that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def all_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def downfalls(folder: Path) -> Iterator[tuple[dict[str, Answer], Environments]]:
    """What comes of all that takes its process down, done at once, among neighbours that go on meanwhile and after."""
    actions = list(TAKES_IT_DOWN)
    with environments_of(folder, timeout_s=1.5) as environments:
        start(environments, len(actions) + 4)
        for number, action in enumerate(actions):
            environments.step(number, action)
        said: dict[int, Answer] = {}
        for turn in range(1, 4):
            for number in range(len(actions), len(actions) + 4):
                environments.step(number, "well")
            neighbours = 0
            while neighbours < 4:
                for number, answer in environments.answered(wait=True):
                    if number < len(actions):
                        said[number] = answer
                    else:
                        assert text(answer) == f"4 characters, {turn} steps"
                        neighbours += 1
        while len(said) < len(actions):
            said.update(environments.answered(wait=True))
        assert [text(a) for a in ask(environments, ["still"] * 4, len(actions))] == ["5 characters, 4 steps"] * 4
        yield {action: said[number] for number, action in enumerate(actions)}, environments


@pytest.mark.parametrize("action", TAKES_IT_DOWN)
def test_what_takes_its_process_down_loses_its_trajectory_alone(
    downfalls: tuple[dict[str, Answer], Environments], action: str
) -> None:
    status, said = TAKES_IT_DOWN[action]
    answer = lost(downfalls[0][action])
    assert (answer.status, answer.broken) == (status, False)
    assert re.search(said, answer.said)
    assert answer.said.startswith("environment 'hostile': ")
    if "raised" in answer.said:
        assert "rlkit/environments" not in answer.said
    assert answer.seconds > (1.4 if status == "timeout" else 0)


def test_the_number_of_a_lost_one_is_free_again(downfalls: tuple[dict[str, Answer], Environments]) -> None:
    _, environments = downfalls
    with pytest.raises(ValueError, match="trajectory 0 is not under way"):
        environments.step(0, "more")
    environments.end(0)
    start(environments, 1)
    assert [text(a) for a in ask(environments, ["x"])] == ["1 characters, 1 steps"]
    environments.end(0)
    environments.end(0)


def test_what_is_rude_goes_on_all_the_same(folder: Path, tmp_path: Path) -> None:
    with environments_of(folder, tmp_path) as environments:
        environments.log = tmp_path / "environments.log"
        start(environments, len(RUDE))
        for turn in (1, 2):
            for action, answer in zip(RUDE, ask(environments, RUDE), strict=True):
                assert text(answer) == f"{len(action)} characters, {turn} steps"
        # What hides in a session of its own, without a parent, ends with its trajectory; that of others does not.
        number = RUDE.index("daemon")
        left = [int(pid.name) for pid in tmp_path.glob("[0-9]*")]
        assert len(left) == 2 * 1 + 2 * 2
        assert all(running(pid) for pid in left)
        environments.end(number)
        deadline = time.monotonic() + 60
        while sum(running(pid) for pid in left) > 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ask(environments, ["x"], RUDE.index("fork"))
        assert sum(running(pid) for pid in left) == 4
    all_end(left)
    # Of 128 megabytes that were printed.
    assert 2**20 <= (tmp_path / "environments.log").stat().st_size < 2 * 2**20


def test_one_that_dies_between_two_steps_is_lost_at_the_next(
    downfalls: tuple[dict[str, Answer], Environments], folder: Path
) -> None:
    _, environments = downfalls
    start(environments, 2, 50)
    before = {*folder.glob("[0-9]*")}
    ask(environments, ["die later", "well"], 50)
    (pid,) = {*folder.glob("[0-9]*")} - before
    all_end([int(pid.name)])
    assert environments.answered(wait=False) == []
    fallen, well = ask(environments, ["more", "more"], 50)
    # In a step, where the news has not come yet.
    assert re.search(r"its process ended (between two steps|in step): it exited with code 5", lost(fallen).said)
    assert text(well) == "4 characters, 2 steps"


def test_one_that_hangs_in_its_start(downfalls: tuple[dict[str, Answer], Environments]) -> None:
    _, environments = downfalls
    environments.start(60, Task(answer="loop"), 0)
    environments.start(61, Task(), 0)
    found = all_of(environments, 2)
    assert "environment 'hostile': start gave no answer within 1.5 s" in lost(found[60]).said
    assert text(found[61]) == "begun"


def test_what_hangs_or_dies_where_it_is_cut(downfalls: tuple[dict[str, Answer], Environments]) -> None:
    _, environments = downfalls
    start(environments, 3, 70)
    for number, unheard in enumerate(["loop", "sigkill", "well"], 70):
        environments.cut(number, unheard)
    found = all_of(environments, 3)
    assert (lost(found[70]).status, lost(found[71]).status) == ("timeout", "error")
    assert "environment 'hostile': cut gave no answer within 1.5 s" in lost(found[70]).said
    assert "its process ended in cut: it was killed by SIGKILL" in lost(found[71]).said
    assert text(found[72]) == "4 characters, 1 steps"


@pytest.mark.slow
def test_one_that_kills_what_it_was_forked_from(folder: Path) -> None:
    with environments_of(folder) as environments:
        start(environments, 3)
        found = ask(environments, ["kill the parent", "well", "well"])
        assert "the process that it was forked from is lost: it was killed by SIGKILL" in lost(found[0]).said
        for number in range(3):
            environments.end(number)
        # Another is made; but not again and again, where nothing comes of it.
        start(environments, 2)
        ask(environments, ["kill the parent"])
        environments.start(2, Task(answer="kill the parent"), 0)
        with pytest.raises(RlkitError, match=r"ended twice in a row without an answer: it was killed by SIGKILL"):
            all_of(environments, 2)
        with pytest.raises(RlkitError, match="twice in a row"):
            environments.start(3, Task(), 0)


def test_two_hundred_are_under_way_at_once(folder: Path) -> None:
    before = marked(os.getpid())
    with environments_of(folder) as environments:
        start(environments, 200)
        answers = ask(environments, ["wait"] + ["y" * number for number in range(199)])
        assert [text(a) for a in answers[1:]] == [f"{n} characters, 1 steps" for n in range(199)]
        assert len(marked(os.getpid()) - before) == 201
    assert marked(os.getpid()) <= before


def marked(parent: int) -> set[int]:
    """The processes of environments that a process has started, and what they have started."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"RLKIT_PROCESS=" not in (folder / "environ").read_bytes():
                continue
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(parent).encode() in arguments and running(int(folder.name)):
            found.add(int(folder.name))
    return found


TRAINER = """
import os, signal, sys, time
from pathlib import Path
from rlkit.config import ConversationConfig, PluginRef
from rlkit.environments.pool import Environments
from rlkit.interfaces.environments import Task

folder = Path(sys.argv[1])
environments = Environments(
    PluginRef(kind="hostile", folder=str(folder)), [sys.argv[2]], ConversationConfig()
)
for number in range(8):
    environments.start(number, Task(answer="daemon and hang" if number % 2 else "fork"), 0)
while len(list(folder.glob("[0-9]*"))) < 4 + 2 * 4:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_trainer_that_is_killed_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", TRAINER, str(tmp_path), str(folder / "hostile.py")]) as trainer:
        assert trainer.wait(60) == -signal.SIGKILL
    left = [int(pid.name) for pid in tmp_path.glob("[0-9]*")]
    assert len(left) == 12
    deadline = time.monotonic() + 60
    while marked(trainer.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    all_end(left)
