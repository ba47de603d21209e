r"""math-verify, the last resort: for what is neither the same text nor the same rational number.

It may take for ever and any amount of memory, so it runs where it can be killed. What it is known not to come back
from is refused before.
"""

from __future__ import annotations

import cmath
import functools
import logging
import re
import zlib
from fractions import Fraction
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
_ALIKE = 1e-25
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
        return _alike(found[0], wanted[0])
    except Exception as error:
        raise UndecidedError(repr(error)) from error


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return [_settled(each) for each in parse(rf"\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)]


def _differ(a: Any, b: Any, share: float = 1e-3) -> bool:
    """Whether two expressions differ by more than that share of their size at two points: far cheaper than to simplify
    their difference."""
    from sympy import Expr

    if not all(isinstance(each, Expr) and not each.has(*_slow()) for each in (a, b)):
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
    from sympy import Expr, Float

    if not all(isinstance(each, Expr) and not each.is_Rational and not each.has(Float, *_slow()) for each in (a, b)):
        return False
    try:
        apart = [complex((a - b).evalf(15, subs=_values(a, point) | _values(b, point))) for point in (1, 2)]
    except Exception:  # no value at a point says nothing
        return False
    return all(cmath.isfinite(each) and abs(each) > _NOTHING for each in apart)


def _alike(a: Any, b: Any) -> bool:
    """Whether two expressions agree at ten points, positive and negative, to all of thirty digits. math-verify does not
    say all that it could: that |3+4i| is 5, and, to which n may be negative, that sqrt(1/n) is 1/sqrt(n)."""
    from sympy import Expr, ceiling, floor

    if not all(isinstance(each, Expr) and not each.has(*_slow()) for each in (a, b)):
        return False
    names = {s.name for s in a.free_symbols} - {"i"}
    if names != {s.name for s in b.free_symbols} - {"i"} or (
        names and (a.has(floor, ceiling) or b.has(floor, ceiling))
    ):
        return False
    try:
        return all(_agree(a, b, point) for point in ((*range(-5, 0), *range(1, 6)) if names else (1,)))
    except Exception:  # no value at a point: math-verify's word stands
        return False


def _agree(a: Any, b: Any, point: int) -> bool:
    from sympy import Abs

    x, y = (each.subs(_values(each, point)).evalf(30) for each in (a, b))
    finite = all(each.is_number and cmath.isfinite(complex(each)) for each in (x, y))
    return finite and bool(Abs(x - y).evalf(30) <= _ALIKE * max(abs(complex(x)), abs(complex(y)), _NOTHING))


def number(text: str, digits: int) -> Fraction | None:
    """The value of an expression without unknowns, to so many digits; None where there is none. Raises RefusedError."""
    from sympy import Expr

    refuse(text)
    try:
        found = _parsed(text)[0]
        if not isinstance(found, Expr) or found.free_symbols or found.has(*_slow()):
            return None
        value = found.evalf(digits)
        return Fraction(str(value)) if value.is_Float or value.is_Rational else None
    except Exception:  # what math-verify cannot read has no value
        return None


def _slow() -> tuple[Any, ...]:
    from sympy import Integral, Limit, Product, Sum

    return (Integral, Limit, Product, Sum)


def _values(expression: Any, point: int) -> dict[Any, Any]:
    """By name: parsed apart, the same letter may be two symbols to sympy. Exact, so that what cancels is nothing. k, m
    and n count something; i is the imaginary unit."""
    from sympy import I, Rational

    found = {}
    for symbol in expression.free_symbols:
        spread = zlib.crc32(symbol.name.encode()) % 997
        value = Rational(37 * point, 100) * (1 + Rational(spread, 997)) + Rational(spread, 7000)
        found[symbol] = I if symbol.name == "i" else abs(value) if symbol.name in "kmn" else value
    return found


def _settled(expression: Any) -> Any:
    """The limit of what does not depend on its variable is that."""
    from sympy import Limit

    if isinstance(expression, Limit) and expression.args[1] not in expression.args[0].free_symbols:
        return expression.args[0]
    return expression
