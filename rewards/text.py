"""Rewards on the text of an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from rlkit import reward
from rlkit.errors import ConfigError
from rlkit.interfaces.rewards import RewardResult, Sample

from .answers import Place, clean, find
from .common import any_gold, bad_gold, declares, no_answer, verdict
from .equivalence import number
from .rational import value

_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_LETTER = re.compile(r"\s*(?:option|choice)?\s*[(\[*_]*([A-Z])(?:[)\].:,*_\s]|$)", re.IGNORECASE)
_LETTER_AT_END = re.compile(r"(?<![\w(\[])[(\[]?([A-Z])[)\]]?[\s.*_]*$")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


@reward("final_answer")
@declares(0.0, 1.0, in_process=True)
def final_answer(samples: Sequence[Sample], *, marker: str = "####") -> list[RewardResult]:
    """1 where the text after the last "####" equals the gold's, as numbers or as text; else 0.

    Of what follows the marker, its first line counts. A gold without the marker is used whole, so GSM8K's worked
    solutions and plain numbers both do. No marker in the response: status `no_answer`; an empty gold: `bad_gold`.

    marker: the text before the answer.
    """
    return [any_gold(lambda s: _final_answer(s, marker), sample) for sample in samples]


def _final_answer(sample: Sample, marker: str) -> RewardResult:
    gold = _after(sample.answer, marker) if marker in sample.answer else sample.answer
    given = _after(sample.response, marker)
    if not gold.strip():
        return bad_gold()
    return verdict(_same_answer(given, gold), given) if given else no_answer()


def _after(text: str, marker: str) -> str:
    """The first line of what follows the last marker; "" without one."""
    _, found, rest = text.rpartition(marker)
    return rest.strip().partition("\n")[0].strip() if found else ""


def _same_answer(given: str, gold: str) -> bool:
    """Equal as rationals where both are numbers, else as text. 1,000 is 1000, $5. is 5, 0.50 is 1/2."""
    given, gold = _plain(given), _plain(gold)
    if given == gold:
        return True
    a, b = value(given), value(gold)
    return a is not None and a == b


def _plain(text: str) -> str:
    text = " ".join(text.replace("$", "").split())
    return _THOUSANDS.sub("", text).removesuffix(".").rstrip()


@reward("exact")
@declares(0.0, 1.0, in_process=True)
def exact(samples: Sequence[Sample], *, ignore_case: bool = False) -> list[RewardResult]:
    """1 where the response is the gold answer, white space around both aside; else 0.

    An empty response: `no_answer`; an empty gold: `bad_gold`.

    ignore_case: take capital and small letters as the same.
    """

    def judge(sample: Sample) -> RewardResult:
        given, gold = sample.response.strip(), sample.answer.strip()
        if not gold:
            return bad_gold()
        right = given.casefold() == gold.casefold() if ignore_case else given == gold
        return verdict(right, given) if given else no_answer()

    return [any_gold(judge, sample) for sample in samples]


@reward("numeric")
@declares(0.0, 1.0, in_process=True)
def numeric(
    samples: Sequence[Sample], *, tolerance: float = 0.0, relative: float = 0.0, answer_in: Place = "auto"
) -> list[RewardResult]:
    """1 where the answer is a number within `tolerance` of the gold, or within `relative` times the gold; else 0.

    Exact rational arithmetic: 0.5 is 1/2, and 0.1 + 0.2 is 0.3. An answer that is no number, or none: `no_answer`; a
    gold that is no number: `bad_gold`.

    tolerance: how far the answer may lie from the gold.
    relative: how far, as a share of the gold; the larger of the two counts.
    answer_in: where the answer stands; as in `math`.
    """

    def judge(sample: Sample) -> RewardResult:
        gold = number(sample.answer)
        if gold is None:
            return bad_gold()
        found = find(clean(sample.response), answer_in) or ""
        given = number(found)
        if given is None:
            return no_answer()
        allowed = max(Fraction(str(tolerance)), abs(gold) * Fraction(str(relative)))
        return verdict(abs(given - gold) <= allowed, found)

    return [any_gold(judge, sample) for sample in samples]


@reward("regex")
@declares(0.0, 1.0)
class Regex:
    """1 where `pattern` occurs in the response, and its first group, if it has one, is the gold; else 0.

    Of several matches the last one counts. With a group: no match is `no_answer`, and an empty gold `bad_gold`.
    Python's regular expressions can take exponential time, so this runs in a worker process.

    pattern: a regular expression of Python's.
    ignore_case: take capital and small letters as the same.
    """

    def __init__(self, *, pattern: str, ignore_case: bool = False):
        try:
            self.pattern = re.compile(pattern, re.IGNORECASE if ignore_case else re.NOFLAG)
        except re.error as error:
            raise ConfigError(f"reward regex: pattern {pattern!r} is no regular expression: {error}") from error

    def __call__(self, samples: Sequence[Sample]) -> list[RewardResult]:
        return [any_gold(self._judge, sample) for sample in samples]

    def _judge(self, sample: Sample) -> RewardResult:
        if not self.pattern.groups:
            return RewardResult(value=float(bool(self.pattern.search(sample.response))))
        if not sample.answer.strip():
            return bad_gold()
        last = None
        for match in self.pattern.finditer(sample.response):
            last = match
        if last is None or last[1] is None:
            return no_answer()
        return verdict(_same_answer(last[1], sample.answer), last[1])


@reward("choice")
@declares(0.0, 1.0, in_process=True)
def choice(samples: Sequence[Sample], *, letters: str = "ABCDE", answer_in: Place = "auto") -> list[RewardResult]:
    r"""1 where the answer is the letter of the gold option; else 0.

    The answer is found as in `math`: (B), B., **B**, option B, and \text{(B) 5} all are B. No letter of `letters` in
    it: `no_answer`; a gold without one: `bad_gold`.

    letters: those of the options, as capitals.
    answer_in: where the answer stands; as in `math`.
    """

    def judge(sample: Sample) -> RewardResult:
        gold = _letter(sample.answer, letters)
        if gold is None:
            return bad_gold()
        found = find(clean(sample.response), answer_in)
        given = _letter(found, letters) if found is not None else None
        return no_answer() if given is None else verdict(given == gold, given)

    return [any_gold(judge, sample) for sample in samples]


def _letter(text: str, letters: str) -> str | None:
    text = _TEXT_COMMAND.sub(r"\1", text).replace("$", "").strip()
    for found in (_LETTER.match(text), _LETTER_AT_END.search(text[-200:])):
        if found and found[1].upper() in letters:
            return found[1].upper()
    return None


@reward("contains")
@declares(0.0, 1.0, in_process=True)
def contains(samples: Sequence[Sample], *, ignore_case: bool = True) -> list[RewardResult]:
    """1 where the gold occurs in the response as whole words; else 0. A model can earn it by listing guesses.

    An empty response: `no_answer`; an empty gold: `bad_gold`.

    ignore_case: take capital and small letters as the same.
    """

    def judge(sample: Sample) -> RewardResult:
        gold = " ".join(sample.answer.split())
        text = " ".join(sample.response.split())
        if not gold:
            return bad_gold()
        if ignore_case:
            gold, text = gold.casefold(), text.casefold()
        whole = re.compile(rf"(?<!\w){re.escape(gold)}(?!\w)")
        return RewardResult(value=float(bool(whole.search(text)))) if text else no_answer()

    return [any_gold(judge, sample) for sample in samples]
