"""The embedded task calculator: sums that can be done in the head and products that cannot, for the environment
`calculator`.

The prompt is `47+5=` or `47*85=`; a turn calls the calculator, `(47*85)`, whose answer is `3995`, or answers:
`#### 3995`.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.embedded.task import MARKER, split


@dataclass(frozen=True, slots=True)
class Calculation:
    a: int
    operation: str
    b: int

    @property
    def prompt(self) -> str:
        return f"{self.a}{self.operation}{self.b}="

    @property
    def answer(self) -> str:
        return str(self.a + self.b if self.operation == "+" else self.a * self.b)

    @property
    def columns(self) -> dict[str, Any]:
        return {}


def problems(held_out: bool) -> list[Calculation]:
    """Every problem of one split, in the order of their hashes: two products for each sum."""
    return split(_every(), held_out)


@functools.cache
def _every() -> tuple[Calculation, ...]:
    sums = [Calculation(a, "+", b) for a in range(10, 100) for b in range(10)]
    rng = random.Random(0)
    # Only random() is promised to give the same numbers in every version of Python.
    products = sorted(itertools.product(range(11, 100), repeat=2), key=lambda _: rng.random())[: 2 * len(sums)]
    return (*sums, *(Calculation(a, "*", b) for a, b in products))


def move(
    problem: Calculation, turns: Sequence[str], said: Sequence[str], rng: random.Random, guess: float, step_error: float
) -> str:
    """A turn to learn from: a call, and then what it gave. With probability `guess` an answer at once: the sum, or any
    product. With probability `step_error` a call of another number, and a result that is off by up to 9.
    """
    wrong = rng.random() < step_error
    if turns:
        off = rng.choice((-1, 1)) * rng.randint(1, 9) if wrong else 0
        return f"{MARKER}{max(0, int(said[-1]) + off)}"
    others = (0, 9) if problem.operation == "+" else (11, 99)
    if rng.random() >= guess:
        return f"({problem.a}{problem.operation}{rng.randint(*others) if wrong else problem.b})"
    if problem.operation == "*":
        return f"{MARKER}{problem.a * rng.randint(*others)}"
    return f"{MARKER}{problem.answer}"
