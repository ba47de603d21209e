r"""Where a response's answer stands. Every function takes time linear in the text.

In order: what follows the thinking; the last <answer> tag; the last \boxed{}; the last ####; the last "answer is";
and, unless `strict`, a response that is nothing but an answer, the last formula, the last number.
"""

# ruff: noqa: RUF001 (look-alikes of ASCII are what is being replaced)

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import Literal

from .languages import ANCHOR, CORRECTION, DENIED, ENDS_A_SENTENCE, NOT_ANOTHER, denied, joins, takes_back, unsure
from .rational import value
from .wording import symbols

Place = Literal["auto", "boxed", "answer_tag", "hashes", "last_number"]

LONGEST_RESPONSE = 200_000
"""Characters of a response that are looked at: the last ones."""
_LONGEST_BARE = 400

_MOST_BOXES = 12

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-", strict=True))
_NAMED = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/",
    "∕": "/", "⁄": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "°": r"^{\circ}", "º": r"^{\circ}", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ",
    "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega ", "。": ". ", "、": ", ",
    "£": r"\$", "€": r"\$", "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ",
}  # fmt: skip
_TABLE = str.maketrans(_NAMED)
_ROOT = re.compile(r"([√∛∜])\s*(\(|\{|[0-9]+(?:\.[0-9]+)?|\\?[a-zA-Z]+)?")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}

_EMPHASIS = re.compile(r"`+|</?(?:b|i|em|strong|code|u)>", re.IGNORECASE)
_IN_BACKTICKS = re.compile(r"(?<!`)`([^`$\n]{1,80})`(?!`)")
_TOKEN = re.compile(r"<\|[^<>|]{1,40}\|>")
_BOX_OR_BRACE = re.compile(r"\\{1,2}(?:f?boxed|fbox)(?![a-zA-Z])\s*(?P<open>\{?)|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"[^\s${}\\]+|\\[a-zA-Z]+")
_BLANK = re.compile(r"(?:\s|[.…?_~]|\\[ld]?dots(?![a-zA-Z])|\\q?quad(?![a-zA-Z])|\\[ ,;:!])*")
_TALK_OF_BOXES = re.compile(r"\\{1,2}(?:f?boxed|fbox)(?![a-zA-Z])(?:\s*\{\s*\})?")
_PLAIN_WORD = re.compile(r"\W+|[^\w\\]*[a-zA-Z]{2,}[^\w\\]*")
_JOINT = re.compile(
    r"(?:\s|\$|\\[()\[\],; ]|\\q?quad(?![a-zA-Z]))*(?:[a-z]{1,12}(?:\s|\$|\\[()])+)?(?:\s|\$|[,;]|\\[()\[\],; ]"
    r"|\\q?quad(?![a-zA-Z])|\\(?:text|mbox|textrm)\{[\s,]*(?:and|or)\s*\}|\b(?:and|or)\b)+"
)
_DELIMITERS = re.compile(r"(?:\s|\$|\\[()\[\], ])*")
_SEPARATOR = re.compile(r"[,;]|\b(?:and|or)\b")
_FINAL = re.compile(r"final answer is:?\s?(?=[$0-9-]|\\[(\[])", re.IGNORECASE)
# Bounded, so that many that never close cost no more than linear time.
_FORMULA = re.compile(
    r"\$\$([^$]{1,600})\$\$|(?<!\\)\$((?:\\.|[^$\\]){1,600})\$|\\\((.{1,600}?)\\\)|\\\[(.{1,600}?)\\\]", re.DOTALL
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\*|$)|\n\s*\n|\n(?=[^\s\\$])|<\|")
_NUMBER = re.compile(
    r"(?<![\w.^{])(?:[0-9.]{1,20}[*/]){0,6}[0-9.]{1,20}\^(?:[0-9]{1,20}|\{[-0-9*/+]{1,20}\})(?![\w^])"
    r"|(?<![\w.^{])[-+]?\s?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:\s[0-9]+)?(?:/[0-9]+)?"
    r"(?:\s?(?:\\?%|percent\b))?|(?<![\w.])[-+]?\.[0-9]+|[0-9]+(?:\.[0-9]+)?(?=[^\W\d_a-zA-Z])"
)
_COMMAND = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|operatorname)\s?\{[^{}]*\}|\\[a-zA-Z]+"
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_COPULA = re.compile(r"\b(?:is|are|be|equals?|remain|becomes)\b:?|=(?=\s*\$)")
_LEAD = re.compile(r"[A-Z][a-z]+(?: [a-z]+)?\s?[:,]\s+(?=\S)")
_MATH_WORDS = frozenset(
    ("and", "or", "sin", "cos", "tan", "log", "ln", "exp", "gcd", "lcm", "max", "min", "mod", "sqrt", "pi", "oo", "inf")
)


def clean(text: str) -> str:
    """The text as LaTeX in ASCII as far as it goes, without special tokens and invisible characters."""
    text = text[-LONGEST_RESPONSE:]
    if "<|" in text:
        text = _TOKEN.sub(" ", text.split("<|im_start|>user", 1)[0])
    if "`" in text or "</" in text:
        text = _EMPHASIS.sub(" ", _IN_BACKTICKS.sub(r"$\1$", text))
    if text.isascii():
        return text.replace("\0", "") if "\0" in text else text
    text = _ROOT.sub(_root, text)
    text = _runs(_runs(text, _SUPERSCRIPTS, "^"), _SUBSCRIPTS, "_")
    text = re.sub(r"(?<=[0-9])(?=[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", " ", text).translate(_TABLE)
    text = unicodedata.normalize("NFKC", text).translate(_TABLE)
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cf", "Cc"))


def _root(match: re.Match[str]) -> str:
    root, what = _ROOTS[match[1]], match[2]
    if what is None or what in "({":
        # A bracket's partner is its own: \sqrt{}(2) would be no root.
        return root + (what or "")
    return f"{root}{{{what}}}"


def _runs(text: str, letters: dict[str, str], sign: str) -> str:
    return re.sub(f"[{''.join(letters)}]+", lambda m: f"{sign}{{{''.join(letters[c] for c in m[0])}}}", text)


def find(text: str, place: Place = "auto", strict: bool = False) -> str | None:
    """The answer in a response that `clean` has seen; None where there is none.

    `place` other than "auto" looks nowhere else. `strict` asks for a mark: a tag, a box, #### or "answer is".
    """
    before, thought, after = text.rpartition("</think>")
    text = after if thought else before + after
    if "<think>" in text:
        text = text[: text.index("<think>")]  # the thinking never ended
    if place == "boxed":
        return last_box(text)
    if place == "hashes":
        return _hashes(text)
    if place == "last_number":
        return _last_number(text)
    tagged = _tagged(text)
    if tagged is not None:
        return (last_box(tagged) or tagged).strip() or None
    if place == "answer_tag":
        return None
    boxed = last_box(text)
    if boxed is not None or _boxes(text)[1] >= 0:
        return (_final(text) if boxed is not None else None) or boxed
    text = _TALK_OF_BOXES.sub(" ", text)
    found = _hashes(text) or _anchored(text)
    if found is not None or strict:
        return found
    return _unmarked(text)


def find_gold(text: str) -> str | None:
    """The answer in a gold: a worked solution's, or all of a short one."""
    if _opens_a_box(text):
        return last_box(text)
    if "####" in text:
        return _hashes(text)
    if _prose(text):
        return _anchored(text) or _unmarked(text) or text.strip()
    return text.strip() or None


def last_box(text: str) -> str | None:
    r"""What stands in the last \boxed{} or \fbox{}, or, as "a, b", in several that only ",", "and", "or" part.

    Several with nothing between them are one answer of several parts as well: else one could list guesses.
    None where there is none, where the last one does not close, and where the words beside it deny it.
    """
    boxes, opened = _boxes(text)
    if not boxes or opened > boxes[-1][1] or denied(text, boxes[-1][0], boxes[-1][2]):
        return None
    first = len(boxes) - 1
    while first > 0:
        between = text[boxes[first - 1][2] : boxes[first][0]]
        if len(between) > 80 or not (_DELIMITERS.fullmatch(between) or _joins(between) or _hedges(between)):
            break
        first -= 1
    parts = [text[start:end].strip() for _, start, end in ((b[0], b[1], b[3]) for b in boxes[first:])]
    return ", ".join(parts) or None


def boxes_apart(text: str) -> list[str]:
    """What stands in each box, where several have prose between them that takes none of them back; else nothing."""
    text = text.rpartition("</think>")[2]
    boxes, opened = _boxes(text)
    between = " ".join(text[a[2] : b[0]] for a, b in itertools.pairwise(boxes))
    ahead = text[max(0, boxes[0][0] - 40) : boxes[0][0]] if boxes else ""
    if not 2 <= len(boxes) <= _MOST_BOXES or opened > boxes[-1][1] or takes_back(ahead, between):
        return []
    return [text[box[1] : box[3]].strip() for box in boxes]


def _hedges(between: str) -> bool:
    """or maybe; , perhaps; and, in a sentence of its own: Or maybe"""
    return len(between) < 60 and joins(between.lstrip(" .$\n").partition(".")[0])


def _joins(between: str) -> bool:
    return bool(_JOINT.fullmatch(between) and _SEPARATOR.search(between))


def _boxes(text: str) -> tuple[list[tuple[int, int, int, int]], int]:
    """(command's start, content's start, end of all, content's end) of the outermost closed boxes; and where the last
    box that never closes has its content, or -1. A box that is empty is talk of boxes, and so is one before a word."""
    boxes: list[tuple[int, int, int, int]] = []
    stack: list[tuple[int, int] | None] = []
    for match in _BOX_OR_BRACE.finditer(text):
        token = match[0]
        if token == "{":
            stack.append(None)
        elif token == "}":
            box = stack.pop() if stack else None
            if box is not None:
                while boxes and boxes[-1][0] > box[0]:
                    boxes.pop()
                if not _BLANK.fullmatch(text, box[1], match.start()):
                    boxes.append((*box, match.end(), match.start()))
        elif match["open"]:
            stack.append((match.start(), match.end()))
        elif match["open"] is not None:
            bare = _BARE_BOX.match(text, match.end())
            if bare and not _PLAIN_WORD.fullmatch(bare[0]):
                boxes.append((match.start(), bare.start(), bare.end(), bare.end()))
    return boxes, max((box[1] for box in stack if box is not None), default=-1)


def _opens_a_box(text: str) -> bool:
    return r"\boxed" in text or r"\fbox" in text


def _tagged(text: str) -> str | None:
    inside, closed, _ = text.rpartition("</answer>")
    if not closed:
        return None
    _, opened, inside = inside.rpartition("<answer>")
    return inside if opened else None


def _hashes(text: str) -> str | None:
    _, found, rest = text.rpartition("####")
    return (rest.strip().partition("\n")[0].strip() or None) if found else None


def _last_number(text: str) -> str | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match[0]
    return last.strip() if last is not None else None


def _anchored(text: str) -> str | None:
    anchor = _anchor(text)
    if anchor is None or CORRECTION.search(text, anchor.end()):
        return None
    rest = text[anchor.end() : anchor.end() + 2000].lstrip()
    rest = _in_bold(text, anchor, rest)
    opening = _FORMULA.match(rest)
    if opening:
        end, last = opening.end(), opening
        while (following := _FORMULA.search(rest, end)) and _joined(rest[end : following.start()]):
            last = following
            end = following.end()
        return rest[: last.end()] if last is not opening else _inside(opening)
    stop = _SENTENCE_END.search(rest)
    sentence = rest[: stop.start()] if stop else rest
    if DENIED.match(text[anchor.start() : anchor.end()] + sentence):
        return None
    sentence = _without_remark(NOT_ANOTHER.sub("", ENDS_A_SENTENCE.sub("", sentence)))
    if not _prose(sentence):
        return _bare(sentence) or None
    if named := _named(sentence):
        return named
    option = re.match(r"\(?([A-J])\)?(?=[,.:;]|\s)", sentence)
    if option:
        return option[1]
    if unsure(sentence) and len(set(_NUMBER.findall(sentence))) > 1:
        return None
    return _after_copula(sentence) or _last_formula(sentence) or _first_number(sentence)


def _anchor(text: str) -> re.Match[str] | None:
    """The last "answer is" that something follows."""
    anchor, end = None, len(text.rstrip(" .*\n"))
    for match in ANCHOR.finditer(text):
        if match.end() < end:
            anchor = match
    return anchor


def _without_remark(sentence: str) -> str:
    """42 (2 * 21) says 42, with how it came about."""
    number, _, remark = sentence.partition(" (")
    same = remark.endswith(")") and value(number) is not None and value(number) == value(remark[:-1])
    return number if same else sentence


def told(text: str, strict: bool = False) -> str | None:
    """The sentence that says the answer in words: the one with the last "answer is", else, unless `strict`, the last
    line. None where a tag, a box or #### marks the answer."""
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    if _opens_a_box(text) or "####" in text or "</answer>" in text:
        return None
    anchor = _anchor(text)
    if anchor is None:
        return None if strict else text.strip().rpartition("\n")[2][-_LONGEST_BARE:]
    if CORRECTION.search(text, anchor.end()):
        return text[anchor.start() :].strip().rpartition("\n")[2][-_LONGEST_BARE:]
    before = max(text.rfind(mark, 0, anchor.start()) for mark in (". ", "! ", "? ", "\n")) + 1
    rest = text[anchor.end() : anchor.end() + _LONGEST_BARE].lstrip()
    stop = _SENTENCE_END.search(rest)
    return text[max(before, anchor.start() - _LONGEST_BARE) : anchor.end()] + (rest[: stop.start()] if stop else rest)


def _in_bold(text: str, anchor: re.Match[str], rest: str) -> str:
    """What stands in bold, where the anchor opens it; else all of the rest."""
    mark = anchor[0].rstrip()[-2:]
    line = text[max(text.rfind("\n", 0, anchor.start()), anchor.start() - 300, 0) : anchor.end()]
    if mark not in ("**", "__") or line.count(mark) % 2 == 0:
        return rest
    inside, closed, _ = rest.partition(mark)
    return inside if closed and inside.strip() else rest


def _bare(text: str) -> str:
    """Without what sets it off: asterisks and underscores for bold, white space, ticks and other pictures."""
    start, end = 0, len(text)
    while start < end and _sets_off(text[end - 1]):
        end -= 1
    while start < end and _sets_off(text[start]):
        start += 1
    return text[start:end]


def _sets_off(character: str) -> bool:
    return character in " *_\n" or unicodedata.category(character) in ("So", "Mn")


def _final(text: str) -> str | None:
    """The answer that a "final answer is" after the last box names."""
    after = text[text.rindex("box") :]
    return _anchored(after) if _FINAL.search(after) else None


def _joined(between: str) -> bool:
    return len(between) < 20 and _SEPARATOR.sub("", between).strip() in ("", "=") and bool(between.strip())


def _inside(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def _after_copula(sentence: str) -> str | None:
    end = -1
    for match in _COPULA.finditer(sentence):
        end = match.end()
    rest = sentence[end:].strip(" *_.") if end >= 0 else ""
    return rest if rest and not _prose(rest) and re.search(r"[0-9\\$]|^[A-Za-z]$", rest) else None


def _named(sentence: str) -> str | None:
    """The set of real numbers that a sentence names."""
    sentence = sentence.replace("$", "").strip(" *_.\n")
    copula = _COPULA.search(sentence)
    return symbols(sentence) or (symbols(sentence[copula.end() :]) if copula else None)


def _last_formula(text: str) -> str | None:
    """The last formula; or, whole, the last ones that only ",", "and", "or" part."""
    first = last = None
    for match in _FORMULA.finditer(text):
        if last is None or not _joined(text[last.end() : match.start()]):
            first = match
        last = match
    if first is None or last is None:
        return None
    return _inside(last) if first is last else text[first.start() : last.end()]


def _first_number(text: str) -> str | None:
    match = _NUMBER.search(text)
    return match[0].strip() if match else None


def _unmarked(text: str) -> str | None:
    text = _LEAD.sub("", _bare(text))
    last = next((s for s in reversed(_SENTENCE_END.split(text[-_LONGEST_BARE:])) if s.strip()), "")
    if DENIED.search(last):
        return None
    if named := _named(last):
        return named
    if not _prose(text):
        opening = _FORMULA.search(text)
        told = opening is not None and _WORD.search(text[: opening.start()])
        return (_last_formula(text) if told else text) or None
    formula = _last_formula(text[-20_000:])
    number = _last_number(text)
    if formula is None and number is None:
        return None
    if unsure(last) and len(set(_NUMBER.findall(last))) > 1:
        return None
    # Whichever comes last, but a number in the formula is part of it.
    ahead = number is None or (formula is not None and text.rfind(formula) + len(formula) >= text.rfind(number))
    found = (formula if ahead else number) or ""
    start = text.rfind(found)
    return None if denied(text, start, start + len(found)) else found


def _prose(text: str) -> bool:
    """Sentences, not a bare answer."""
    if len(text) > _LONGEST_BARE and " " in text and not text.lstrip().startswith(("$", "\\", "(", "[", "{")):
        return True
    outside = _COMMAND.sub(" ", text[:5000])
    words = [word for word in _WORD.findall(outside) if word.lower() not in _MATH_WORDS]
    return len(words) >= 3
