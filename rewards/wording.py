r"""Sets of real numbers in words: "all real numbers except 3", "at least 2", "between 2 and 5, inclusive"."""

from __future__ import annotations

import re

_WORDS = re.compile(r"real|least|most|than|between|from|interval|union|set|all ", re.IGNORECASE)
_ABOUT = re.compile(
    r"(?:the )?(?:domain|range|solution(?: set)?|answer|set)(?: of [a-z](?:\([a-z]\))?)? (?:is|are) "
    r"|[a-z] (?:is|can be|must be|may be|is in) |[a-z] ?\\in ",
    re.IGNORECASE,
)
_X = r"((?:[^a-zA-Z,;]|\\[a-zA-Z]+){1,60}?)"
_THE = r"(?:(?:the|all|every|any|each|set of) ){0,4}"
_REAL = r"(?:real (?:numbers?|values?(?: of [a-z])?)|reals)(?: [a-z])?"
_SOME = rf"(?:{_THE}(?:{_REAL}|numbers?|values? of [a-z]|[a-z])(?: (?:that are|which are|is|are))? )?"
_MORE, _LESS = r"(?:strictly )?(?:greater|larger|bigger|more)", r"(?:strictly )?(?:less|smaller|lower)"
_TO = rf"{_X}(?: to | and ){_X}"
_EITHER = r" ?\(?(in|ex)clu(?:sive(?:ly)?|ded)\)?"
_BOTH = r",? ?\(?%s(?:ly)?\)?"
_PHRASES = [
    (re.compile(pattern, re.IGNORECASE), by)
    for pattern, by in (
        (rf"{_SOME}(?:{_MORE} than or equal to|at least|(?:no|not) (?:less|smaller) than) {_X}", r"[\1,\\infty)"),
        (rf"{_SOME}(?:{_LESS} than or equal to|at most|(?:no|not) (?:more|greater) than) {_X}", r"(-\\infty,\1]"),
        (rf"{_SOME}{_MORE} than {_X}", r"(\1,\\infty)"),
        (rf"{_SOME}{_LESS} than {_X}", r"(-\\infty,\1)"),
        (
            rf"{_THE}{_REAL},? (?:except(?: for)?|but|other than|excluding|different from|not equal to) "
            r"((?:[^a-zA-Z;]|\\[a-zA-Z]+|\b(?:and|or)\b){1,80})",
            r"\\mathbb{R}\\setminus\\{\1\\}",
        ),
        (rf"{_THE}positive {_REAL}", r"(0,\\infty)"),
        (rf"{_THE}negative {_REAL}", r"(-\\infty,0)"),
        (rf"{_THE}non-?negative {_REAL}", r"[0,\\infty)"),
        (rf"{_THE}non-?positive {_REAL}", r"(-\\infty,0]"),
        (rf"{_THE}{_REAL}", r"\\mathbb{R}"),
        (r"(?:the )?(?:empty|null) set", r"\\emptyset"),
        (rf"{_SOME}(?:strictly )?(?:between|from) {_TO}{_BOTH % 'exclusive'}", r"(\1,\2)"),
        (rf"{_SOME}strictly between {_TO}", r"(\1,\2)"),
        (rf"{_SOME}(?:between|from) {_TO}{_BOTH % 'inclusive'}", r"[\1,\2]"),
        (rf"(?:the )?open interval (?:from|between) {_TO}", r"(\1,\2)"),
        (rf"(?:the )?closed interval (?:from|between) {_TO}", r"[\1,\2]"),
        (r"(?:the )?(?:half-open |open |closed )?interval (?=[\[(\]])(.*)", r"\1"),
        (r"(?:the )?union of (.{1,80}?) and (.{1,80})", r"\1\\cup \2"),
        (r"(?:for )?all (?=[a-z] ?(?:[<>]|\\(?:le|ge|ne|in)(?![a-z])))(.*)", r"\1"),
    )
]
_ENDS = re.compile(rf"{_SOME}(?:from|between) {_X}{_EITHER} (?:to|and) {_X}{_EITHER}", re.IGNORECASE)


def symbols(text: str) -> str | None:
    """The set that a text names, in symbols; None for what names none."""
    if not _WORDS.search(text):
        return None
    text = " ".join(text.split())
    about = _ABOUT.match(text)
    text = text[about.end() :] if about else text
    ends = _ENDS.fullmatch(text)
    if ends:
        return f"{'[' if ends[2] == 'in' else '('}{ends[1]},{ends[3]}{']' if ends[4] == 'in' else ')'}"
    for pattern, by in _PHRASES:
        match = pattern.fullmatch(text)
        if match:
            return match.expand(by)
    return None
