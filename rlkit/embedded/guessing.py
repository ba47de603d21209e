"""The embedded task guessing: a number between bounds, in as few guesses as can be, for the environment `guessing`.

The prompt is `12,38=`; a turn is a number, `25`, and the environment answers `+` where its number is higher and `-`
where it is lower.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.embedded.task import split

NARROWEST, WIDEST = 8, 31
"""Numbers from bound to bound. Five guesses that halve what is left find any of 31."""


@dataclass(frozen=True, slots=True)
class Guessing:
    low: int
    high: int
    number: int

    @property
    def prompt(self) -> str:
        return f"{self.low},{self.high}="

    @property
    def answer(self) -> str:
        return str(self.number)

    @property
    def columns(self) -> dict[str, Any]:
        return {}


def problems(held_out: bool) -> list[Guessing]:
    """Every problem of one split, in the order of their hashes: one number for each pair of bounds."""
    return split(_every(), held_out)


@functools.cache
def _every() -> tuple[Guessing, ...]:
    rng = random.Random(0)
    # Only random() is promised to give the same numbers in every version of Python.
    return tuple(
        Guessing(low, low + width - 1, low + int(rng.random() * width))
        for low in range(10, 100)
        for width in range(NARROWEST, WIDEST + 1)
        if low + width <= 100
    )


def move(
    problem: Guessing, turns: Sequence[str], said: Sequence[str], rng: random.Random, guess: float, step_error: float
) -> str:
    """A turn to learn from: the middle of what is left; with probability `step_error` missed by up to 3. With
    probability `guess` a game begins with any number, and then every turn is any number within the bounds.
    """
    first = (problem.low + problem.high) // 2
    if rng.random() < guess if not turns else turns[0] != str(first):
        return str(rng.randint(problem.low, problem.high))
    low, high = problem.low, problem.high
    for number, answer in zip(map(int, turns), said, strict=True):
        low, high = (max(low, number + 1), high) if answer == "+" else (low, min(high, number - 1))
    middle = (low + high) // 2
    return str(rng.randint(middle - 3, middle + 3) if turns and rng.random() < step_error else middle)
