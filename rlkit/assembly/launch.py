"""Several ranks on one machine: `rlkit run --nproc 2` starts the same command once for each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from rlkit import ranks as started
from rlkit.errors import ConfigError
from rlkit.wording import counted


def ranks_here(nproc: int | None) -> int:
    """How many ranks a run on this machine has: `nproc`, else one on each GPU, else one. ConfigError for more than
    there are GPUs."""
    gpus = started.visible_gpus()
    if nproc is not None and gpus and nproc > len(gpus):
        raise ConfigError(
            f"--nproc {nproc}, but there {'is' if len(gpus) == 1 else 'are'} {counted(len(gpus), 'GPU')} "
            f"({', '.join(gpus)}): a rank needs one to itself. Leave --nproc out for one rank on each"
        )
    return nproc or max(1, len(gpus))


def launch(nproc: int, arguments: list[str]) -> int:
    """Run `rlkit ARGUMENTS` in `nproc` processes that find each other, and wait for them.

    Returns the exit code of the first that failed (the others are then ended), or 0; one that a signal has killed is
    named. An interrupt from the
    terminal reaches the ranks by itself, and they end the run cleanly; so it is ignored here.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        started.STARTER: started.NPROC,
    }
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
        for rank, code in enumerate(codes):
            if code is not None and code < 0:
                print(f"rlkit: {_killed(rank, -code)}", file=sys.stderr, flush=True)
                return 128 - code
        if failed := [code for code in codes if code]:
            return failed[0]
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


def _killed(rank: int, number: int) -> str:
    """For who sees no other message: a process that is killed says none."""
    name = signal.Signals(number).name
    why = {
        signal.SIGKILL: ". That is what a system does that has run out of memory: `dmesg` and the job's limit tell",
        signal.SIGABRT: ": what a library in it printed last, above, says why",
    }.get(signal.Signals(number), "")
    return f"rank {rank} was killed by {name}{why}. The others are ended; --resume goes on from the last checkpoint"
