"""Arithmetic, read and computed here: nothing of it is ever run as Python. Exact while it is rational."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from .toolbox import ToolError

Number = Fraction | float

_LONGEST = 1000
_MOST_BITS = 4000
_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_SIGNS = {ord("^"): "**", 0xD7: "*", 0xF7: "/", 0x2212: "-"}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in ("floor", "ceil")},
    **{"abs": abs, "min": min, "max": max},
}
_OF_REALS = ("sin", "cos", "tan", "asin", "acos", "atan", "exp", "log", "log2", "log10", "degrees", "radians")
_OF_WHOLE = ("factorial", "comb", "gcd", "lcm")
_NAMES = sorted([*_FUNCTIONS, *_OF_REALS, *_OF_WHOLE, "round", "sqrt"])


def calculator(expression: str) -> str:
    """Computes an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % ** and brackets, such as (3 + 4) * 2.5; also sqrt, log, sin, factorial,
            gcd, round and the like, and pi.
    """
    if len(expression) > _LONGEST:
        raise ToolError(f"the expression has {len(expression):,} characters, and {_LONGEST:,} is the most")
    text = expression.strip().translate(_SIGNS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _shown(_value(ast.parse(text, mode="eval").body))
    except SyntaxError as error:
        raise ToolError(f"that is no expression: {error.msg}, at character {error.offset} of it") from None
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise _too_large() from None
    except (RecursionError, MemoryError):
        raise ToolError("the expression is nested too deeply") from None
    except (ValueError, TypeError) as error:
        raise ToolError(f"it has no value: {error}") from None


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            # A decimal is what is written, not the float next to it.
            return _bounded(Fraction(str(number)) if math.isfinite(number) else number)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=inner):
            return _value(inner) if isinstance(sign, ast.UAdd) else -_value(inner)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATORS:
            return _bounded(_OPERATORS[type(operation)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _NAMES:
            return _bounded(_called(name, [_value(each) for each in arguments]))
        case ast.Tuple():
            raise ToolError("it has a comma: write 1234 for 1,234")
    raise ToolError(
        f"{ast.unparse(node)[:60]!r} is no arithmetic: write numbers, + - * / // % **, brackets, "
        f"{', '.join(_CONSTANTS)}, and the functions {', '.join(_NAMES)}"
    )


def _called(name: str, values: list[Number]) -> Number:
    if name == "sqrt":
        (value,) = values
        return _power(value, Fraction(1, 2))
    if name == "round":
        value, *digits = values
        return round(Fraction(value), _whole(digits[0]) if digits else 0)
    if name in _OF_REALS:
        return float(getattr(math, name)(*map(float, values)))
    if name in _OF_WHOLE:
        whole = [_whole(each) for each in values]
        if name in ("factorial", "comb") and max(whole, default=0) > 500:
            raise _too_large()
        return int(getattr(math, name)(*whole))
    return _bounded(_FUNCTIONS[name](*values))


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            if _bits(base) * abs(exponent) > _MOST_BITS:
                raise _too_large()
            return base**exponent.numerator
        if exponent == Fraction(1, 2) and base >= 0:
            root = Fraction(math.isqrt(base.numerator), math.isqrt(base.denominator))
            if root * root == base:
                return root
    result = float(base) ** float(exponent)
    if isinstance(result, complex):
        raise ToolError("it has no real value: a root of a negative number")
    return _bounded(result)


def _whole(value: Number) -> int:
    if value != int(value):
        raise ToolError(f"{_shown(value)} is no whole number")
    return int(value)


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _bounded(value: Number) -> Number:
    value = Fraction(value) if isinstance(value, int) else value
    if (isinstance(value, Fraction) and _bits(value) > _MOST_BITS) or not math.isfinite(value):
        raise _too_large()
    return value


def _too_large() -> ToolError:
    return ToolError("a number on the way is too large")


def _shown(value: Number) -> str:
    is_whole = value == int(value) and (isinstance(value, Fraction) or abs(value) < 1e15)
    return str(int(value)) if is_whole else str(float(value))
