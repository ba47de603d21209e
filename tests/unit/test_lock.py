"""One at a time works in a folder, and who does is named; the lock ends with its holder, however that ends."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlkit import config as configs
from rlkit.assembly.run import train
from rlkit.errors import ConfigError
from rlkit.records.lock import alone, remove_unused

HOLDS = """
import sys
from pathlib import Path
from rlkit.records.lock import alone
with alone(Path(sys.argv[1]), "run", ""):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_one_is_refused_by_name_until_the_first_has_ended_or_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "x"
    command = [sys.executable, "-c", HOLDS, str(folder)]
    for ends_by in (signal.SIGKILL, None):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
            assert first.stdout is not None
            assert first.stdout.readline() == "held\n"
            holder = rf"process {first.pid} on {re.escape(socket.gethostname())}, since 20\d\d-.*"
            said = rf"x: a run is at work there \({holder}\)\. Wait"
            with pytest.raises(ConfigError, match=said), alone(folder, "run", "Wait"):
                pass
            if ends_by is not None:
                first.send_signal(ends_by)
            else:
                first.communicate("")
        with alone(folder, "run", "Wait"):
            assert f"process {os.getpid()} on " in (folder / "lock").read_text()


def test_a_lock_that_its_holder_has_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two would hold one each: a file that is gone, and the one in its place."""
    folder = tmp_path / "x"
    lock, removed = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(True)
            remove_unused(folder, [folder])
            folder.mkdir()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with alone(folder, "run", "Wait"), pytest.raises(ConfigError, match="at work"), alone(folder, "run", "Wait"):
        pass
    assert removed


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.warns(UserWarning, match=r"without locks \(Function not implemented\)"), alone(tmp_path, "run", ""):
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_and_a_resume_beside_a_live_run_are_refused(resume: bool, tmp_path: Path) -> None:
    config = configs.load("embedded_xs", [f"out={tmp_path}", "name=x"])
    with alone(tmp_path / "x", "run", ""), pytest.raises(ConfigError, match="a run is at work there") as refused:
        train(config, resume=resume, quiet=True)
    assert refused.value.exit_code == 2
    assert [file.name for file in (tmp_path / "x").iterdir()] == ["lock"]


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    config = configs.load("embedded_xs", [f"out={tmp_path}", "name=x", f"model.path={tmp_path / 'nowhere'}"])
    with pytest.raises(ConfigError, match="nowhere"):
        train(config, quiet=True)
    assert not (tmp_path / "x").exists()
