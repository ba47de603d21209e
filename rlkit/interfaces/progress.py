"""What a run is at, said by those who do the work to whoever shows it; and the signs of life that they give meanwhile.

A sign is the process's, whichever thread and whichever part gives it: what a run is ended for is that none comes at all
(rlkit/loop/stalls.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called often, a completion each time: it must cost next to nothing."""

    def __call__(self, phase: str, done: int = 0, total: int = 0) -> None:
        """`phase`: a word or two, such as sampling. `done` of `total` are done in it on this rank; total 0: it is not
        counted."""
        ...


def unseen(phase: str, done: int = 0, total: int = 0) -> None:
    """Nobody looks."""


_signs = 0
_waits: list[str] = []


def alive() -> None:
    """Give a sign of life: a token of each sample, a micro-batch, a weight is done. For what goes on within a phase for
    long without being counted in it."""
    global _signs
    _signs += 1


def signs() -> int:
    """Another number after each sign."""
    return _signs


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Within, this process does nothing but wait for that: "the other ranks"."""
    _waits.append(what)
    try:
        yield
    finally:
        _waits.remove(what)


def waited_for() -> str | None:
    """What is waited for just now; None: nothing that is named so."""
    return next(iter(_waits), None)
