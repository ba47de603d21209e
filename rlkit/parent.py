"""A process that was started ends with the one that started it, whatever ended that."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Looked up here: between fork and exec nothing is to be loaded.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def end_with(parent: int, by: signal.Signals) -> None:
    """Have this process sent `by` when `parent`, which started it, ends; at once, where it has ended already. Elsewhere
    than on Linux the second alone."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os.kill(os.getpid(), by)


def adopt() -> None:
    """Have what this process starts come to it, and not to the system's first process, when its own parent ends. On
    Linux alone."""
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
