r"""Mathematics: the answer in a response against the gold answer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction

from rlkit import reward
from rlkit.interfaces.rewards import RewardResult, Sample

from . import algebra
from .answers import Place, boxes_apart, clean, find, find_gold, told
from .common import any_gold, declares
from .equivalence import Rules, same, same_in_order, same_text
from .options import chosen, option
from .structure import normal

_SHOWN = 300


@reward("math")
@declares(0.0, 1.0)
def math(
    samples: Sequence[Sample],
    *,
    answer_in: Place = "auto",
    strict: bool = False,
    tolerance: float | str = 0.0,
) -> list[RewardResult]:
    r"""1 where the answer equals the gold: as text, as exact rationals, part by part, or to math-verify; else 0.

    No answer: status `no_answer`. An answer that is too long, or of a form that computer algebra may not come back
    from: `refused`. A gold without an answer: `bad_gold`. It sets no deadline of its own: it runs in a worker process
    that can be killed.

    answer_in: where the answer stands. auto: the last <answer>, else the last \boxed{}, else the last ####, else the
        last "answer is", else, unless `strict`, what the response ends with.
    strict: an answer must be marked: what a response merely ends with is none.
    tolerance: how far a number may lie from the gold; or the column that holds that (empty: 0), as OlympiadBench's
        `error`.
    """
    return [any_gold(lambda s: _verdict(s, answer_in, strict, tolerance), sample) for sample in samples]


math.warm_up = algebra.warm_up  # type: ignore[attr-defined]


def _verdict(sample: Sample, place: Place, strict: bool, tolerance: float | str) -> RewardResult:
    whole, gold, letter = _gold(sample.answer)
    if gold is None:
        return RewardResult(value=None, status="bad_gold")
    response = clean(sample.response)
    given = find(response, place, strict)
    sentence = told(response, strict) if place == "auto" and letter else None
    if sentence is not None:
        given = chosen(normal(sentence.replace("**", "")))
    if given is None or not given.strip():
        return RewardResult(value=0.0, status="no_answer")
    info = {"answer": given[:_SHOWN]}
    rules = Rules(tolerance=_tolerance(sample, tolerance))
    try:
        right = same(given, gold, rules) or same_text(given, whole)
        boxes = [] if right or place not in ("auto", "boxed") else boxes_apart(response)
        return RewardResult(value=float(right or same_in_order(boxes, gold, rules)), info=info)
    except algebra.RefusedError:
        return RewardResult(value=0.0, status="refused", info=info)
    except algebra.BadGoldError as error:
        return RewardResult(value=None, status="bad_gold", info={**info, "error": str(error)})
    except algebra.UndecidedError as error:
        return RewardResult(value=None, status="error", info={**info, "error": str(error)})


@functools.lru_cache(maxsize=4096)
def _gold(text: str) -> tuple[str, str | None, str | None]:
    """All of a gold, the answer in it, and the letter where that is an option's."""
    text = clean(text)
    gold = find_gold(text)
    return text, gold, option(normal(gold)) if gold else None


def _tolerance(sample: Sample, tolerance: float | str) -> Fraction:
    given = sample.columns.get(tolerance) if isinstance(tolerance, str) else tolerance
    return Fraction(str(given)) if given not in (None, "") else Fraction(0)
