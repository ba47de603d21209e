"""Verifiers of tasks whose problems are made, not collected: they compute what is right, and need no gold solution."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rlkit import reward
from rlkit.interfaces.rewards import RewardResult, Sample

from .common import any_gold, declares

LONGEST_ANSWER = 300
DEEPEST = 20
_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")
_SAME = str.maketrans("\u00d7\u00b7\u00f7\u2212[]", "**/-()")  # times, dot, division and minus signs


@reward("countdown")
@declares(0.0, 1.0)
def countdown(samples: Sequence[Sample], *, nums: str = "nums", marker: str = "####") -> list[RewardResult]:
    """1 for an expression of + - * / and brackets that equals the target, each number used at most once; else 0.

    The target is the gold. The expression is what follows the last "####", or, without one, what the last <answer>
    tag holds; "= target" after it is allowed. Neither: status `no_answer`. An answer of more than 300 characters or
    with brackets more than 20 deep: `refused`. Division is exact, and a minus stands between two numbers only. An
    unusable target or list of numbers: `bad_gold`.

    nums: the data's column of the numbers.
    marker: the text before the answer.
    """
    return [any_gold(lambda s: _countdown(s, nums, marker), sample) for sample in samples]


@reward("sorting")
@declares(0.0, 1.0)
def sorting(samples: Sequence[Sample], *, items: str = "items", marker: str = "####") -> list[RewardResult]:
    """1 for the whole numbers of the column `items` in ascending order; else 0.

    The answer is found as by `countdown`; commas, spaces or semicolons separate its numbers.

    items: the data's column of the numbers.
    marker: the text before the answer.
    """
    return [_sorting(sample, items, marker) for sample in samples]


class _Wrong(Exception):
    """Why an expression is not an answer."""


class _Hostile(Exception):
    pass


def _countdown(sample: Sample, column: str, marker: str) -> RewardResult:
    target, nums = _whole(sample.answer), _wholes(sample.columns, column)
    if target is None or not nums:
        return RewardResult(value=None, status="bad_gold")
    given = _answer(sample.response, marker)
    if not given:
        return RewardResult(value=0.0, status="no_answer")
    if len(given) > LONGEST_ANSWER:
        return RewardResult(value=0.0, status="refused")
    expression, equals, claimed = given.partition("=")
    info: dict[str, Any] = {"answer": given}
    try:
        if equals and _whole(claimed) != target:
            raise _Wrong(f"says that it equals {claimed.strip()}")
        value = _evaluate(expression, Counter(nums))
    except _Wrong as error:
        return RewardResult(value=0.0, info={**info, "why": str(error)})
    except _Hostile:
        return RewardResult(value=0.0, status="refused", info=info)
    return RewardResult(value=float(value == target), info={**info, "result": str(value)})


def _sorting(sample: Sample, column: str, marker: str) -> RewardResult:
    items = _wholes(sample.columns, column)
    if not items:
        return RewardResult(value=None, status="bad_gold")
    given = _answer(sample.response, marker)
    if not given:
        return RewardResult(value=0.0, status="no_answer")
    if len(given) > max(LONGEST_ANSWER, 24 * len(items)):
        return RewardResult(value=0.0, status="refused")
    numbers = [_whole(part) for part in re.split(r"[\s,;]+", given.strip("[]() ."))]
    return RewardResult(value=float(numbers == sorted(items)), info={"answer": given})


def _answer(response: str, marker: str) -> str:
    """The first line of what follows the last marker, else the last <answer>; "" without either. Linear time."""
    _, found, rest = response.rpartition(marker)
    if found:
        return rest.strip().partition("\n")[0].strip()
    _, found, rest = response.rpartition("<answer>")
    inside, closed, _ = rest.partition("</answer>")
    return inside.strip() if found and closed else ""


def _whole(value: object) -> int | None:
    """An int or its digits, of a size that no one computes with in vain."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 10**18 else None
    text = value.strip() if isinstance(value, str) and len(value) <= LONGEST_ANSWER else ""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def _wholes(columns: Mapping[str, Any], name: str) -> list[int]:
    """The whole numbers of a column; [] where it is missing or holds anything else."""
    found = columns.get(name)
    if not isinstance(found, Sequence) or isinstance(found, str):
        return []
    numbers = [_whole(item) for item in found]
    return [] if None in numbers else [number for number in numbers if number is not None]


def _evaluate(text: str, left: Counter[int]) -> Fraction:
    """The exact value of an expression over the numbers that are left, each as often as it is there.

    By recursive descent. Only given numbers come in and there are no powers, so no value can grow large.
    """
    tokens = list(_tokens(text.translate(_SAME)))
    at = 0

    def take() -> str:
        nonlocal at
        at += 1
        return tokens[at - 1]

    def total(depth: int) -> Fraction:
        value = product(depth)
        while tokens[at] in ("+", "-"):
            value = value + product(depth) if take() == "+" else value - product(depth)
        return value

    def product(depth: int) -> Fraction:
        value = operand(depth)
        while tokens[at] in ("*", "/"):
            times, factor = take() == "*", operand(depth)
            if not times and factor == 0:
                raise _Wrong("divides by zero")
            value = value * factor if times else value / factor
        return value

    def operand(depth: int) -> Fraction:
        token = take()
        if token == "(":
            if depth == DEEPEST:
                raise _Hostile
            value = total(depth + 1)
            if take() != ")":
                raise _Wrong("brackets do not close")
            return value
        if not token.isdigit():
            raise _Wrong(f"expected a number before {token!r}")
        number = _whole(token)
        if number is None or not left[number]:
            raise _Wrong(f"uses {token[:20]}, which is not given, or not so often")
        left[number] -= 1
        return Fraction(number)

    value = total(0)
    if tokens[at] != _END:
        raise _Wrong(f"goes on with {tokens[at]!r}")
    return value


_END = "the end"


def _tokens(text: str) -> Iterator[str]:
    text, at = text.strip(), 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _Wrong(f"holds {text[at]!r}")
        yield match.group(1)
        at = match.end()
    yield _END
