"""What a process prints: the end of it is kept, and the rest in a log of bounded size."""

from __future__ import annotations

import os
from pathlib import Path

from rlkit.secrets import hide

_KEPT = 4096
_CHUNK = 2**18
_LARGEST_LOG = 64 * 2**20


class Printed:
    """The reading end of a pipe. The process writes to `theirs`, which `close_theirs` closes here once it has it.

    most: bytes of it that go into the log, which has a limit of its own.
    """

    def __init__(self, log: Path | None = None, most: int = _LARGEST_LOG) -> None:
        read_end, self.theirs = os.pipe()
        os.set_blocking(read_end, False)
        self.stream = os.fdopen(read_end, "rb", buffering=0)
        self._tail = bytearray()
        self._log = log
        self._left = most

    def close_theirs(self) -> None:
        os.close(self.theirs)

    def drain(self) -> bool:
        """Take what it printed, so that it never waits; keep the end of it, and the rest in the log. False: no more
        will come."""
        if self.stream.closed:
            return False
        try:
            printed = self.stream.read(_CHUNK)
        except OSError:
            return False
        if not printed:
            return printed is None
        self._tail += printed
        del self._tail[:-_KEPT]
        if self._log is not None and self._left > 0:
            self._left -= len(printed)
            try:
                # What never stops printing fills no disk.
                if not self._log.is_file() or self._log.stat().st_size < _LARGEST_LOG:
                    with self._log.open("ab") as file:
                        file.write(hide(printed.decode(errors="replace")).encode())
            except OSError:
                self._log = None
        return True

    def last(self) -> str:
        """The end of what it printed on stdout and stderr."""
        self.drain()
        return hide(self._tail.decode(errors="replace")).strip()

    def close(self) -> None:
        self.stream.close()
