"""A rank's end: all that Python ends is ended, and the exit code is what was asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rlkit.engine import distributed

LEAVES = """
import atexit, sys, threading, time
from rlkit.engine.distributed import leave
atexit.register(lambda: print("at exit", end=""))
threading.Thread(target=lambda: (time.sleep(0.2), print("the thread, then ", end=""))).start()
sys.stderr.write("said")
class Torn:
    def __del__(self):
        print("torn down")
torn = Torn()
leave(3)
"""


def test_a_rank_leaves_when_all_is_ended_and_before_the_teardown() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "the thread, then at exit")
    assert done.stderr.endswith("said")


def test_a_gpu_s_peak_is_of_the_device_and_begins_anew_once_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gib, free = 2**30, [70, 30, 60, 65, 75]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free.pop(0) * gib, 80 * gib))
    distributed.look_at_memory()
    distributed.look_at_memory()
    assert distributed.peak_memory_gib() == 50
    distributed.look_at_memory()
    assert distributed.peak_memory_gib() == 15
    assert free == []
