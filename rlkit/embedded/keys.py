"""The embedded task keys: an early choice decides a late reward, for the environment `keys`.

The prompt is `4,9,2,7=`, of which the largest is the right key; the turns are the key, `9`, and then digits above the
ones that the environment shows: `3;` is answered by `8`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.embedded.task import split

OFFERED = 4


@dataclass(frozen=True, slots=True)
class Keys:
    offered: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return f"{','.join(map(str, self.offered))}="

    @property
    def answer(self) -> str:
        return str(max(self.offered))

    @property
    def columns(self) -> dict[str, Any]:
        return {}


def problems(held_out: bool) -> list[Keys]:
    """Every problem of one split, in the order of their hashes: four of the digits, in any order."""
    return split(map(Keys, itertools.permutations(range(10), OFFERED)), held_out)


def move(
    problem: Keys, turns: Sequence[str], said: Sequence[str], rng: random.Random, guess: float, step_error: float
) -> str:
    """A turn to learn from: any of the keys, one as often as another; then a digit above the one shown. With
    probability `guess` any digit instead, and with probability `step_error` one that is too low.
    """
    if not turns:
        return str(rng.choice(problem.offered))
    shown = int(said[-1].rstrip(";"))
    if rng.random() < guess:
        return str(rng.randint(0, 9))
    return str(rng.randint(0, shown) if rng.random() < step_error else rng.randint(shown + 1, 9))
