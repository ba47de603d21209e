"""A process that was started afresh, as its parent sees it: messages, what it prints, and its certain end."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.processes.inside import OUT_OF_MEMORY
from rlkit.processes.messages import Channel, frame
from rlkit.processes.printed import Printed

_MARK = "RLKIT_PROCESS"
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[3]); from {module} import main; main()"


class FreshProcess(Channel):
    """A fresh interpreter in a session of its own, which inherits neither threads nor CUDA from the trainer.

    It runs `main` of `module`, whose argv holds the socket's file descriptor and the parent's process id; the first
    message that it gets is `setup`.
    """

    def __init__(
        self, module: str, setup: object, log: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        self.printed = Printed(log)
        self._mark = secrets.token_hex(8)
        environment = {"OMP_NUM_THREADS": "1", **(environ or {}), **os.environ, _MARK: self._mark}
        command = [sys.executable, "-X", "faulthandler", "-c", _START.format(module=module)]
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(sys.path)]
        try:
            self._process = subprocess.Popen(
                [*command, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self.printed.theirs,
                stderr=self.printed.theirs,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        finally:
            theirs.close()
            self.printed.close_theirs()
        self.send(setup)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """With open files for the process to have too. Never waits for long on a process that does not read: that one
        has hung up."""
        self.link.settimeout(10.0)
        try:
            data = frame(message)
            self.link.sendall(data[socket.send_fds(self.link, [data], descriptors) :])
        except OSError:
            self.hung_up = True
        self.link.setblocking(False)

    def dead(self) -> bool:
        """It has ended, or is as good as dead. Its process id stays taken until `kill`."""
        return self.hung_up or self._exit() is not None

    def cause(self, memory: str) -> str:
        """How it ended, for messages; `memory`: the limit on it, as "scoring.memory_gib is 4"."""
        patience = time.monotonic() + 0.2
        while (ended := self._exit()) is None and time.monotonic() < patience:
            time.sleep(0.01)  # it has closed its socket, and is about to exit
        return HUNG_UP_SAID if ended is None else how(ended.si_code, ended.si_status, memory)

    def _exit(self) -> Any:
        if self._process.returncode is not None:
            return None
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def wait(self, patience_s: float) -> None:
        """For its end, so long."""
        until = time.monotonic() + patience_s
        while self._exit() is None and time.monotonic() < until:
            time.sleep(0.01)

    def kill(self) -> None:
        """End it, and whatever it started: its process group, and what has left that but bears its mark."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self._process.kill()
        self._process.wait(30.0)
        for _ in range(20):
            left = list(_marked(self._mark))
            if not left:
                break
            for process in left:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.005)
        self.link.close()
        self.printed.close()


HUNG_UP_SAID = "it closed its connection"


def how(code: int, status: int, memory: str) -> str:
    """How a process ended, of the two numbers that waitid gives; `memory`: the limit on it."""
    if code != os.CLD_EXITED:
        return f"it was killed by {signal.Signals(status).name}"
    if status == OUT_OF_MEMORY:
        return f"out of memory ({memory})"
    return f"it exited with code {status}"


def _marked(mark: str) -> Iterator[int]:
    wanted = f"{_MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
        except OSError:  # it has ended, or is another user's
            continue
