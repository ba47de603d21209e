"""What a run is at, said by those who do the work to whoever shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called often, a completion each time: it must cost next to nothing."""

    def __call__(self, phase: str, done: int = 0, total: int = 0) -> None:
        """`phase`: a word or two, such as sampling. `done` of `total` are done in it on this rank; total 0: it is not
        counted."""
        ...


def unseen(phase: str, done: int = 0, total: int = 0) -> None:
    """Nobody looks."""
