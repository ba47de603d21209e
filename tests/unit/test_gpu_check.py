"""tools/gpu_check.py: it runs where there is no GPU, and an item that goes wrong is said and stops no other."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

TOOLS = Path(__file__).resolve().parents[2] / "tools"
GIVEN = {"small": True, "model": None, "data": None}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import gpu_check

    return gpu_check


def hang(item: Any) -> None:
    item.say("before it hung", "1")
    subprocess.Popen(["sleep", "60"])
    time.sleep(60)


def fall(item: Any) -> None:
    item.say("before it fell", "1", "1")
    raise ValueError("first line\nthe last line")


def differ(item: Any) -> None:
    item.say("as wanted", "1", "1")
    item.say("a | b", "2", "3", fits=False)


def die(item: Any) -> None:
    os.write(2, b"terminate called\n")
    os._exit(134)


def sound(item: Any) -> None:
    item.say("as wanted", "1", "1")


def leave_out(item: Any) -> None:
    import gpu_items

    raise gpu_items.Skipped("there is no such thing here")


FAKES = {"init": hang, "runs": fall, "engine": differ, "ragged": die, "speed": sound, "budget": leave_out}


@pytest.mark.skipif(torch.cuda.is_available(), reason="its processes are not forks with a GPU")
def test_no_item_stops_another(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tool, "function_of", FAKES.__getitem__)
    monkeypatch.setattr(tool, "LIMITS", {"init": 0.2} | dict.fromkeys([*FAKES][1:], 10))
    monkeypatch.setattr(tool, "LEAST_S", 0.0)
    file = tmp_path / "found.json"
    done = CliRunner().invoke(tool.main, ["--json", str(file), "--keep", str(tmp_path / "kept")])
    assert done.exit_code == 1, done.output
    found = {each["item"]: each for each in json.loads(file.read_text())["items"]}
    assert {name: (each["verdict"], each["why"]) for name, each in found.items()} == {
        "init": ("failed", "not done within 2 s"),
        "runs": ("failed", "ValueError: the last line"),
        "engine": ("off", ""),
        "ragged": ("failed", "ended with 134: terminate called"),
        "speed": ("ok", ""),
        "budget": ("skipped", "there is no such thing here"),
    }
    assert [row["what"] for row in found["init"]["figures"]] == ["before it hung"]
    assert [row["what"] for row in found["runs"]["figures"]] == ["before it fell"]
    assert found["init"]["seconds"] < 30, "what it had started was waited for"
    assert "| | a \\| b | 2 | 3 | off |" in done.output
    assert "Traceback" in (tmp_path / "kept" / "runs" / "log").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="its processes are not forks with a GPU")
def test_items_past_the_time_are_left_out(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tool, "function_of", FAKES.__getitem__)
    file = tmp_path / "found.json"
    done = CliRunner().invoke(tool.main, ["speed", "--minutes", "0.001", "--json", str(file)])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(file.read_text())["items"]
    assert (found["verdict"], found["why"], found["figures"]) == ("skipped", "no time left", [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_full_sizes_without_a_gpu_are_refused(tool: ModuleType) -> None:
    done = CliRunner().invoke(tool.main, ["--size", "full"])
    assert done.exit_code == 2
    assert "--size full needs a GPU" in done.output


@pytest.mark.slow
def test_an_item_begins_from_nothing_where_there_is_a_gpu(tool: ModuleType, tmp_path: Path) -> None:
    found = tool.check("init", 300, tmp_path / "init", GIVEN, fork=False)
    assert found.verdict == "ok", found
    assert {row["what"] for row in found.figures} >= {"joining the group", "all_reduce, gather, barrier"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_runs_at_small_sizes(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    command = [sys.executable, str(TOOLS / "gpu_check.py"), "--size", "small", "--model", "embedded:xs"]
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads(file.read_text())
    found: Mapping[str, Any] = {each["item"]: each for each in kept["items"]}
    without = {
        name
        for name, there in {"vllm": importlib.util.find_spec("vllm"), "tests": torch.cuda.is_available()}.items()
        if not there
    }
    assert {name for name, each in found.items() if each["verdict"] == "skipped"} == without
    assert all(each["figures"] for name, each in found.items() if name not in without)
    assert {"date", "card", "commit", "torch", "deepspeed"} <= kept["about"].keys()
