"""Several ranks on one machine: `rlkit run --nproc 2` starts the same command once for each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

from rlkit import ranks as started
from rlkit.errors import TOLD_TO_END, ConfigError
from rlkit.parent import end_with
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
    named. A signal that asks for an end is passed on, and the ranks end the run cleanly. So they do where this process
    is killed.
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
    ranks: list[subprocess.Popen[bytes]] = []
    heard: list[int] = []

    def pass_on(number: int, _: object) -> None:
        heard.append(number)
        if number == signal.SIGINT and _in_the_foreground():
            return  # the terminal has told the ranks, too
        for rank in ranks:
            if heard.count(signal.SIGINT) > 1:
                rank.kill()
            else:  # who interrupts all processes of a job has told the ranks, and twice would end them at once
                rank.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    # Under nohup, which has the end of the terminal ignored, that stays so.
    caught = [s for s in TOLD_TO_END if s != signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, pass_on) for s in caught}
    try:
        for rank in range(nproc):
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "rlkit", *arguments],
                    env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    preexec_fn=partial(end_with, os.getpid(), signal.SIGTERM),
                )
            )
        code = _wait(ranks, heard)
        # By which they were told may be another.
        return 128 + heard[0] if heard and code - 128 in TOLD_TO_END else code
    finally:
        for each in ranks:
            each.kill()
            each.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_the_foreground() -> bool:
    """Whether the terminal sends its interrupts to this process and those that it has started."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _wait(ranks: Sequence[subprocess.Popen[bytes]], heard: Sequence[int]) -> int:
    while True:
        codes = [rank.poll() for rank in ranks]
        for rank, code in enumerate(codes):
            if code is not None and code < 0:
                if not heard:
                    print(f"rlkit: {_killed(rank, -code)}", file=sys.stderr, flush=True)
                return 128 - code
        failed = [code for code in codes if code]
        # Those that were told to end all do, each in its time.
        if any(code - 128 not in TOLD_TO_END for code in failed):
            return failed[0]
        if None not in codes:
            return failed[0] if failed else 0
        time.sleep(0.1)


def _killed(rank: int, number: int) -> str:
    """For who sees no other message: a process that is killed says none."""
    name = signal.Signals(number).name
    why = {
        signal.SIGKILL: ". That is what a system does that has run out of memory: `dmesg` and the job's limit tell",
        signal.SIGABRT: ": what a library in it printed last, above, says why",
    }.get(signal.Signals(number), "")
    return f"rank {rank} was killed by {name}{why}. The others are ended; --resume goes on from the last checkpoint"
