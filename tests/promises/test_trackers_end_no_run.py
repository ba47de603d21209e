"""A tracker that fails, hangs or cannot reach its server ends no run, and loses nothing that can be kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from wandb_files import wandb_records
from wandb_server import WandbServer

from rlkit.assembly import run as runs
from rlkit.config import load
from rlkit.records.folder import RunFolder
from rlkit.tracking import mirror
from rlkit.tracking.mirror import Mirror

AWAY = """
from rlkit import tracker


class Away:
    def log(self, step, metrics):
        if step >= 1:
            raise ConnectionError("the server is away")

    def log_samples(self, step, rows):
        pass

    def close(self):
        pass


@tracker("away")
def away(run):
    \"\"\"Fails from its first step on.\"\"\"
    return Away()
"""


class Scripted:
    """A tracker that does what its test says, and remembers."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act, self.logged, self.threads = act, [], set()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.threads.add(threading.current_thread().name)
        self.act(step)
        self.logged.append((step, dict(metrics)))

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_run_goes_on_without_a_tracker_that_fails(tmp_path: Path) -> None:
    (tmp_path / "away.py").write_text(AWAY)
    small = ["batch.prompts_per_step=4", "batch.samples_per_prompt=2", "eval.problems=4", "steps=3"]
    own = [f"out={tmp_path}", "name=r", f"plugins=[{tmp_path / 'away.py'}]", "trackers=[away]"]
    with pytest.warns(UserWarning, match="the server is away") as said:
        runs.train(load("embedded_xs", [*small, *own], "grpo"), quiet=True)
    texts = [str(each.message) for each in said if "'away'" in str(each.message)]
    assert len(texts) == 2, "once when it fails, once at the end"
    assert "away.py:8: its log raised ConnectionError: the server is away" in texts[0]
    assert "The run goes on" in texts[0]
    assert texts[1] == "tracker 'away' has missed 4 calls: metrics.jsonl has it all"
    assert [row["step"] for row in RunFolder(tmp_path / "r").read_metrics()] == [0, 1, 2, 3]


def test_one_that_comes_back_gets_what_follows_in_order() -> None:
    def act(step: int) -> None:
        if step in (2, 3):
            raise OSError("away")

    tracker = Scripted(act)
    mirrored = Mirror(tracker, "tracker 'mine'")
    metrics = {"a": 0.0}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(1, 6):
            metrics["a"] = float(step)
            mirrored.log(step, metrics)
        mirrored.close()
    assert str(said[-1].message) == "tracker 'mine' has missed 2 calls: metrics.jsonl has it all"
    assert len(said) == 2
    assert tracker.logged == [(step, {"a": float(step)}) for step in (1, 4, 5)], "as the metrics were when logged"
    assert tracker.threads == {"tracker 'mine'"}


def test_one_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "SLOW_S", 0.01)
    monkeypatch.setattr(mirror, "CLOSING_S", 0.2)
    monkeypatch.setattr(mirror, "WAITING", 3)
    free, began = threading.Event(), threading.Event()

    def hang(_: int) -> None:
        began.set()
        free.wait()

    mirrored = Mirror(Scripted(hang), "tracker 'mine'")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mirrored.log(1, {})
        assert began.wait(30)
        time.sleep(0.05)
        for step in range(2, 7):
            mirrored.log(step, {})
        mirrored.close()
    free.set()
    assert [str(each.message) for each in said] == [
        "tracker 'mine' has been at one call for more than 10 ms; the run goes on",
        "tracker 'mine' is not done after 200 ms: it is left as it is",
        "tracker 'mine' has missed 2 calls: metrics.jsonl has it all",
    ]


ONE_RUN = """
import sys
from pathlib import Path

from rlkit.config import PluginRef, load
from rlkit.tracking import RunInfo, build_tracker, wandb

wandb.UPLOADING_S = float(sys.argv[2])
config = load("embedded_xs", [], "grpo").dump()
tracker = build_tracker(PluginRef(kind="wandb"), RunInfo(name="r", folder=Path(sys.argv[1]), config=config, steps=5))
for step in (1, 2, 3):
    tracker.log(step, {"reward/mean": step / 10})
    print("logged", flush=True)
    input()
tracker.close()
"""
"""In a process of its own, since wandb reads its settings once a process; it waits for a line after each step."""
LOGGED = [(1, 0.1), (2, 0.2), (3, 0.3)]


@contextlib.contextmanager
def wandb_run(server: WandbServer, folder: Path, upload_s: float, **more: str) -> Iterator[subprocess.Popen[str]]:
    unset = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env = unset | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_ENTITY": "me"} | more
    arguments = [sys.executable, "-c", ONE_RUN, str(folder), str(upload_s)]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env) as process:
        yield process


def until_logged(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        if line == "logged\n":
            return said
        said += line
    raise AssertionError(said)


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def rest(process: subprocess.Popen[str]) -> str:
    """Through the last steps to its end."""
    out, _ = process.communicate("\n" * 3, timeout=120)
    assert process.returncode == 0, out
    return out


def kept(file: Path) -> list[float]:
    """The rewards in the file that `wandb sync` uploads."""
    logged = [
        {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(file)
        if record.HasField("history")
    ]
    return [row["reward/mean"] for row in logged]


@pytest.fixture
def server() -> Iterator[WandbServer]:
    found = WandbServer()
    yield found
    found.close()


@pytest.mark.slow
def test_wandb_gets_everything_when_its_server_is_back(server: WandbServer, tmp_path: Path) -> None:
    with wandb_run(server, tmp_path, 60) as process:
        until_logged(process)
        server.away = True
        go_on(process)
        until_logged(process)
        give_up = time.monotonic() + 60
        while not server.refused and time.monotonic() < give_up:
            time.sleep(0.1)
        assert server.refused, "it was asked while it was away"
        server.away = False
        said = rest(process)
    assert "wandb sync" not in said
    assert [(row["step"], row["reward/mean"]) for row in server.history] == LOGGED


@pytest.mark.slow
def test_what_wandb_could_not_upload_is_said_and_synced_later(server: WandbServer, tmp_path: Path) -> None:
    with wandb_run(server, tmp_path, 2) as process:
        until_logged(process)
        server.away = True
        said = rest(process)
    found = re.search(r"wandb: not all could be uploaded; `(wandb sync .*)` uploads it", said)
    assert found is not None, said
    server.away = False
    server.history.clear()
    env = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_ENTITY": "me"}
    subprocess.run([sys.executable, "-m", *found[1].split()], check=True, capture_output=True, env=env, timeout=120)
    assert [(row["step"], row["reward/mean"]) for row in server.history] == LOGGED


@pytest.mark.slow
def test_a_run_that_begins_while_wandb_is_away_is_logged_offline(server: WandbServer, tmp_path: Path) -> None:
    server.away = True
    with wandb_run(server, tmp_path, 60, WANDB_INIT_TIMEOUT="2") as process:
        said = until_logged(process)
        rest(process)
    assert "wandb: offline (the server does not answer: " in said
    assert "upload with `wandb sync" in said
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert kept(file) == [value for _, value in LOGGED]
