"""Which option a text chooses: "B", "(B) 25", "B, not D", "It cannot be A or C, so B."; of several, and of none, none.

A text is read clause by clause. Of a clause that denies, its letters are not chosen; nor are those of a question.
"""

from __future__ import annotations

import re

_GOLD = re.compile(r"\(?\s*([A-J])\s*\)?[.:]?|\(([A-J])\)\s*\S.*|([A-J])[.)]?\s+[A-Z][a-z].*", re.DOTALL)
_LABEL = re.compile(r"(?:[Oo]ption |[Cc]hoice )?(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:](?=\s*\S))(.*)", re.DOTALL)
_AND_ANOTHER = re.compile(r"\s*(?:,|/|&|\+|and\b|or\b)\s*(?:or |and |else )*\(?[A-J]\)?(?![\w'])")
# "A" as in "A dog", and "I" as in "I think", are no options.
_LETTER = (
    r"(?<![a-zA-Z0-9À-ÿ'\\^])\(?(?:[B-HJ]|I(?=\))|A(?!\s(?!(?:is|and|or|nor|because|since|as|fails?|does|do|would|can|cannot|"
    r"are|holds|works|was|has|must|und|ist|oder|nicht|y|es|ou|et|est)\b|[a-z]+[a-rt-z]s\b)[a-z]))\)?(?![a-zA-Z0-9À-ÿ'^_=])"
)
_GROUP = re.compile(
    rf"{_LETTER}(?:\s*(?:,|/|&|、|\b(?:and|or|nor|und|oder|ou|et|o|y)\b|和|或)+\s*\(?[A-J]\)?(?![a-zA-Z0-9À-ÿ'^_=]))*"
)
_ALL_BUT = re.compile(r"\b((?:every|any|no)(?:thing|one)?|all|none) but\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r"(?<=[?])|[,;:.!()\n]|\s-+\s|\b(?:but|so|hence|thus|therefore|since|because|while|whereas|sondern|denn|sino|mais)\b"
    "|(?=\\bleav(?:es|ing)\\b)|(?=\\b(?:not|rather than|instead of|unlike|nicht|statt)\\s\0)"
)
_DENIES = re.compile(
    r"\b(?:not|no|never|neither|nor|none|isn|aren|cannot|can|couldn|doesn|don|won|wouldn|shouldn|wasn)['\u2019]t\b"
    r"|\b(?:not|no|never|neither|nor|none|cannot|wrong|false|incorrect|rules? out|ruled out|eliminat\w+|exclud\w+|worst"
    r"|except|excluding|besides|unlike|instead of|rather than|than|fails?|failed|impossible|out of|doubt|unless|if|too"
    r"|nicht|kein\w*|falsch|pas|non|sauf|falso|falsa|incorrect[ao]|niet|nie|inte)\b|不|非|没|错|не(?!\w)|ない|아니",
    re.IGNORECASE,
)


def option(gold: str) -> str | None:
    """The letter of a gold that names an option: B, (B), (B) 25, B Peter."""
    found = _GOLD.fullmatch(gold)
    return next(letter for letter in found.groups() if letter) if found else None


def chosen(text: str) -> str | None:
    """The one option that a text chooses; None where it chooses none, or several."""
    text = text.strip()
    label = _LABEL.fullmatch(text)
    if label and not _DENIES.search(label[3].split(",")[0][:40]) and not _AND_ANOTHER.match(label[3]):
        return label[1] or label[2]
    groups: list[list[str]] = []

    def keep(match: re.Match[str]) -> str:
        groups.append(re.findall(r"(?<![a-zA-Z])[A-J](?![a-zA-Z])", match[0]))
        return f"\0{len(groups) - 1}\0"

    text = _GROUP.sub(keep, _ALL_BUT.sub("except", text))
    letters: set[str] = set()
    for clause in _CLAUSE.split(text):
        if clause and not _DENIES.search(clause) and not clause.endswith("?"):
            letters.update(*(groups[int(number)] for number in re.findall("\0([0-9]+)\0", clause)))
    return letters.pop() if len(letters) == 1 else None
