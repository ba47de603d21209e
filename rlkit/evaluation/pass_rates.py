"""What n samples of each problem say of a model: mean@n, pass@k, maj@k, each with an interval over problems.

All three are means over problems of an unbiased estimate for each: of the chance that one sample is right, that at
least one of k is, and that the answer most of k samples give is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Verdict:
    """What is known of one sample."""

    correct: bool
    """A sample without a value is not correct."""
    answer: str | None
    """What it votes for; None: it gave no answer, and does not vote."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and its bootstrap interval."""

    value: float
    low: float
    high: float


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that one of k samples is right, from n of which so many are: unbiased (arXiv 2107.03374).

    ValueError unless 1 <= k <= n and 0 <= correct <= n.
    """
    _check(n, k)
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n} samples")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def maj_at_k(verdicts: Sequence[Verdict], k: int) -> float:
    """The chance that the answer most of k samples give is right: the share of all subsets of k, counted exactly.

    Right answers vote together, however they are written; wrong ones by their text; samples without an answer do
    not vote. A tie counts by the share of its answers that is right. ValueError unless 1 <= k <= n.
    """
    n = len(verdicts)
    _check(n, k)
    right = sum(v.correct for v in verdicts)
    wrong = Counter(v.answer for v in verdicts if not v.correct and v.answer is not None)
    silent = n - right - wrong.total()
    won = 0.0
    for votes in range(1, min(right, k) + 1):
        # (samples drawn, wrong answers that tie) -> ways to draw them, no wrong answer having more than `votes`
        ways = {(drawn, 0): math.comb(silent, drawn) for drawn in range(min(silent, k - votes) + 1)}
        for size in wrong.values():
            grown: Counter[tuple[int, int]] = Counter()
            for (drawn, ties), count in ways.items():
                for more in range(min(size, votes, k - votes - drawn) + 1):
                    grown[drawn + more, ties + (more == votes)] += count * math.comb(size, more)
            ways = dict(grown)
        shared = sum(count / (1 + ties) for (drawn, ties), count in ways.items() if drawn == k - votes)
        won += math.comb(right, votes) * shared
    return won / math.comb(n, k)


def bootstrap(per_problem: NDArray[np.float64], seed: int = 0) -> Estimate:
    """The mean of [P] numbers and the percentile interval of its bootstrap over problems, at 95 %.

    The draws depend on P and the seed alone. With few problems (30 of AIME) the interval is somewhat too narrow.
    """
    draws = np.random.Generator(np.random.PCG64(seed)).integers(len(per_problem), size=(RESAMPLES, len(per_problem)))
    means = per_problem[draws].mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(per_problem.mean()), float(low), float(high))


def measure(problems: Sequence[Sequence[Verdict]], seed: int = 0, majority: bool = True) -> dict[str, Estimate]:
    """mean@n, and pass@k and maj@k for k = 2, 4, ... n, from the n samples of each problem.

    `majority`: False leaves out maj@k, for verifiers that do not say which answer they read. ValueError where there
    are no problems, or one has another number of samples.
    """
    if not problems or len({len(verdicts) for verdicts in problems}) != 1 or not problems[0]:
        raise ValueError("every problem must have the same number of samples, at least one")
    n = len(problems[0])
    correct = [sum(v.correct for v in verdicts) for verdicts in problems]
    numbers = {f"mean@{n}": [c / n for c in correct]}
    sizes = [2**i for i in range(1, n.bit_length()) if 2**i < n] + ([n] if n > 1 else [])
    numbers |= {f"pass@{k}": [pass_at_k(n, c, k) for c in correct] for k in sizes}
    if majority:
        numbers |= {f"maj@{k}": [maj_at_k(verdicts, k) for verdicts in problems] for k in sizes}
    return {name: bootstrap(np.array(values), seed) for name, values in numbers.items()}


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to the number of samples ({n}); got {k}")
