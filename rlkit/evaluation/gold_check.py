"""Golds held against themselves: which of them no answer could match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.golds import gold_cell, gold_text
from rlkit.interfaces.rewards import Sample, SampleKey, UnknownTokens
from rlkit.scoring import Scorer

FORMS = (r"\boxed{{{}}}", "#### {}", "<answer>{}</answer>", "{}")
"""Ways to give an answer. A gold is sound where one of them, with the gold in it, verifies against it."""


@dataclass(frozen=True)
class BadGold:
    row: int
    """From 1."""
    gold: str
    status: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.gold[:80] or 'empty'} ({self.status})"


def bad_golds(verifier: Scorer, golds: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[BadGold]:
    """The golds (each a cell, with its row's other columns) that no answer could match: not even themselves, in any
    form. Of a list, the first one is the answer.

    Raises TokensUnknownError where the verifier reads tokens: nobody has sampled a gold.
    """
    left = list(range(len(golds)))
    status: dict[int, str] = {}
    for form in FORMS:
        results = verifier.score([_answered(i, form, *golds[i]) for i in left])
        # What the first form makes of it says most: the others are often no answer at all.
        status = {i: result.status for i, result in zip(left, results, strict=True)} | status
        left = [i for i, result in zip(left, results, strict=True) if not result.correct]
    return [
        BadGold(i + 1, gold_text(golds[i][0], f"row {i + 1}"), "wrong" if status[i] == "ok" else status[i])
        for i in left
    ]


def _answered(i: int, form: str, gold: Any, columns: Mapping[str, Any]) -> Sample:
    where = f"row {i + 1}"
    several = [each for each in map(gold_cell, gold) if each is not None] if isinstance(gold, list) else [gold]
    return Sample(
        key=SampleKey(prompt_id=f"row {i + 1}", rollout_step=0, occurrence=0, index=i),
        prompt=str(columns.get("prompt", "")),
        response=form.format(gold_text(several[0] if several else None, where)),
        tokens=UnknownTokens("and a gold has none: it cannot say which golds are sound"),
        answer=gold_text(gold, where),
        gold=gold_cell(gold),
        truncated=False,
        columns=columns,
    )
