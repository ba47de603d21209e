"""What the embedded tasks share: the characters their models know, and how problems are split."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

PAD, EOS, MARKER, UNKNOWN = "<pad>", "<eos>", "#### ", "<unk>"
VOCABULARY = (PAD, EOS, MARKER, *"0123456789+-*/()=;,. ", UNKNOWN)
"""25 tokens; the index is the token id."""

TEST_SHARE = 5
"""One problem in so many is held out."""


class Problem(Protocol):
    @property
    def prompt(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def columns(self) -> dict[str, Any]:
        """What the verifier reads besides the answer."""


class Task(Protocol):
    """A module of this package."""

    def problems(self, held_out: bool) -> list[Any]: ...


class Answered(Task, Protocol):
    """One whose answer is a single response."""

    def demonstration(self, problem: Any, rng: random.Random, guess: float, step_error: float) -> str: ...


class Played(Task, Protocol):
    """One that is played over several turns, in the environment of its name."""

    def move(
        self,
        problem: Any,
        turns: Sequence[str],
        said: Sequence[str],
        rng: random.Random,
        guess: float,
        step_error: float,
    ) -> str:
        """The next turn, after these and what the environment said behind each."""
        ...


P = TypeVar("P", bound=Problem)


def digest(prompt: str) -> int:
    """A hash of the problem: it decides the split and the order."""
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big")


def split(every: Iterable[P], held_out: bool) -> list[P]:
    """The problems of one split, in the order of their hashes, so that any first n are a fair sample."""
    hashed = ((digest(problem.prompt), problem) for problem in every)
    mine = [pair for pair in hashed if (pair[0] % TEST_SHARE == 0) == held_out]
    return [problem for _, problem in sorted(mine, key=lambda pair: pair[0])]
