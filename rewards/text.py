"""Rewards on the text of an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from rlkit import reward
from rlkit.samples import RewardResult, Sample

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)|[+-]?[0-9]+/[0-9]+")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_LONGEST_NUMBER = 1000


@reward("final_answer")
def final_answer(samples: Sequence[Sample], *, marker: str = "####") -> list[RewardResult]:
    """1 where the text after the last "####" equals the gold's, as numbers or as text; else 0.

    Of what follows the marker, its first line counts. A gold without the marker is used whole, so GSM8K's worked
    solutions and plain numbers both do. No marker in the response: status `no_answer`; an empty gold: `bad_gold`.
    """
    return [_final_answer(sample, marker) for sample in samples]


def _final_answer(sample: Sample, marker: str) -> RewardResult:
    gold = _after(sample.answer, marker) if marker in sample.answer else sample.answer
    given = _after(sample.response, marker)
    if not gold.strip():
        return RewardResult(value=None, status="bad_gold")
    if not given:
        return RewardResult(value=0.0, status="no_answer")
    return RewardResult(value=float(same_answer(given, gold)), info={"answer": given})


def _after(text: str, marker: str) -> str:
    """The first line of what follows the last marker; "" without one."""
    _, found, rest = text.rpartition(marker)
    return rest.strip().partition("\n")[0].strip() if found else ""


@reward("exact")
def exact(samples: Sequence[Sample]) -> list[RewardResult]:
    """1 where the response is the gold answer, white space around both aside; else 0."""
    return [
        RewardResult(value=float(s.response.strip() == s.answer.strip()))
        if s.answer.strip()
        else RewardResult(value=None, status="bad_gold")
        for s in samples
    ]


def same_answer(given: str, gold: str) -> bool:
    """Equal as rationals where both are numbers, else as text. 1,000 is 1000, $5. is 5, 0.50 is 1/2."""
    given, gold = _normal(given), _normal(gold)
    if given == gold:
        return True
    a, b = number(given), number(gold)
    return a is not None and a == b


def _normal(text: str) -> str:
    text = " ".join(text.replace("$", "").split())
    return _THOUSANDS.sub("", text).removesuffix(".").rstrip()


def number(text: str) -> Fraction | None:
    """The exact value of 12, -0.5, .5 or 3/4; None for anything else.

    Exponents are no part of it: Fraction("1e999999999") would fill the memory.
    """
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None
