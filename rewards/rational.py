r"""Exact values of plain arithmetic: 1,234.5, 4 4/9, \frac{-3}{4}, 0.\overline{3}, \sqrt{16}, 2^{10}, 1e6, 5!."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_LONGEST = 300
_MOST_BITS = 4000
_TOKEN = re.compile(
    r"\s*(?:(?P<repeating>[0-9]*\.[0-9]*\\overline\s*\{[0-9]{1,60}\})"
    r"|(?P<number>(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]{1,4}(?![0-9]))?)"
    r"|(?P<command>\\(?:frac|sqrt|binom|cdot|times|div|bmod)(?![a-zA-Z]))|(?P<sign>[-+*/:^(){}\[\]!%]))"
)


class _NoValueError(Exception):
    pass


def value(text: str) -> Fraction | None:
    """The exact value; None for what is no plain arithmetic, has no rational value, or is too large to hold."""
    if len(text) > _LONGEST:
        return None
    try:
        reader = _Reader(text)
        result = reader.sum()
        return result if reader.kind == "end" else None
    except (_NoValueError, ZeroDivisionError, RecursionError):
        return None


class _Reader:
    """Recursive descent. `kind` and `token` are what comes next."""

    def __init__(self, text: str):
        self.text = text.strip()
        self.at = 0
        self.depth = 0
        self.kind: str = ""
        self.token: str = ""
        self.next()

    def next(self) -> None:
        if self.at == len(self.text):
            self.kind, self.token = "end", ""
            return
        match = _TOKEN.match(self.text, self.at)
        if match is None or match.lastgroup is None:
            raise _NoValueError
        self.at, self.kind, self.token = match.end(), match.lastgroup, match[match.lastgroup]

    def expect(self, token: str) -> None:
        if self.token != token:
            raise _NoValueError
        self.next()

    def sum(self) -> Fraction:
        total = self.product()
        while self.token in ("+", "-"):
            sign = 1 if self.token == "+" else -1
            self.next()
            total = _bounded(total + sign * self.product())
        return total

    def product(self) -> Fraction:
        result = self.factor()
        while True:
            if self.token in ("*", r"\cdot", r"\times"):
                self.next()
                result = _bounded(result * self.factor())
            elif self.token in ("/", ":", r"\div"):
                self.next()
                result = _bounded(result / self.factor())
            elif self.token == r"\bmod":
                self.next()
                result = _bounded(result % self.factor())
            elif self.token in ("(", "{", r"\frac", r"\sqrt", r"\binom"):
                result = _bounded(result * self.power())
            else:
                return result

    def factor(self) -> Fraction:
        if self.token in ("+", "-"):
            sign = 1 if self.token == "+" else -1
            self.next()
            self._deeper()
            result = sign * self.factor()
            self.depth -= 1
            return result
        return self.power()

    def power(self) -> Fraction:
        base = self.postfix()
        if self.token != "^":
            return base
        self.next()
        exponent = self.braced() if self.token == "{" else self.factor()
        if exponent.denominator != 1:
            return _root(base**exponent.numerator, exponent.denominator) if _small(base, exponent) else _give_up()
        if not _small(base, exponent):
            _give_up()
        return base**exponent.numerator

    def postfix(self) -> Fraction:
        result = self.atom()
        while self.token in ("!", "%"):
            if self.token == "!":
                if result.denominator != 1 or not 0 <= result <= 300:
                    _give_up()
                result = Fraction(math.factorial(result.numerator))
            else:
                result /= 100
            self.next()
        return result

    def atom(self) -> Fraction:
        self._deeper()
        try:
            if self.kind == "repeating":
                return self._repeating()
            if self.kind == "number":
                return self._number()
            if self.token == "(":
                self.next()
                inner = self.sum()
                self.expect(")")
                return inner
            if self.token == "{":
                return self.braced()
            if self.token == r"\frac":
                self.next()
                return self.braced() / self.braced()
            if self.token == r"\sqrt":
                return self._sqrt()
            if self.token == r"\binom":
                self.next()
                return _binomial(self.braced(), self.braced())
            return _give_up()
        finally:
            self.depth -= 1

    def braced(self) -> Fraction:
        self.expect("{")
        inner = self.sum()
        self.expect("}")
        return inner

    def _sqrt(self) -> Fraction:
        self.next()
        degree = Fraction(2)
        if self.token == "[":
            self.next()
            degree = self.sum()
            self.expect("]")
        if degree.denominator != 1 or not 2 <= degree <= 60:
            _give_up()
        return _root(self.braced(), degree.numerator)

    def _repeating(self) -> Fraction:
        whole, _, rest = self.token.partition(".")
        start, _, period = rest.partition(r"\overline")
        period = period.strip(" {}")
        self.next()
        fixed = Fraction(int(whole + start or "0"), 10 ** len(start))
        return fixed + Fraction(int(period), 10 ** len(start) * (10 ** len(period) - 1))

    def _number(self) -> Fraction:
        token, end = self.token, self.at
        result = _decimal(token)
        self.next()
        if not token.replace(" ", "").isdigit():
            return result
        # Mixed numbers: a proper fraction right after a whole number.
        if self.token == r"\frac":
            found = re.compile(r"\s*\\frac\s*\{\s*([0-9]{1,9})\s*\}\s*\{\s*([0-9]{1,9})\s*\}").match(self.text, end)
        elif self.kind == "number":
            found = re.compile(r"\s+([0-9]{1,9})\s*/\s*([0-9]{1,9})(?![0-9.])").match(self.text, end)
        else:
            return result
        if found is None or int(found[1]) >= int(found[2]):
            raise _NoValueError
        self.at = found.end()
        self.next()
        return result + Fraction(int(found[1]), int(found[2]))

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > 60:
            _give_up()


def _give_up() -> Fraction:
    raise _NoValueError


def _decimal(token: str) -> Fraction:
    token = token.replace(",", "").replace(" ", "")
    digits, _, exponent = token.replace("E", "e").partition("e")
    if exponent and abs(int(exponent)) > 400:
        _give_up()
    return Fraction(digits) * Fraction(10) ** int(exponent or 0)


def _bounded(result: Fraction) -> Fraction:
    return result if result.numerator.bit_length() + result.denominator.bit_length() <= _MOST_BITS else _give_up()


def _small(base: Fraction, exponent: Fraction) -> bool:
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    return bool(bits * abs(exponent) <= _MOST_BITS)


def _root(radicand: Fraction, degree: int) -> Fraction:
    sign = 1
    if radicand < 0:
        if degree % 2 == 0:
            _give_up()
        sign, radicand = -1, -radicand
    return sign * Fraction(_whole_root(radicand.numerator, degree), _whole_root(radicand.denominator, degree))


def _whole_root(number: int, degree: int) -> int:
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= number else (low, middle - 1)
    if low**degree != number:
        _give_up()
    return low


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= n <= 300 or not 0 <= k <= 300:
        _give_up()
    return Fraction(math.comb(n.numerator, k.numerator))
