"""Sets of real numbers by what is in them: [2,3] and [3,5] together are [2,5]."""

from __future__ import annotations

import decimal
from fractions import Fraction

from . import algebra
from .rational import value
from .structure import Leaf, Many, Node, Span

_MOST = 20
_ENDLESS = Fraction(10) ** 1300
"""Beyond every number that `value` holds."""
_DIGITS = decimal.Context(prec=22)

Cut = tuple[Fraction, bool]
"""Between a number and what is next to it: just below it, or (True) just above."""


def region(node: Node) -> list[tuple[Cut, Cut]] | None:
    """The intervals of a set, from cut to cut, in order and apart; None for what is none or has unknown ends."""
    if isinstance(node, Leaf):
        return [] if node.text.strip() == r"\emptyset" else None
    if isinstance(node, Span) and len(node.items) == 2:
        low, high = (_end(item) for item in node.items)
        if low is None or high is None:
            return None
        return _joined([((low, node.opening == "("), (high, node.closing == "]"))])
    if not isinstance(node, Many) or len(node.items) > _MOST or node.kind not in ("set", "union", "meet", "minus"):
        return None
    if node.kind == "set":
        points = [_end(item) for item in node.items]
        return (
            _joined([((point, False), (point, True)) for point in points if point is not None])
            if None not in points
            else None
        )
    found = [region(item) for item in node.items]
    sets = [each for each in found if each is not None]
    if len(sets) < len(found):
        return None
    if node.kind == "union":
        return _joined([piece for each in sets for piece in each])
    result = sets[0]
    for other in sets[1:]:
        result = _meet(result, _rest(other) if node.kind == "minus" else other)
    return result


def _joined(pieces: list[tuple[Cut, Cut]]) -> list[tuple[Cut, Cut]]:
    joined: list[tuple[Cut, Cut]] = []
    for low, high in sorted(piece for piece in pieces if piece[0] < piece[1]):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def _meet(one: list[tuple[Cut, Cut]], other: list[tuple[Cut, Cut]]) -> list[tuple[Cut, Cut]]:
    return _joined([(max(a[0], b[0]), min(a[1], b[1])) for a in one for b in other])


def _rest(pieces: list[tuple[Cut, Cut]]) -> list[tuple[Cut, Cut]]:
    cuts = [(-_ENDLESS, True), *(cut for piece in pieces for cut in piece), (_ENDLESS, False)]
    return _joined(list(zip(cuts[::2], cuts[1::2], strict=True)))


def _end(node: Node) -> Fraction | None:
    if not isinstance(node, Leaf):
        return None
    text = node.text.replace(" ", "")
    if text.lstrip("+-") == r"\infty":
        return -_ENDLESS if text.startswith("-") else _ENDLESS
    number = value(text)
    if number is not None:
        return number
    near = algebra.number(node.text, 30)
    return None if near is None else Fraction(_DIGITS.divide(near.numerator, near.denominator))
