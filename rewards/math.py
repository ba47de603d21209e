r"""Mathematics: the last \boxed{} of a response against the gold answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from rlkit import reward
from rlkit.samples import RewardResult, Sample

from .text import number, same_answer

_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
_LONGEST_ANSWER = 300
_DROPPED = re.compile(r"\\!|\\(left|right)(?![a-zA-Z])|\$")
_SPACE = re.compile(r"(\s|~|\\[,;: ])+")
# A space between digits stays: 4 4/9 is not 44/9.
_IDLE_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")
_FRACTION = re.compile(r"(-?)\\frac\{(-?[0-9]+)\}\{([0-9]+)\}")

# What computer algebra may never come back from, or only with the memory full.
_HOSTILE = re.compile(
    "|".join(
        (
            r"[0-9]{60}",
            r"[0-9.][eE][+-]?[0-9]{3}",
            r"\^[{(+-]*[0-9]{4}|\^[{(][^{}()]*([0-9]{4}|\*|\\cdot|\\times)",  # large exponents
            r"\^[\w\\]+\^|\^[{(][^{}()]*[\^!]|\^\{?[0-9]+\}?[)}]+\^",  # powers in exponents, and of powers
            r"[)}]\^\{?[0-9]{3}",  # expansions
            r"!(?!=)|\\(sum|prod|int|lim|[dt]?binom|[gG]amma|[bp]?mod)(?![a-zA-Z])",
        )
    )
)


@reward("math")
def math(samples: Sequence[Sample], *, timeout_s: int = 2) -> list[RewardResult]:
    r"""1 where the last \boxed{} equals the gold: as text, as rationals, or to math-verify; else 0.

    A gold with a box of its own (a worked solution) is read the same way. No closed box: status `no_answer`. An
    answer that is too long, or of a form that computer algebra may not come back from: `refused`. `timeout_s` (in
    seconds) bounds math-verify by an alarm, so this must run in a process's main thread.
    """
    return [_verdict(sample, timeout_s) for sample in samples]


def _verdict(sample: Sample, timeout_s: int) -> RewardResult:
    gold = last_box(sample.answer) if _BOX.search(sample.answer) else sample.answer
    if gold is None or not gold.strip():
        return RewardResult(value=None, status="bad_gold")
    given = last_box(sample.response)
    if given is None or not given.strip():
        return RewardResult(value=0.0, status="no_answer")
    info = {"answer": given[:_LONGEST_ANSWER]}
    a, b = _normal(given), _normal(gold)
    if a == b or same_answer(a, b):
        return RewardResult(value=1.0, info=info)
    if number(a) is not None and number(b) is not None:
        return RewardResult(value=0.0, info=info)
    if _hostile(a):
        return RewardResult(value=0.0, status="refused", info=info)
    if _hostile(b):  # only its own text answers such a gold
        return RewardResult(value=0.0, info=info)
    return _by_algebra(given, gold, timeout_s, info)


def last_box(text: str) -> str | None:
    r"""What stands in the last \boxed{}; None where there is none, or its braces do not close. Linear time."""
    start = -1
    for match in _BOX.finditer(text):
        start = match.end()
    if start < 0:
        return None
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start : start + brace.start()]
    return None


def _normal(text: str) -> str:
    text = _DROPPED.sub("", text).replace("{,}", ",")
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    text = _IDLE_SPACE.sub("", _SPACE.sub(" ", text)).removesuffix(".")
    fraction = _FRACTION.fullmatch(text)
    return "{}{}/{}".format(*fraction.groups()).replace("--", "") if fraction else text


def _hostile(text: str) -> bool:
    return len(text) > _LONGEST_ANSWER or _HOSTILE.search(text.replace(" ", "").replace("**", "^")) is not None


def _by_algebra(given: str, gold: str, timeout_s: int, info: dict[str, Any]) -> RewardResult:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    try:
        wanted = parse(rf"\boxed{{{gold}}}", parsing_timeout=timeout_s, raise_on_error=True)
    except (Exception, TimeoutException) as error:
        return RewardResult(value=None, status="bad_gold", info={"error": repr(error)})
    try:
        found = parse(rf"\boxed{{{given}}}", parsing_timeout=timeout_s, raise_on_error=True)
        equal = bool(found) and verify(wanted, found, timeout_seconds=timeout_s, raise_on_error=True)
    except TimeoutException:
        return RewardResult(value=None, status="timeout", info=info)
    except Exception as error:
        return RewardResult(value=None, status="error", info={**info, "error": repr(error)})
    return RewardResult(value=float(equal), info=info)
