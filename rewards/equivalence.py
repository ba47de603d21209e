"""Whether an answer is the gold: as text, as exact rationals, part by part, and at last by computer algebra."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from . import algebra
from .options import chosen, option
from .rational import value
from .regions import region
from .structure import LONGEST, Equation, Leaf, Many, Node, Span, is_label, normal, parse
from .wording import symbols

_LONGEST_TEXT = 20_000
_MOST_BY_ALGEBRA = 8
_AMBIGUOUS = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_COMPUTES = re.compile(r"\\(?:begin|cup|cap|setminus|mathbb|pm|cdot|times|[lg]e)(?![a-zA-Z])|<|>")
_UNDEFINED = re.compile(r"/\s*\{?0+(?![0-9.])|\\frac\s*\{[^{}]*\}\s*\{\s*0+\s*\}")
_DECIMAL = re.compile(
    r"(?P<sign>-?)\s*(?P<whole>[0-9]{0,20})\.(?P<digits>[0-9]{1,40})(?P<dots>\s*\\[ld]?dots)?\s*(?P<percent>%?)"
)
_DIGITS, _DECIMALS = 6, 4
"""A decimal of fewer is another number than the exact one that it is near to."""
_NUMERAL = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?")
_DENIES = re.compile(
    r"\\(?:not|neg|lnot|sim)(?![a-zA-Z])|\b(?:not|isn't|wrong|incorrect|false|neither)\b|(?<=[\w)}\]])\s*\?|^\\ne(?![a-zA-Z])",
    re.IGNORECASE,
)
_FOLLOWS = re.compile(r"\\(?:implies|Rightarrow|Longrightarrow|therefore|to|rightarrow)(?![a-zA-Z])")
_CLOCK = re.compile(
    r"([0-9]{1,2}(?::[0-9]{2})?)(?:\s|\\[ ,;]|~)*(?:\\(?:text|mathrm|mbox|textrm)\s?\{\s*)?([ap])\.?\s?m\.?\s*\}?", re.I
)
_WORDS = re.compile(r"[a-zA-Z][a-zA-Z'-]*(?:[ ,.'-]+[a-zA-Z][a-zA-Z'-]*)*")
_FUNCTIONS = re.compile(r"(?<![a-zA-Z])(?:sqrt|sin|cos|tan|log|ln|exp|pi|gcd|lcm|max|min|frac)(?![a-zA-Z])")
_QUANTITY = re.compile(
    r"((?=[-+]?\s*(?:[0-9.]|\\frac|\\sqrt)).*?(?:[0-9)}]|\\pi))\s*"
    r"((?:(?:square|sq|cubic|cu)\.? )?(?:[a-zA-Zµ]{2,}|[^\W\da-zA-Z_]+)[^0-9\\+*/^(){}]*"
    r"(?:/\s?[a-zA-Z]+)?(?:\s*\^\s*\{?[23]\}?)?"
    r"|(?:m|g|h|s|L|l|N|J|W|V|K|C|F|A)\s*\^\s*\{?[23]\}?|\^\s*\{?\\(?:prime|circ)\}?)",
    re.DOTALL,
)
_NOT_UNITS = re.compile(r"(?:and|or|pi|sqrt|sin|cos|tan|log|ln|exp|mod|pm|choose)(?![a-zA-Z])")
_UNITS = {
    unit: (dimension, name)
    for dimension, names in {
        "length": "mm cm m=meter=metre km in=inch=inche ft=foot=feet yd=yard mi=mile",
        "time": "ms s=sec=second min=minute h=hr=hour day week month year=yr",
        "mass": "mg g=gram kg=kilogram t=ton=tonne lb=pound oz=ounce",
        "money": "cent=¢ dollar",
    }.items()
    for name in names.split()
    for unit in name.split("=")
}


@dataclass(frozen=True)
class Rules:
    """What counts as equal."""

    tolerance: Fraction = Fraction(0)
    """Between numbers, absolute."""
    by_algebra: bool = True


def same(given: str, gold: str, rules: Rules) -> bool:
    """Whether the answer is the gold. Raises algebra.RefusedError and algebra.BadGoldError."""
    if given.strip() == gold.strip():
        return True
    one, other = _CLOCK.fullmatch(given.strip()), _CLOCK.fullmatch(gold.strip())
    if one and other:
        return one[1] == other[1] and one[2].lower() == other[2].lower()
    # A time of day without its half is that time, as a length without its unit is.
    given, gold = one[1] if one else given, other[1] if other else gold
    if len(given) > _LONGEST_TEXT or len(gold) > _LONGEST_TEXT:
        raise algebra.RefusedError
    a, b = normal(given), _normal_gold(gold)
    if _tight(a) == _tight(b):
        return True
    if len(a) > LONGEST or len(b) > LONGEST:
        raise algebra.RefusedError
    if _DENIES.search(a) and not _DENIES.search(b) and symbols(a) is None:
        return False
    if _FOLLOWS.search(a) and not _FOLLOWS.search(b) and r"\lim" not in a:
        before, a = _FOLLOWS.split(a)[-2:]
        if before.strip() and "=" not in before:
            return False
    verdict = _option(a, b)
    if verdict is not None:
        return verdict
    if _same(parse(a), _gold_tree(b, True), rules):
        return True
    if "," in a and _AMBIGUOUS.search(b):
        return _same(parse(a, thousands=False), _gold_tree(b, False), rules)
    return False


def same_in_order(given: Sequence[str], gold: str, rules: Rules) -> bool:
    """Whether answers that stand apart are the parts of the gold, in order."""
    if len(given) < 2 or max(map(len, (gold, *given))) > LONGEST:
        return False
    wanted = _gold_tree(_normal_gold(gold), True)
    if not (isinstance(wanted, Many) and wanted.kind in ("list", "set")) and not (
        isinstance(wanted, Span) and (wanted.opening, wanted.closing) == ("(", ")")
    ):
        return False
    return _in_order([parse(normal(each)) for each in given], wanted.items, rules)


def number(text: str) -> Fraction | None:
    """The exact value of a number as people write it: 1,234, x = 5, 5 cm, 50 %; None for anything else."""
    if len(text) > LONGEST:
        return None
    node = parse(normal(text))
    while isinstance(node, Equation):
        node = node.right
    return value(_quantity(_before_approximation(node.text)).text) if isinstance(node, Leaf) else None


def same_text(given: str, gold: str) -> bool:
    """Equal but for spelling."""
    return max(len(given), len(gold)) <= _LONGEST_TEXT and _tight(normal(given)) == _tight(_normal_gold(gold))


_normal_gold = functools.lru_cache(maxsize=4096)(normal)
_gold_tree = functools.lru_cache(maxsize=4096)(parse)


def _tight(text: str) -> str:
    """Spaces gone, but for those between digits: 4 4/9 is not 44/9."""
    text = re.sub(r"(?<![0-9]) | (?![0-9])|(?<=[a-zA-Z]) (?=[0-9])", "", text)
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", text)


def _option(given: str, gold: str) -> bool | None:
    """Where the gold is an option's letter: whether the answer chooses it."""
    wanted = option(gold)
    if not wanted:
        return None
    letter = chosen(given)
    if letter:
        return letter == wanted
    return None if is_label(given) and len(given) < 3 else False


def _same(a: Node, b: Node, rules: Rules) -> bool:
    if a == b:
        return True
    if isinstance(a, Equation) or isinstance(b, Equation):
        return _same_equations(a, b, rules)
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        return _same_leaves(a.text, b.text, rules)
    if any(isinstance(each, Many) and each.kind in ("union", "meet", "minus") for each in (a, b)):
        given, wanted = region(a), region(b)
        if given is not None and given == wanted:
            return True
    if isinstance(a, Span) and isinstance(b, Span):
        alike = (a.opening, a.closing) == (b.opening, b.closing) or (len(a.items) != 2 and len(b.items) != 2)
        return alike and _in_order(a.items, b.items, rules)
    if isinstance(a, Many) and isinstance(b, Many):
        if {a.kind, b.kind} <= {"list", "set"} or a.kind == b.kind == "union":
            return _in_any_order(a.items, b.items, rules)
        return a.kind == b.kind and _in_order(a.items, b.items, rules)
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Many) and one.kind in ("set", "list"):
            alone = len(set(map(_exact, one.items))) == 1 and one.items[0] != Leaf(r"\emptyset")
            if alone and not isinstance(other, Many):
                return _same(one.items[0], other, rules) if one is a else _same(other, one.items[0], rules)
            if isinstance(other, Span) and one.kind == "list":
                pair = (one.items, other.items) if one is a else (other.items, one.items)
                return (other.opening, other.closing) == ("(", ")") and _in_order(*pair, rules)
    if isinstance(a, Leaf) and isinstance(b, Many | Span) and _computes(a.text):
        return _by_algebra(a.text, _written(b), rules)
    if isinstance(b, Leaf) and isinstance(a, Many | Span) and _computes(b.text):
        return _by_algebra(_written(a), b.text, rules)
    return False


def _computes(text: str) -> bool:
    """It may be a set, an interval or a matrix when worked out."""
    return bool(
        re.search(r"\\(?:begin|cup|cap|setminus|mathbb|pm|cdot|times)(?![a-zA-Z])|<|>|\\[lg]e(?![a-zA-Z])", text)
    )


def _written(node: Node) -> str:
    if isinstance(node, Leaf):
        return node.text
    if isinstance(node, Equation):
        return node.whole
    parts = [_written(item) for item in node.items]
    if isinstance(node, Span):
        return node.relation or node.opening + ",".join(parts) + node.closing
    if node.kind == "matrix":
        return r"\begin{pmatrix}" + r"\\".join(parts) + r"\end{pmatrix}"
    if node.kind == "row":
        return "&".join(parts)
    joint = {"union": r"\cup ", "meet": r"\cap ", "minus": r"\setminus "}.get(node.kind)
    return joint.join(parts) if joint else r"\{" + ",".join(parts) + r"\}"


def _same_equations(a: Node, b: Node, rules: Rules) -> bool:
    if isinstance(a, Equation) and _contradicts_itself(a):
        return False
    if isinstance(a, Equation) and isinstance(b, Equation):
        if is_label(a.left) and is_label(b.left):
            return _same_labels(a.left, b.left) and _same(a.right, b.right, rules)
        if _tight(a.left) == _tight(b.left):
            return _same(a.right, b.right, rules)
        return _by_algebra(a.whole, b.whole, rules)
    if isinstance(a, Equation):
        return not _to_be_solved(a) and _same(a.right, b, rules)
    assert isinstance(b, Equation)
    return is_label(b.left) and _same(a, b.right, rules)


def _contradicts_itself(equation: Equation) -> bool:
    """6 = 7, x = 6 = 7: two numbers. Of what is computed, the last part counts."""
    numbers = [Fraction(part) for part in map(str.strip, equation.whole.split("=")) if _NUMERAL.fullmatch(part)]
    return bool(numbers) and max(numbers) - min(numbers) > max(map(abs, numbers)) / 100


def _to_be_solved(equation: Equation) -> bool:
    """x + 1 = 7 does not say 7: it computes with an unknown, and gives a number. ab = 7 and x = 8 - 1 = 7 do."""
    left, right = equation.left, equation.right
    if is_label(left) or equation.whole.count("=") > 1 or not isinstance(right, Leaf) or value(right.text) is None:
        return False
    if re.search(r"_|[a-zA-Z]\s*\(|\||\\(?!(?:frac|sqrt|cdot|times|pi)(?![a-z]))[a-zA-Z]{2}", left):
        return False
    letters = re.sub(r"\\[a-zA-Z]+", "", left)
    return bool(re.fullmatch(r"[^a-zA-Z]*([a-z])(?:[^a-zA-Z]|\1)*", letters))


def _same_labels(a: str, b: str) -> bool:
    """Names must agree where they are short: x is not y. Of longer ones there are too many spellings."""
    a, b = (re.sub(r"[\s{}\\]", "", text) for text in (a, b))
    return a == b or (len(a) > 1 and len(b) > 1) or a[0] == b[0]


def _in_order(a: Sequence[Node], b: Sequence[Node], rules: Rules) -> bool:
    return len(a) == len(b) and all(_same(x, y, rules) for x, y in zip(a, b, strict=True))


def _in_any_order(a: Sequence[Node], b: Sequence[Node], rules: Rules) -> bool:
    """As sets: what comes twice counts once."""
    given, wanted = list(dict.fromkeys(map(_exact, a))), list(dict.fromkeys(map(_exact, b)))
    rest_given = [x for x in given if x not in wanted]
    rest_wanted = [y for y in wanted if y not in given]
    if len(rest_given) != len(rest_wanted) or len(rest_given) > _MOST_BY_ALGEBRA:
        return False
    for x in rest_given:
        match = next((y for y in rest_wanted if _same(x, y, rules)), None)
        if match is None:
            return False
        rest_wanted.remove(match)
    return True


def _exact(node: Node) -> Node:
    """With rational numbers in one spelling."""
    if isinstance(node, Leaf):
        number = value(node.text)
        return Leaf(_tight(node.text)) if number is None else Leaf(str(number))
    return node


def _same_leaves(a: str, b: str, rules: Rules) -> bool:
    a, b = _before_approximation(a), _before_approximation(b)
    if _tight(a) == _tight(b):
        return True
    x, y = _quantity(a), _quantity(b)
    if x.unit and y.unit and _clash(x.unit, y.unit):
        return False
    if _tight(x.text) == _tight(y.text) and x.text:
        return True
    numbers = value(x.text), value(y.text)
    if numbers[0] is not None and numbers[1] is not None:
        return _same_numbers(numbers[0], numbers[1], x.text, y.text, rules.tolerance) or _rounded(x.text, y.text)
    if _UNDEFINED.search(a) or _UNDEFINED.search(b):
        return False
    if _words(a) or _words(b):
        return _spelt(a) == _spelt(b)
    if _in_a_base(a) or _in_a_base(b):
        return False
    if is_label(a) and is_label(b) and len(a) == len(b) == 1:
        return False  # to math-verify, A is a
    if _DECIMAL.fullmatch(x.text) or _DECIMAL.fullmatch(y.text):
        return _rounded(x.text, y.text)
    return _by_algebra(x.text, y.text, rules)


def _same_numbers(a: Fraction, b: Fraction, text: str, gold: str, tolerance: Fraction) -> bool:
    if abs(a - b) <= tolerance:
        return True
    # Whether a per cent is a hundredth or a unit, the question knows: 28 % answers both 28 and 0.28.
    if ("%" in text) != ("%" in gold):
        return abs(a * (100 if "%" in text else 1) - b * (100 if "%" in gold else 1)) <= tolerance
    return False


def _rounded(a: str, b: str) -> bool:
    """Whether one is a decimal, the other to all its digits: 0.333333 is 1/3; or cut off, with dots: 0.3333..."""
    one, other = _DECIMAL.fullmatch(a), _DECIMAL.fullmatch(b)
    if bool(one) == bool(other):
        return False
    decimal, exact = (one, b) if one else (other, a)
    assert decimal is not None
    if len(decimal["digits"]) + len(decimal["whole"].lstrip("0")) < (4 if decimal["dots"] else _DIGITS):
        return False
    if len(decimal["digits"]) < _DECIMALS:
        return False
    target = value(exact)
    if target is None:
        target = algebra.number(exact, len(decimal[0]) + 10)
    if target is None:
        return False
    target = target * 10 ** len(decimal["digits"]) * (100 if decimal["percent"] else 1)
    written = int(decimal["sign"] + decimal["whole"] + decimal["digits"])
    return written == (int(target) if decimal["dots"] else round(target))


def _before_approximation(text: str) -> str:
    left, found, right = re.sub(r"\\(?:approx|simeq|thickapprox)(?![a-zA-Z])", r"\\approx", text).partition(r"\approx")
    if not found:
        return text
    return (right if is_label(left) else left).strip()


@dataclass(frozen=True)
class _Quantity:
    text: str
    unit: str


def _quantity(text: str) -> _Quantity:
    """A number's text apart from the unit that follows it."""
    match = _QUANTITY.fullmatch(text)
    if match is None or _NOT_UNITS.match(match[2]) or (value(match[1]) is None and " " not in text):
        return _Quantity(text, "")
    return _Quantity(match[1].strip(), match[2].strip())


def _clash(a: str, b: str) -> bool:
    """Two units of one dimension: 5 cm is not 5 m."""
    x, y = (_UNITS.get(re.sub(r"(?<=[a-z]{2})s$", "", unit.lower())) for unit in (a, b))
    return x is not None and y is not None and x[0] == y[0] and x[1] != y[1]


def _words(text: str) -> bool:
    return bool(_WORDS.fullmatch(text)) and len(text) > 2 and not _FUNCTIONS.search(text)


def _spelt(text: str) -> str:
    return re.sub(r"[\s.,]+", " ", text.casefold()).strip()


def _in_a_base(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9A-F]+\s*_\s*\{?\s*[0-9]+\s*\}?", text))


def _by_algebra(given: str, gold: str, rules: Rules) -> bool:
    return rules.by_algebra and algebra.equal(given, gold)
