"""Several ranks on one machine: `rlkit run --nproc 2` starts the same command once for each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time


def launch(nproc: int, arguments: list[str]) -> int:
    """Run `rlkit ARGUMENTS` in `nproc` processes that find each other, and wait for them.

    Returns the exit code of the first that failed (the others are then ended), or 0. An interrupt from the
    terminal reaches the ranks by itself, and they end the run cleanly; so it is ignored here.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "rlkit", *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            preexec_fn=_default_signals,
        )
        for rank in range(nproc)
    ]

    def pass_on(signum: int, frame: object) -> None:
        for rank in ranks:
            rank.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    try:
        return _wait(ranks)
    finally:
        for rank in ranks:
            rank.kill()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [code for code in codes if code]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)
