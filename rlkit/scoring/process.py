"""One worker process as its parent sees it: messages, the tail of what it prints, and its certain end."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlkit.scoring.worker import LONGEST_REPLY, OUT_OF_MEMORY, frame, unframe
from rlkit.secrets import hide

_KEPT_OUTPUT = 4096
_CHUNK = 2**18
_LARGEST_LOG = 64 * 2**20
_MARK = "RLKIT_SCORING_WORKER"
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[3]); from rlkit.scoring.worker import main; main()"


class WorkerProcess:
    """A fresh interpreter in a session of its own, which inherits neither threads nor CUDA from the trainer."""

    def __init__(self, setup: str, deadline: float, log: Path | None = None) -> None:
        self.deadline = deadline
        """On time.monotonic()'s clock; it counts while the worker starts or has work."""
        self.ready = False
        self.fresh = True
        """It has scored nothing yet."""
        self.hung_up = False
        """Its end of the socket is closed, or what came from it is no message."""
        self.last_used = 0.0
        self.link, theirs = socket.socketpair()
        self.link.setblocking(False)
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        self.output = os.fdopen(read_end, "rb", buffering=0)
        self._inbox = bytearray()
        self._tail = bytearray()
        self._log = log
        self._mark = secrets.token_hex(8)
        environment = {"OMP_NUM_THREADS": "1", **os.environ, _MARK: self._mark}
        command = [sys.executable, "-X", "faulthandler", "-c", _START]
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(sys.path)]
        try:
            self._process = subprocess.Popen(
                [*command, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(write_end)
        self.send(setup)

    def rest(self) -> None:
        """It has nothing to do."""
        self.last_used = time.monotonic()
        self.deadline = float("inf")

    def send(self, message: object) -> None:
        """Never waits for long on a process that does not read: that one has hung up."""
        self.link.settimeout(10.0)
        try:
            self.link.sendall(frame(message))
        except OSError:
            self.hung_up = True
        self.link.setblocking(False)

    def read(self) -> None:
        """Take what lies on the socket."""
        for _ in range(64):
            try:
                chunk = self.link.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                chunk = b""
            self._inbox += chunk
            if not chunk:
                self.hung_up = True
                return

    def messages(self) -> Iterator[Any]:
        """What it has said."""
        while True:
            try:
                message = unframe(self._inbox)
            except Exception:  # whatever a broken pickle raises
                self.hung_up = True
                return
            if message is None:
                self.hung_up |= len(self._inbox) > 2 * LONGEST_REPLY
                return
            yield message

    def drain(self) -> None:
        """Take what it printed, so that it never waits; keep the end of it, and the rest in the log."""
        try:
            printed = self.output.read(_CHUNK) or b""
        except OSError:
            return
        self._tail += printed
        del self._tail[:-_KEPT_OUTPUT]
        if printed and self._log is not None:
            try:
                # A reward that never stops printing fills no disk.
                if not self._log.is_file() or self._log.stat().st_size < _LARGEST_LOG:
                    with self._log.open("ab") as file:
                        file.write(hide(printed.decode(errors="replace")).encode())
            except OSError:
                self._log = None

    def last_output(self) -> str:
        """The end of what it printed on stdout and stderr."""
        self.drain()
        return hide(self._tail.decode(errors="replace")).strip()

    def dead(self) -> bool:
        """It has ended, or is as good as dead. Its process id stays taken until `kill`."""
        return self.hung_up or self._exit() is not None

    def cause(self, memory_gib: float) -> str:
        """How it ended, for messages."""
        patience = time.monotonic() + 0.2
        while (ended := self._exit()) is None and time.monotonic() < patience:
            time.sleep(0.01)  # it has closed its socket, and is about to exit
        if ended is None:
            return "it closed its connection"
        if ended.si_code == os.CLD_EXITED:
            if ended.si_status == OUT_OF_MEMORY:
                return f"out of memory (scoring.memory_gib is {memory_gib:g})"
            return f"it exited with code {ended.si_status}"
        return f"it was killed by {signal.Signals(ended.si_status).name}"

    def _exit(self) -> Any:
        if self._process.returncode is not None:
            return None
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

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
        self.output.close()


def _marked(mark: str) -> Iterator[int]:
    wanted = f"{_MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
        except OSError:  # it has ended, or is another user's
            continue
