"""Imports of much at once, in less time."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# nanobind, which triton is made with, reports as leaks at the end what the collector does not see.
atexit.register(gc.unfreeze)


@contextmanager
def importing() -> Iterator[None]:
    """Import much within. What is made meanwhile is taken for lasting, and never looked through for garbage.

    A run imports thousands of modules, none of which is ever garbage. Python's collector would go through all of them
    again and again as they grow more: an eighth of the time to the first step, more with vLLM.
    """
    collects = gc.isenabled()
    gc.collect()  # what is garbage by now must not be kept for good
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collects:
            gc.enable()
