"""The process that environments are forked from, as the pool sees it; and what is said of how one of them ended."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import time
from pathlib import Path

from rlkit.blame import place
from rlkit.environments.process import HUNG_UP, Ended, Fork, Setup
from rlkit.errors import ConfigError, RlkitError
from rlkit.processes.fresh import HUNG_UP_SAID, FreshProcess, how
from rlkit.processes.messages import Channel
from rlkit.processes.printed import Printed

START_S = 120.0
"""Within which the plugins must be imported and the environment made, and within which a copy of that begins."""
_MOST_LOGGED = 2**20
"""Bytes that one trajectory may put into the log: looking for secrets in them takes time."""
_OTHER_FILES = 512
"""Open files that the rest of a run may need."""


class Nursery(FreshProcess):
    def __init__(self, setup: Setup, log: Path | None) -> None:
        # A set of texts has the same order in every run.
        super().__init__("rlkit.environments.process", setup, log, {"PYTHONHASHSEED": "0"})
        self.deadline = time.monotonic() + START_S
        """Until it is ready."""
        self.ready = False
        self._log = log

    def fork(self, life: int) -> tuple[Channel, Printed]:
        """Have it make a process for one trajectory: what is said to that, and what it prints."""
        try:
            ours, theirs = socket.socketpair()
            printed = Printed(self._log, _MOST_LOGGED)
        except OSError as error:
            raise RlkitError(f"no process for an environment: {error}. Set conversation.at_once lower") from error
        with theirs:
            self.send(Fork(life), (theirs.fileno(), printed.theirs))
        printed.close_theirs()
        return Channel(ours), printed

    def close(self) -> None:
        """End it and all that it has forked."""
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        if self.ready:
            self.wait(10.0)  # it ends what it has forked, and takes leave of it
        self.kill()


def room_for(at_once: int) -> None:
    """Open files for so many trajectories; ConfigError where the machine allows no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * at_once + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(
            f"conversation.at_once: {at_once:,} trajectories under way need {needed:,} open files, and this machine "
            f"allows a process {hard:,} (ulimit -Hn): set it to {max(1, (hard - _OTHER_FILES) // 2):,} or less"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def how_ended(ended: Ended, memory: str) -> str:
    """For messages; `memory`: the limit on it."""
    if ended.failed:
        return f"it could not be forked: {ended.failed}"
    if ended.code == os.CLD_EXITED and ended.status == HUNG_UP:
        return HUNG_UP_SAID
    return how(ended.code, ended.status, memory)


def where(printed: str, file: str | None) -> str:
    """ "; it was at mine.py:14, in step", if what faulthandler has printed says so: the innermost line of `file`, or of
    any."""
    dump = printed.rpartition("(most recent call first):")[2] if "Timeout (" in printed else ""
    lines = re.findall(r'^  File "(.+)", line (\d+) in (\S+)', dump, re.MULTILINE)
    found = [line for line in lines if line[0] == file] or lines
    return f"; it was at {place(found[0][0], int(found[0][1]))}, in {found[0][2]}" if found else ""
