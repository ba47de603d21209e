"""The embedded task sorting: numbers below 100 in ascending order.

The prompt is `52,7,38,19=`; the answer `#### 7,19,38,52`.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

from rlkit.embedded.task import MARKER, split

DRAWS = 10_000
SHORTEST, LONGEST = 3, 5


@dataclass(frozen=True, slots=True)
class Sorting:
    items: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return f"{_joined(self.items)}="

    @property
    def answer(self) -> str:
        return _joined(sorted(self.items))

    @property
    def columns(self) -> dict[str, Any]:
        return {"items": list(self.items)}


def problems(held_out: bool) -> list[Sorting]:
    """Every problem of one split, in the order of their hashes: lists of three to five numbers."""
    return split(_every(), held_out)


@functools.cache
def _every() -> tuple[Sorting, ...]:
    rng = random.Random(0)
    found: dict[tuple[int, ...], Sorting] = {}
    for _ in range(DRAWS):
        # Only random() is promised to give the same numbers in every version of Python.
        length = SHORTEST + int(rng.random() * (LONGEST - SHORTEST + 1))
        items = tuple(int(rng.random() * 100) for _ in range(length))
        # One order of the same numbers is enough: another could land in the other split.
        found.setdefault(tuple(sorted(items)), Sorting(items))
    return tuple(found.values())


def demonstration(problem: Sorting, rng: random.Random, guess: float, step_error: float) -> str:
    """A response to learn from. With probability `guess` the numbers in any order; else sorted, but each of them
    changed places with the next with probability `step_error`.
    """
    if rng.random() < guess:
        return MARKER + _joined(rng.sample(problem.items, len(problem.items)))
    items = sorted(problem.items)
    for i in range(len(items) - 1):
        if rng.random() < step_error:
            items[i], items[i + 1] = items[i + 1], items[i]
    return MARKER + _joined(items)


def _joined(items: tuple[int, ...] | list[int]) -> str:
    return ",".join(map(str, items))
