r"""An answer as a tree: lists, sets, tuples, intervals, unions, labels ("x ="), matrices, and leaves of text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from .wording import symbols

LONGEST = 1000
"""Characters of an answer that is taken apart; a longer one is compared as text alone."""

_WRAPPED = re.compile(
    r"\\(?:text|mbox|hbox|textbf|textit|textrm|textnormal|textsf|mathrm|mathbf|mathit|mathsf|operatorname"
    r"(?!\*?\s*\{(?:lcm|gcd|arc|a?r?(?:sin|cos|tan|cot|sec|csc)|floor|ceil|log|ln|exp|min|max|sgn|sign|det|rank|deg|mod))|bold|boldsymbol)\*?\s*\{([^{}]*)\}"
)
_ONE_LETTER_UNITS = {"m": "meter", "g": "gram", "s": "second", "h": "hour", "L": "litre", "l": "litre"}
_DELIMITER = re.compile(r"(?<!\\)\\[()\[\]]")
_ESCAPED_TWICE = re.compile(r"\\\\(?=[a-zA-Z]{2}|[{}])")
_ON_TWO_LINES = re.compile(r"(?<=[0-9])[ \t]*\r?\n\s*(?=[0-9])")
_SMALL_RULES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|mathop|nolimits)(?![a-zA-Z])\.?"), ""),
    (re.compile(r"(?<=[0-9])(?:\{,\}|,\s?\\!|\\,|\\!)\s?(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"\\!"), ""),
    (re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z])|enspace|hspace\{[^{}]*\})|~|\s+"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:leqslant|leq)(?![a-zA-Z])|<=|=<|≤"), r"\\le "),
    (re.compile(r"\\(?:geqslant|geq)(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\(?:neq|not\s*=)(?![a-zA-Z])|\\not\s*=|!="), r"\\ne "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\(?:varnothing)(?![a-zA-Z])|\\\{\s*\\\}"), r"\\emptyset "),
    (re.compile(r"\+\s*\\infty"), r"\\infty "),
    (re.compile(r"(?<![a-zA-Z\\])(?:oo|inf|infinity)(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"\\(?:lbrace|lbrack)(?![a-zA-Z])"), lambda m: r"\{" if "brace" in m[0] else "["),
    (re.compile(r"\\(?:rbrace|rbrack)(?![a-zA-Z])"), lambda m: r"\}" if "brace" in m[0] else "]"),
    (re.compile(r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\(?:degree|deg)(?![a-zA-Z])"), " "),
    (re.compile(r"(?<=[0-9])\s*(?:\.{3,}|\\c?dots(?![a-zA-Z]))"), r"\\ldots"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\\(?:ast)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\infin(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"\\operatorname\s*\{gcd\}"), r"\\gcd "),
    (re.compile(r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}"), r"\\binom{\1}{\2}"),
    # Intervals with outward brackets.
    (re.compile(r"\]([^\[\](),;]+)[,;]([^\[\](),;]+)\["), r"(\1,\2)"),
    (re.compile(r"\[([^\[\](),;]+)[,;]([^\[\](),;]+)\["), r"[\1,\2)"),
    (re.compile(r"\]([^\[\](),;]+)[,;]([^\[\](),;]+)\]"), r"(\1,\2]"),
    (re.compile(r"\\(?:bf|it|rm)(?![a-zA-Z])"), ""),
    (re.compile(r"\\frac\s*(\\(?:pi|theta|alpha))\s*([0-9a-zA-Z])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*([0-9a-zA-Z])\s*(?=\{)"), r"\\frac{\1}"),
    (re.compile(r"\\frac\s*(\{[^{}]*\})\s*([0-9a-zA-Z])"), r"\\frac\1{\2}"),
    (re.compile(r"\\sqrt\s*([0-9a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<=[0-9])\s*(?:pct|percent(?:age)?)(?![a-zA-Z])"), "%"),
    (re.compile(r"\s+"), " "),
]


def normal(text: str) -> str:
    """One spelling for what LaTeX can spell in many ways. Dollars, text commands and empty space go."""
    text = text.replace(r"\$", "").replace("$", "")
    if r"\\" in text and r"\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text)
    text = _ON_TWO_LINES.sub(", ", _DELIMITER.sub(" ", text))
    for _ in range(3):
        text, changed = _WRAPPED.subn(_unwrapped, text)
        if not changed:
            break
    for pattern, by in _SMALL_RULES:
        text = pattern.sub(by, text)
    text = _unboxed(text).strip()
    while text and text[-1] in ".,;:":
        text = text[:-1].rstrip()
    return text.strip("*").strip() if not text.startswith("*") or text.endswith("*") else text


def _unwrapped(match: re.Match[str]) -> str:
    inside, before = match[1], match.string[: match.start()].rstrip(r" \,;~")[-1:]
    unit = _ONE_LETTER_UNITS.get(inside.strip(r" \,;~"))
    if unit and (before.isdigit() or before in ("}", ")")):
        return f" {unit} "  # by its letter alone it would be a variable
    return inside if len(inside) == 1 else f" {inside} "


def _unboxed(text: str) -> str:
    match = re.match(r"\s*\\(?:f?boxed|fbox)\s*\{", text)
    if match and text.rstrip().endswith("}"):
        return text.rstrip()[match.end() : -1]
    return text


@dataclass(frozen=True, slots=True)
class Leaf:
    text: str


@dataclass(frozen=True, slots=True)
class Many:
    """`list`, `set`: the order does not count. `union`, `meet`, `minus`: of sets and intervals. `matrix`: of rows."""

    kind: Literal["list", "set", "union", "meet", "minus", "matrix", "row"]
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A tuple, or an interval: (1,2) is written as either."""

    opening: str
    items: tuple[Node, ...]
    closing: str
    relation: str = field(default="", compare=False)
    """The inequality it was written as."""


@dataclass(frozen=True, slots=True)
class Equation:
    left: str
    right: Node
    whole: str


Node = Leaf | Many | Span | Equation

_INFINITY = Leaf(r"\infty")
_MINUS_INFINITY = Leaf(r"-\infty")
REALS = Span("(", (_MINUS_INFINITY, _INFINITY), ")")
_THOUSANDS = re.compile(r"(?<![0-9,.])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])")
_OR_ALONE = re.compile(r"(?<![a-zA-Z\\])or(?![a-zA-Z])|\\(?:lor|vee)(?![a-zA-Z])")
_AND_ALONE = re.compile(r"(?<![a-zA-Z\\])and(?![a-zA-Z])|\\(?:land|wedge)(?![a-zA-Z])")
_UNKNOWN = re.compile(r"(?<![a-zA-Z\\])[a-df-zA-Z](?![a-zA-Z])")
_IN_REALS = re.compile(r"[a-zA-Z]\s*\\in\s*\\mathbb\s*\{?R\}?")
_REALS_PART = re.compile(r"\\mathbb\s*\{?R\}?\s*(?:\^\s*\{?\+\}?|_\s*\{?\s*(?P<from>\\ge|>)\s*0\s*\}?)")
_MINUS = re.compile(r"\\mathbb\s*\{?R\}?\s*(?:\\(?:setminus|backslash)(?![a-zA-Z])|-\s*(?=[\[(\\]))")
_REGIONS = ("union", "meet", "minus")
_AND = re.compile(r"(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|(?:(?<=[\s}\])])\\(?:lor|vee|text\{or\})(?![a-zA-Z]))")
_MATRIX = re.compile(r"\\begin\s*\{([pbBvV]?matrix|array)\}(?:\s*\{[lcr|\s]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
_RELATION = re.compile(r"<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z])|\\in(?![a-zA-Z])|=")
_ATOM = re.compile(r"\\\\|\\begin\s*\{[a-zA-Z*]+\}|\\end\s*\{[a-zA-Z*]+\}|\\(?:[a-zA-Z]+|.)|.", re.DOTALL)
_OPEN = frozenset(("(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"))
_CLOSE = frozenset((")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"))


def split(text: str, at: Callable[[str], bool]) -> list[str]:
    """The pieces between the separators that stand in no bracket."""
    pieces, depth, start = [], 0, 0
    for match in _ATOM.finditer(text):
        atom = match[0]
        if atom in _OPEN or atom.startswith(r"\begin"):
            depth += 1
        elif atom in _CLOSE or atom.startswith(r"\end{"):
            depth -= 1
        elif depth <= 0 and at(atom):
            pieces.append(text[start : match.start()])
            start = match.end()
    return [*pieces, text[start:]]


def _closed_by_last(text: str, opening: int, closing: int) -> bool:
    """Whether the bracket that opens `text` is the one that ends it. Interval brackets may face any way."""
    depth = 0
    inside = text[opening : len(text) - closing]
    for match in _ATOM.finditer(inside):
        if match[0] in _OPEN:
            depth += 1
        elif match[0] in _CLOSE:
            depth -= 1
            if depth < 0:
                return False
    return depth == 0


def parse(text: str, thousands: bool = True) -> Node:
    """The tree of a text that `normal` has seen. `thousands`: at the top level 1,234 is one number, not two."""
    if thousands:
        text = _THOUSANDS.sub(lambda m: m[1].replace(",", ""), text)
    return _top(text)


def _top(text: str) -> Node:
    text = symbols(text) or text
    condition = _condition(text)
    if condition is not None:
        return condition
    text = _AND.sub(",", text).strip()
    groups = [g for g in split(text, lambda a: a == ";") if g.strip()]
    if len(groups) > 1:
        parsed = [_row(_parts(group)) for group in groups]
        return Many("list", tuple(_flat(parsed)))
    return _row(_parts(text))


def _condition(text: str) -> Node | None:
    """What holds of one unknown, as a set: x >= 2 and x < 5 is where both meet, x < 2 or x > 5 a union."""
    for words in (_OR_ALONE, _AND_ALONE):
        parts = [part.strip() for part in split(words.sub("\0", text), lambda a: a == "\0")]
        if len(parts) < 2:
            continue
        items = [_points(_condition(part) or _item(part)) for part in parts]
        unknowns = {match[0] for part in parts for match in _UNKNOWN.finditer(part)}
        if (
            len(unknowns) == 1
            and any(map(_is_region, items))
            and all(_is_region(each) or isinstance(each, Many) for each in items)
        ):
            return Many("union" if words is _OR_ALONE else "meet", tuple(items))
        return None
    return None


def _points(node: Node) -> Node:
    """x = 2 as a set."""
    return Many("set", (node.right,)) if isinstance(node, Equation) and is_label(node.left) else node


def _is_region(node: Node) -> bool:
    return bool(node.relation) if isinstance(node, Span) else isinstance(node, Many) and node.kind in _REGIONS


def _parts(text: str) -> list[str]:
    separator = ";" if len(split(text, lambda a: a == ";")) > 1 else ","
    return [part.strip() for part in split(text, lambda a: a == separator) if part.strip()] or [text.strip()]


def _row(parts: list[str]) -> Node:
    """One item, or several that commas part."""
    parts = [part for part in parts if not _IN_REALS.fullmatch(part)] or parts
    nodes = [_item(part) for part in parts]
    if len(nodes) == 1:
        only = _flat(nodes)
        return only[0] if len(only) == 1 else Many("list", tuple(only))
    labels = [node.left for node in nodes if isinstance(node, Equation) and is_label(node.left)]
    rights = [node.right if isinstance(node, Equation) else node for node in nodes]
    if len(labels) == 1 and isinstance(nodes[0], Equation):  # n = 1, 2, 3
        nodes = rights
    elif len(labels) == len(nodes):
        period = _period(labels)
        if period == 1:  # x = 1, x = 2
            nodes = rights
        elif period < len(nodes) and len(nodes) % period == 0:  # x = 1, y = 2, x = 2, y = 1
            nodes = [Span("(", tuple(rights[i : i + period]), ")") for i in range(0, len(rights), period)]
    if all(isinstance(node, Span) and node.relation for node in nodes):  # x < 2, x > 5
        return Many("union", tuple(nodes))
    if r"\ne" in parts[0] and _is_region(nodes[0]) and not any(map(_RELATION.search, parts[1:])):  # x != 1, 2
        points = (_item(_RELATION.split(parts[0])[1]), *nodes[1:])
        return Many("minus", (REALS, Many("set", points)))
    if all(map(_is_region, nodes)):  # x != 1, x != 2
        return Many("meet", tuple(nodes))
    if all(isinstance(node, Span) and {_INFINITY, _MINUS_INFINITY} & set(node.items) for node in nodes):
        return Many("union", tuple(nodes))
    return Many("list", tuple(_flat(nodes)))


def _period(labels: list[str]) -> int:
    return next(p for p in range(1, len(labels) + 1) if labels[p:] == labels[:-p] or p == len(labels))


def _flat(nodes: list[Node]) -> list[Node]:
    """With each \\pm as two items."""
    flat: list[Node] = []
    for node in nodes:
        if isinstance(node, Many) and node.kind == "list" and len(nodes) == 1:
            flat += node.items
        elif isinstance(node, Leaf) and _PLUS_MINUS.search(node.text):
            flat += [_item(_signed(node.text, plus=True)), _item(_signed(node.text, plus=False))]
        elif isinstance(node, Equation) and isinstance(node.right, Leaf) and _PLUS_MINUS.search(node.right.text):
            flat += _flat([node.right])
        else:
            flat.append(node)
    return flat


def _signed(text: str, plus: bool) -> str:
    first, second = ("+", "-") if plus else ("-", "+")
    text = re.sub(r"\\pm(?![a-zA-Z])", first, text)
    return re.sub(r"\\mp(?![a-zA-Z])", second, text).strip().removeprefix("+").strip()


def _item(text: str) -> Node:
    text = text.strip()
    relations = _relations(text)
    if relations is not None:
        return relations
    pieces = split(text, lambda a: a in (r"\cup", r"\bigcup"))
    if len(pieces) > 1:
        items = [_item(piece) for piece in pieces]
        sets = [item for item in items if isinstance(item, Many) and item.kind == "set"]
        if len(sets) == len(items):
            return Many("set", tuple(member for each in sets for member in each.items))
        return Many("union", tuple(items))
    if text in (r"\mathbb{R}", r"\mathbb R", r"\R"):
        return REALS
    part = _REALS_PART.fullmatch(text)
    if part:
        return Span("[" if part["from"] == r"\ge" else "(", (Leaf("0"), _INFINITY), ")")
    if minus := _MINUS.match(text):
        rest = text[minus.end() :].strip()
        return Many(
            "minus", (REALS, Many("set", (_item(rest),)) if rest[:1] not in ("\\", "[", "(", "]") else _item(rest))
        )
    return _bracketed(text)


def _bracketed(text: str) -> Node:
    matrix = _MATRIX.fullmatch(text)
    if matrix and matrix[1] not in ("vmatrix", "Vmatrix") and r"\begin" not in matrix[2]:
        rows = [row for row in matrix[2].split(r"\\") if row.strip()]
        return Many("matrix", tuple(Many("row", tuple(_item(cell) for cell in row.split("&"))) for row in rows))
    if text.startswith(r"\{") and text.endswith(r"\}") and _closed_by_last(text, 2, 2):
        return _set(text[2:-2])
    if text.startswith("{") and text.endswith("}") and _closed_by_last(text, 1, 1):
        inner = text[1:-1].strip()
        return _set(inner) if len(_parts(inner)) > 1 else _item(inner)
    if len(text) > 2 and text[0] in "([]" and text[-1] in ")][":
        inner = text[1:-1]
        outward = text[0] == "]" or text[-1] == "["
        if _closed_by_last(text, 1, 1):
            parts = _parts(inner)
            if len(parts) > 1 and not (outward and len(parts) != 2):
                opening, closing = {"]": "("}.get(text[0], text[0]), {"[": ")"}.get(text[-1], text[-1])
                return Span(opening, tuple(_item(part) for part in parts), closing)
            if not outward and inner.strip():
                return _item(inner)
    if text.startswith(r"\langle") and text.endswith(r"\rangle"):
        return Span("(", tuple(_item(part) for part in _parts(text[7:-7])), ")")
    return Leaf(text)


def _set(inner: str) -> Node:
    built = re.fullmatch(
        r"\s*[a-zA-Z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|\\vert|\||:)(?![a-zA-Z])(.*)", inner, re.DOTALL
    )
    if built:
        return _top(built[1])
    return Many("set", tuple(_flat([_item(part) for part in _parts(inner)])))


def _all_but(point: str) -> Node:
    return Many(
        "union",
        (Span("(", (_MINUS_INFINITY, _item(point)), ")"), Span("(", (_item(point), _INFINITY), ")")),
    )


def _relations(text: str) -> Node | None:
    """Equations, memberships, and inequalities in one unknown as the interval they stand for."""
    signs: list[str] = []

    def relation(atom: str) -> bool:
        if _RELATION.fullmatch(atom):
            signs.append(atom)
            return True
        return False

    parts = [part.strip() for part in split(text, relation)]
    if not signs or not all(parts):
        return None
    if signs == ["="] and is_label(parts[1]) and not is_label(parts[0]):
        parts = parts[::-1]  # 7 = x
    if set(signs) == {"="}:
        return Equation(parts[0], _item(parts[-1]), text)
    if signs == [r"\in"] and is_label(parts[0]):
        region = _item(parts[1])
        return replace(region, relation=text) if isinstance(region, Span) and len(region.items) == 2 else region
    if signs == [r"\ne"] and is_label(parts[0]) and not is_label(parts[1]):
        return _all_but(parts[1])
    return _interval(parts, signs, text) or Leaf(text)


_SIZE = re.compile(r"(?:\||\\[lr]?vert ?)\s*[a-zA-Z]\s*(?:\||\\[lr]?vert)")


def _interval(parts: list[str], signs: list[str], text: str) -> Node | None:
    up, down = ("<", r"\le"), (">", r"\ge")
    if all(sign in down for sign in signs):
        parts, signs = parts[::-1], [up[down.index(sign)] for sign in signs[::-1]]
    if not all(sign in up for sign in signs):
        return None
    if len(parts) == 3 and is_label(parts[1]) and not is_label(parts[0]) and not is_label(parts[2]):
        low, high = _item(parts[0]), _item(parts[2])
        return Span("(" if signs[0] == "<" else "[", (low, high), ")" if signs[1] == "<" else "]", text)
    size = _SIZE.fullmatch(parts[0]) if len(parts) == 2 else None
    if size:  # |x| < 2
        return Span(
            "(" if signs[0] == "<" else "[",
            (_item(f"-({parts[1]})"), _item(parts[1])),
            ")" if signs[0] == "<" else "]",
            text,
        )
    size = _SIZE.fullmatch(parts[1]) if len(parts) == 2 else None
    if size:
        low, high = _item(f"-({parts[0]})"), _item(parts[0])
        opening, closing = ("(", ")") if signs[0] == "<" else ("[", "]")
        return Many("union", (Span("(", (_MINUS_INFINITY, low), closing), Span(opening, (high, _INFINITY), ")")))
    if len(parts) == 2 and is_label(parts[0]) and not is_label(parts[1]):
        return Span("(", (_MINUS_INFINITY, _item(parts[1])), ")" if signs[0] == "<" else "]", text)
    if len(parts) == 2 and is_label(parts[1]) and not is_label(parts[0]):
        return Span("(" if signs[0] == "<" else "[", (_item(parts[0]), _INFINITY), ")", text)
    return None


_CONSTANTS = frozenset((r"\pi", "e", r"\infty", "i"))
_SUBSCRIPT = re.compile(r"_\s*(?:\{[^{}]*\}|\\?[a-zA-Z0-9]+)")
_ARGUMENT = re.compile(r"(?<=[a-zA-Z}'])\s*\([a-zA-Z0-9, \\]*\)")
_LABEL = re.compile(r"(?:\\[a-zA-Z]+|[a-zA-Z]|[{}:,()\s'|])+")


def is_label(text: str) -> bool:
    r"""A name, not a value: x, f(x), a_{37}, (p,q,r), V_{1}:V_{2}, \frac{NO}{BO}."""
    text = _ARGUMENT.sub("", _SUBSCRIPT.sub("", text)).strip()
    return (
        text not in _CONSTANTS
        and bool(_LABEL.fullmatch(text))
        and bool(re.search(r"[a-zA-Z]", text))
        and not (
            re.search(r"\\(?:sqrt|pi|infty|sin|cos|tan|log|ln|sum|int|lim|binom|emptyset|max|min)(?![a-zA-Z])", text)
        )
    )
