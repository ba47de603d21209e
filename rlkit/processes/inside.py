"""Within a process for users' code: its limits, and what a call of it leaves behind."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Iterator

from rlkit.blame import tail

OUT_OF_MEMORY = 77
"""Exit code."""


def confine(memory_gib: float) -> None:
    """Limit this process' address space, and have it write no core."""
    _limit(resource.RLIMIT_AS, int(memory_gib * 2**30))
    _limit(resource.RLIMIT_CORE, 0)


def _limit(what: int, amount: int) -> None:
    hard = resource.getrlimit(what)[1]
    amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(what, (amount, amount))


@contextlib.contextmanager
def watched(timeout_s: float) -> Iterator[None]:
    """A call of users' code within; the process is killed when it has gone on for `timeout_s`."""
    # Where a call hangs is on stderr by the time it is killed.
    faulthandler.dump_traceback_later(0.8 * timeout_s, file=sys.__stderr__ or 2)
    try:
        yield
    except MemoryError as error:
        # What is left in such a process is not to be trusted with the next call.
        with contextlib.suppress(BaseException):
            os.write(2, tail(error).encode())
        os._exit(OUT_OF_MEMORY)
    finally:
        faulthandler.cancel_dump_traceback_later()
        # An alarm that a function left behind would go off in the next one's.
        signal.setitimer(signal.ITIMER_REAL, 0)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the function may have closed or replaced it
                stream.flush()
