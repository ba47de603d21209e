"""Which of the verifiers that ship fits a data set's golds, and what it says of some of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from rlkit import embedded, registry
from rlkit.config import RewardRef, Rewards, ScoringConfig
from rlkit.errors import ConfigError, TokensUnknownError
from rlkit.evaluation.gold_check import bad_golds
from rlkit.evaluation.verify import scorer
from rlkit.golds import gold_cell
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey, UnknownTokens
from rlkit.proposal.data import Data
from rlkit.proposal.model import Model
from rlkit.wording import one_line

TRIED = 200
"""Golds that are held against themselves, from all over the data."""
SHOWN = 3
ENOUGH = 0.9
"""Share of golds that a verifier must take for right to be proposed."""


@dataclass(frozen=True)
class Form:
    """A way to give an answer."""

    text: str
    """With {} for the answer."""
    mark: str
    """What a text that is in the form already has in it; "": nothing says."""
    instruction: str
    """What a prompt says to get it."""


HASHES = Form("#### {}", "####", "End your answer with #### and the answer alone.")
BOXED = Form(r"\boxed{{{}}}", r"\boxed", r"Put the final answer within \boxed{}.")
LETTER = Form(r"\boxed{{{}}}", r"\boxed", r"Put the letter of the right option within \boxed{}.")
BARE = Form("{}", "", "Answer with nothing but the answer.")
FREE = Form("{}", "", "")

FORMS = {
    "final_answer": HASHES,
    "countdown": HASHES,
    "sorting": HASHES,
    "math": BOXED,
    "numeric": BOXED,
    "choice": LETTER,
    "exact": BARE,
}
"""How the model is asked to answer; of other rewards it is not known."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {"math": {"answer_in": "boxed"}, "numeric": {"answer_in": "boxed"}}
UNTRIED = {"code", "judge", "reward_model", "function", "format", "length", "json_schema", "regex"}
"""Rewards that no gold can be held against: they ask others, run programs, or judge what is no answer."""
UNTRIED_WHY = "as asked for; no gold can be held against it beforehand"


@dataclass(frozen=True)
class Verdict:
    response: str
    right: bool
    """It is the gold in the form that the prompt asks for; else another row's gold."""
    result: RewardResult

    def __str__(self) -> str:
        value = "no value" if self.result.value is None else f"{self.result.value:g}"
        status = "" if self.result.status == "ok" else f" ({self.result.status})"
        return f"{one_line(self.response[-60:])}  ->  {value}{status}" + ("" if self.right else ", a wrong answer")


@dataclass(frozen=True)
class Verifier:
    reward: dict[str, Any]
    """As it stands in a config."""
    form: Form
    why: str
    verdicts: Sequence[Verdict]
    doubt: str = ""
    """What to look at before a run; empty: nothing."""

    @property
    def kind(self) -> str:
        return str(self.reward["kind"])


def propose(data: Data, model: Model | None = None) -> str | None:
    """The name of the verifier that the golds call for, by what they look like; None: none that ships does. An embedded
    `model` answers in one form alone."""
    if data.embedded or (model is not None and model.embedded):
        task = data.path.removeprefix(embedded.PREFIX)
        return task if task in FORMS else "final_answer"
    texts = [text for text in data.gold_texts() if text.strip()][:TRIED]
    columns = data.rows[0].keys()
    if "nums" in columns:
        return "countdown"
    if "items" in columns:
        return "sorting"
    looks: list[tuple[str, Callable[[str], Any]]] = [
        ("final_answer", lambda gold: "####" in gold),
        ("code", lambda gold: re.match(r'\s*(\[\s*"assert |assert |\{"(inputs|fn_name|input_output)")', gold)),
        ("choice", re.compile(r"\(?[A-E]\)?\.?").fullmatch),
        ("math", lambda gold: r"\boxed" in gold or (len(gold) <= 200 and re.search(r"[\d\\^=]", gold))),
        ("final_answer", lambda gold: len(gold) <= 60 and not gold.lstrip().startswith(("{", "["))),
    ]
    for name, fits in looks:
        if texts and sum(bool(fits(gold.strip())) for gold in texts) >= ENOUGH * len(texts):
            return name
    return None


def none(data: Data) -> str:
    """What to say where `propose` has nothing."""
    gold = next((text for text in data.gold_texts() if text.strip()), None)
    if gold is None:
        return (
            f"{data.path}: there are no golds to be held against answers, so a reward that needs none must judge them"
        )
    return (
        f"{data.path}: no verifier that ships is known to suit golds such as {one_line(gold, 80)!r} in column "
        f"{data.answer}. Another column may hold short answers (--answer); or write a reward (docs/writing-a-reward.md)"
    )


def take(data: Data, name: str, plugins: Sequence[str]) -> Verifier:
    """The verifier, tried on golds. ConfigError where it takes hardly one of them for right."""
    (ref,) = TypeAdapter(Rewards).validate_python(name)
    registry.find("rewards", ref.kind)
    form = FORMS.get(ref.kind, FREE)
    options = {key: value for key, value in OPTIONS.get(ref.kind, {}).items() if key not in ref.options}
    reward = {"kind": ref.kind, **options, **ref.options}
    if ref.kind in UNTRIED or data.answer is None:
        return Verifier(reward, form, UNTRIED_WHY, [])
    cells, step = data.golds(), max(1, len(data.rows) // TRIED)
    tried = range(0, len(cells), step)
    try:
        with scorer([RewardRef(**reward)], ScoringConfig(), plugins) as verifier:
            bad = bad_golds(verifier, [(cells[i], dict(data.rows[i])) for i in tried])
            verdicts = list(_verdicts(data, form, verifier.score)) if len(bad) < len(tried) else []
    except TokensUnknownError:
        return Verifier(reward, form, UNTRIED_WHY, [])
    good = len(tried) - len(bad)
    if ref.kind in FORMS and good < ENOUGH * len(tried):
        raise ConfigError(_unfit(data, ref.kind, good, len(tried), [each.gold for each in bad]))
    said = f"it takes {good} of {len(tried)} golds for right when it is given them as answers"
    rows = [f"row {tried[each.row - 1] + 1} ({each.gold[:40] or 'empty'})" for each in bad]
    return Verifier(reward, form, said, verdicts, _doubt(ref.kind, rows, len(tried), data.path) if bad else "")


def _doubt(kind: str, rows: Sequence[str], tried: int, path: str) -> str:
    return (
        f"{kind} takes {len(rows)} of {tried} golds for no answer, such as {', '.join(rows[:3])}. Their samples get no "
        f"reward, and a run stops where too many have none: `rlkit data check {path} --reward {kind}` lists them"
    )


def _unfit(data: Data, kind: str, good: int, tried: int, bad: Sequence[str]) -> str:
    other = propose(data)
    advice = f"--reward {other} suits them better" if other not in (None, kind) else (
        "give another with --reward, or write one (docs/writing-a-reward.md): --reward FILE.py:FUNCTION"
    )  # fmt: skip
    share = "none" if good == 0 else f"only {good}"
    return (
        f"{kind} takes {share} of {tried} golds in column {data.answer} of {data.path} for right, though each was "
        f"given as its own answer: {one_line(bad[0], 80)!r} is one that it does not. If that is not the column of "
        f"golds, set --answer; else {advice}"
    )


def _verdicts(data: Data, form: Form, score: Callable[[Sequence[Sample]], list[RewardResult]]) -> Iterator[Verdict]:
    """Of the first golds as answers to their own questions, and to others'."""
    texts, cells = data.gold_texts(), data.golds()
    rows = [i for i, text in enumerate(texts) if text.strip()][:SHOWN]
    answers = [(i, i) for i in rows]
    for i in rows:
        behind = [*range(i + 1, len(texts)), *range(i)]
        others = (j for j in behind if texts[j].strip() and texts[j] != texts[i])
        answers += [(i, j) for j in [next(others, None)] if j is not None]
    asked = [(i, j, _said(form, cells[j], texts[j])) for i, j in answers]
    samples = [_sample(data, n, i, response, texts[i], cells[i]) for n, (i, _, response) in enumerate(asked)]
    for (i, j, response), result in zip(asked, score(samples), strict=True):
        yield Verdict(response, i == j, result)


def _said(form: Form, cell: Any, text: str) -> str:
    first = str(cell[0]) if isinstance(cell, list) and cell else text
    if form.mark and form.mark in first:
        return first
    return form.text.format(first.rpartition("####")[2].strip())


def _sample(data: Data, number: int, row: int, response: str, gold: str, cell: Any) -> Sample:
    return Sample(
        key=SampleKey(prompt_id=f"row {row + 1}", rollout_step=0, occurrence=0, index=number),
        prompt=str(data.rows[row].get(data.prompt, "")),
        response=response,
        tokens=UnknownTokens("and a gold has none"),
        answer=gold,
        gold=gold_cell(cell),
        truncated=False,
        columns=dict(data.rows[row]),
    )
