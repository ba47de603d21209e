r"""math-verify, the last resort: for what is neither the same text nor the same rational number.

It may take for ever and any amount of memory, so it runs where it can be killed. What it is known not to come back
from is refused before.
"""

from __future__ import annotations

import cmath
import functools
import logging
import re
from typing import Any

LONGEST = 400
_HOSTILE = re.compile(
    "|".join(
        (
            r"[0-9]{60}",
            r"[0-9.][eE][+-]?[0-9]{3}",
            r"\^[{(+-]*[0-9]{4}|\^[{(][^{}()]*(?:[0-9]{4}|[0-9](?:\*|\\cdot|\\times)[0-9])",  # large exponents
            r"\^[\w\\]+\^|\^[{(][^{}()]*[\^!]|\^\{?[0-9]+\}?[)}]+\^",  # powers in exponents, and of powers
            r"[)}]\^\{?[0-9]{3}",  # expansions
            r"[0-9]{3}\)?!(?!=)|!\)*!|[)}!]\)!",  # factorials of large numbers and of factorials
            r"\^\{?[0-9]+\}?\)?!|\\lim.*!",
            r"\\[dt]?binom\{[^{}]*(?:[0-9]{4}|\^)|\\[dt]?binom\{[^{}]*\{",
            r"\\(?:sum|prod|int)(?![a-zA-Z])[^=]*(?:=[^^]*)?\^(?:\{[^{}]*(?:[0-9]{3}|\^)|[0-9]{3})",
            r"\\(?:b|p)?mod(?![a-zA-Z]).*\^|\^.*\\(?:b|p)?mod(?![a-zA-Z])",
        )
    )
)
_DEEPEST = 12
_CLOSE = 1e-5
"""Share by which numbers may differ that math-verify takes for equal."""
_NOTHING = 1e-100
"""What evaluation to 15 digits leaves of an exact zero is far below."""


class RefusedError(Exception):
    """The answer is too long, or of a form that computer algebra may not come back from."""


class BadGoldError(Exception):
    """math-verify cannot read the gold."""


class UndecidedError(Exception):
    """math-verify failed on the two."""


def warm_up() -> None:
    """Import what computer algebra needs, so that the first sample is not charged for it."""
    import math_verify  # noqa: F401


def refuse(text: str) -> None:
    """Raise RefusedError for what must not reach computer algebra."""
    tight = text.replace(" ", "").replace("**", "^")
    if len(text) > LONGEST or _HOSTILE.search(tight) or _depth(tight) > _DEEPEST:
        raise RefusedError


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return deepest


def equal(given: str, gold: str) -> bool:
    """Whether math-verify finds the two equal. No deadline: that is the worker's.

    Raises RefusedError, BadGoldError, UndecidedError.
    """
    from math_verify import verify

    refuse(given)
    refuse(gold)
    try:
        wanted = _parsed(gold)
    except Exception as error:
        raise BadGoldError(repr(error)) from error
    if not wanted:
        raise BadGoldError("math-verify reads nothing in it")
    try:
        found = _parsed(given)
        if found and _differ(found[0], wanted[0]):
            return False
        # Its own timeout is an alarm, which no C call heeds and only a main thread may set.
        equal = bool(found) and bool(verify(wanted, found, timeout_seconds=None, raise_on_error=True))
        if not found:
            return False
        # It compares numbers to six decimals, however small they are.
        if equal:
            return not (_differ(found[0], wanted[0], _CLOSE) or _exactly_apart(found[0], wanted[0]))
        return _count_alike(found[0], wanted[0])
    except Exception as error:
        raise UndecidedError(repr(error)) from error


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return list(parse(rf"\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True))


def _differ(a: Any, b: Any, share: float = 1e-3) -> bool:
    """Whether two expressions differ by more than that share of their size at two points: far cheaper than to simplify
    their difference."""
    from sympy import Expr, Integral, Limit, Product, Sum

    slow = (Integral, Limit, Product, Sum)
    if not all(isinstance(each, Expr) and not each.has(*slow) for each in (a, b)):
        return False
    try:
        return _far_apart(a, b, 1, share) and _far_apart(a, b, 2, share)
    except Exception:  # no value at a point says nothing: math-verify decides
        return False


def _far_apart(a: Any, b: Any, point: int, share: float) -> bool:
    x, y = (complex(each.evalf(15, subs=_values(each, point))) for each in (a, b))
    finite = all(cmath.isfinite(each) for each in (x, y))
    return finite and abs(x - y) > max(share * max(abs(x), abs(y)), _NOTHING)


def _exactly_apart(a: Any, b: Any) -> bool:
    """Whether two expressions differ at two points, however little, where neither is a number in digits, which may be
    meant as rounded."""
    from sympy import Expr, Float, Integral, Limit, Product, Sum

    inexact = (Float, Integral, Limit, Product, Sum)
    if not all(isinstance(each, Expr) and not each.is_Rational and not each.has(*inexact) for each in (a, b)):
        return False
    try:
        apart = [complex((a - b).evalf(15, subs=_values(a, point) | _values(b, point))) for point in (1, 2)]
    except Exception:  # no value at a point says nothing
        return False
    return all(cmath.isfinite(each) and abs(each) > _NOTHING for each in apart)


def _count_alike(a: Any, b: Any) -> bool:
    """Whether two expressions in numbers that count something (k, m, n) agree at ten points, to all digits: there
    sqrt(1/n) is 1/sqrt(n), which math-verify, to which n may be negative, does not say."""
    from sympy import Expr

    if not all(isinstance(each, Expr) for each in (a, b)):
        return False
    names = {s.name for s in a.free_symbols}
    if names.isdisjoint("kmn") or names != {s.name for s in b.free_symbols}:
        return False
    try:
        return not any(_far_apart(a, b, point, 1e-13) for point in range(-5, 6)) and all(
            cmath.isfinite(complex(a.evalf(15, subs=_values(a, point)))) for point in range(-5, 6)
        )
    except Exception:  # no value at a point: math-verify's word stands
        return False


def _values(expression: Any, point: int) -> dict[Any, Any]:
    """By name: parsed apart, the same letter may be two symbols to sympy. Exact, so that what cancels is nothing."""
    from sympy import Rational

    found = {}
    for symbol in expression.free_symbols:
        value = Rational(37 * point, 100) + Rational(sum(map(ord, symbol.name)) % 97, 50)
        found[symbol] = abs(value) if symbol.name in "kmn" else value
    return found
