"""The embedded task: two-digit addition with worked carries.

The prompt is `47+85=`; the worked answer is `7+5+0=12;4+8+1=13;#### 132`: units, tens, sum, each column with
its carry. `#### ` is one token, and every other token is one character.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from rlkit.embedded.task import MARKER, split


@dataclass(frozen=True, slots=True)
class Addition:
    a: int
    b: int

    @property
    def prompt(self) -> str:
        return f"{self.a}+{self.b}="

    @property
    def answer(self) -> str:
        return str(self.a + self.b)

    @property
    def columns(self) -> dict[str, Any]:
        return {}


def problems(held_out: bool) -> list[Addition]:
    """Every problem of one split, in the order of their hashes, so that any first n are a fair sample."""
    return split((Addition(a, b) for a in range(10, 100) for b in range(10, 100)), held_out)


def demonstration(problem: Addition, rng: random.Random, guess: float, step_error: float) -> str:
    """A response to learn from. With probability `guess` the sum at once, without work, and then off by up to 9;
    else worked, each of the two columns miscounted with probability `step_error` and carried on with.
    """
    if rng.random() < guess:
        return f"{MARKER}{problem.a + problem.b + rng.randint(-9, 9)}"
    units = problem.a % 10 + problem.b % 10
    units = _miscount(units, rng, step_error)
    carry, last = divmod(units, 10)
    tens = _miscount(problem.a // 10 + problem.b // 10 + carry, rng, step_error)
    work = f"{problem.a % 10}+{problem.b % 10}+0={units};{problem.a // 10}+{problem.b // 10}+{carry}={tens};"
    return f"{work}{MARKER}{tens}{last}"


def _miscount(total: int, rng: random.Random, probability: float) -> int:
    if rng.random() >= probability:
        return total
    return rng.choice([t for t in range(max(0, total - 3), min(19, total + 3) + 1) if t != total])
