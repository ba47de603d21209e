"""The embedded task countdown: reach a target with some of the numbers given, each used at most once.

The prompt is `3,5,7;26=`, numbers in ascending order and target; a worked answer is
`7*3=21;21+5=26;#### (7*3)+5`. Any expression that reaches the target is right (the reward `countdown`), so there is no
gold but the target.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

from rlkit.embedded.task import MARKER, split

DRAWS = 10_000
HIGHEST_NUMBER, HIGHEST_TARGET = 9, 99


@dataclass(frozen=True, slots=True)
class Countdown:
    nums: tuple[int, ...]
    """In ascending order."""
    target: int
    chain: str
    """A solution, evaluated from left to right: `3*7+5`, where the second operation takes the first one's result."""

    @property
    def prompt(self) -> str:
        return f"{','.join(map(str, self.nums))};{self.target}="

    @property
    def answer(self) -> str:
        return str(self.target)

    @property
    def columns(self) -> dict[str, Any]:
        return {"nums": list(self.nums)}


def problems(held_out: bool) -> list[Countdown]:
    """Every problem of one split, in the order of their hashes; most have three numbers, some four."""
    return split(_every(), held_out)


@functools.cache
def _every() -> tuple[Countdown, ...]:
    rng = random.Random(0)
    found: dict[tuple[tuple[int, ...], int], str] = {}
    for _ in range(DRAWS):
        count = 4 if rng.random() < 1 / 10 else 3
        # Only random() is promised to give the same numbers in every version of Python.
        nums = tuple(sorted(1 + int(rng.random() * HIGHEST_NUMBER) for _ in range(count)))
        order = sorted(nums, key=lambda _: rng.random())
        operations = [_OPERATIONS[int(rng.random() * len(_OPERATIONS))] for _ in order[1:]]
        total: int | None = order[0]
        for operation, number in zip(operations, order[1:], strict=True):
            total = None if total is None else _apply(total, operation, number)
        if total is not None and total <= HIGHEST_TARGET:
            chain = str(order[0]) + "".join(f"{o}{n}" for o, n in zip(operations, order[1:], strict=True))
            # Of several solutions always the same kind is shown: large numbers first.
            found[nums, total] = max(found.get((nums, total), ""), chain)
    return tuple(Countdown(nums, total, chain) for (nums, total), chain in found.items())


_OPERATIONS = "++--**/"


def _apply(a: int, operation: str, b: int) -> int | None:
    """The result where it is a positive whole number."""
    if operation == "/":
        return a // b if a % b == 0 else None
    total = {"+": a + b, "-": a - b, "*": a * b}[operation]
    return total if total > 0 else None


def demonstration(problem: Countdown, rng: random.Random, guess: float, step_error: float) -> str:
    """A response to learn from. With probability `guess` an expression at random, without work; else worked, each
    operation replaced by another, and gone on from, with probability `step_error`.
    """
    if rng.random() < guess:
        numbers = rng.sample(problem.nums, len(problem.nums))
        operations = [rng.choice("+-*") for _ in numbers[1:]]
        return MARKER + _bracketed(numbers, operations)
    numbers = [int(digit) for digit in problem.chain[::2]]
    operations = [o if rng.random() >= step_error else rng.choice("+-*") for o in problem.chain[1::2]]
    work, total = "", numbers[0]
    for operation, number in zip(operations, numbers[1:], strict=True):
        result = _apply(total, operation, number)
        if result is None:
            operation, result = "+", total + number
        work += f"{total}{operation}{number}={result};"
        total = result
    used = [step.lstrip("0123456789")[0] for step in work.split(";")[:-1]]
    return work + MARKER + _bracketed(numbers, used)


def _bracketed(numbers: list[int], operations: list[str]) -> str:
    """((3*7)+5)-1: no precedence is needed to read it."""
    text = str(numbers[0])
    for i, (operation, number) in enumerate(zip(operations, numbers[1:], strict=True)):
        text = f"({text}){operation}{number}" if i else f"{text}{operation}{number}"
    return text
