"""What is between the command and the first step, and need not be."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch


def said_by(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed's operators are for GPUs")
def test_joining_the_process_group_starts_no_compiler() -> None:
    (started,) = said_by(
        "import sys\n"
        "started = []\n"
        "sys.addaudithook(lambda event, given: event == 'subprocess.Popen' and started.append(given[0]))\n"
        "from rlkit.engine import distributed\n"
        "distributed.init()\n"
        "print(started)"
    )
    assert started == "[]"
