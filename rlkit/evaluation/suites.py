r"""Evaluation suites: problems, the words around them, the verifier, and how many samples to take.

A suite is a plugin: a function that returns a Suite.

    @suite("mine")
    def mine() -> Suite:
        "My problems"
        return Suite(load=lambda folder: [{"prompt": "1+1=", "answer": "2"}], template="{prompt}", reward="math")
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlkit import data, registry
from rlkit.config import DataConfig, PluginRef, ScoringConfig
from rlkit.errors import ConfigError, TokensUnknownError
from rlkit.evaluation.gold_check import bad_golds
from rlkit.evaluation.verify import scorer
from rlkit.golds import gold_text
from rlkit.registry import suite
from rlkit.scoring import Scorer

Row = Mapping[str, Any]
Loader = Callable[[Path | None], Sequence[Row]]
"""Rows with the columns `prompt`, `answer` (the gold, as the verifier reads it) and any others, which the verifier
gets too. Its argument is the folder of local copies; None: read from the hub."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    load: Loader
    template: str
    """Text around the question, with {prompt} for it. Chat models read it as the user's message."""
    reward: str
    """The verifier: a reward's name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The verifier's."""
    samples: int = 1
    """Responses to each problem, unless asked otherwise."""
    metric: Literal["mean", "pass", "maj"] = "mean"
    """The one the suite is quoted by."""
    count: int | None = None
    """Problems there must be; None: any number."""

    @property
    def verifier(self) -> PluginRef:
        return PluginRef(kind=self.reward, **self.options)


@dataclass(frozen=True)
class OpenSuite:
    """A suite with its problems, put to a model, and its verifier at work."""

    name: str
    suite: Suite
    problems: list[data.Problem]
    verifier: Scorer
    bad_golds: list[str]
    """Those that do not verify against themselves, as "row 12: \\emptyset (bad_gold)"."""
    unchecked: str | None
    """Why the golds could not be checked; None: they were."""


def find(name: str) -> Suite:
    """The suite of that name. ConfigError, naming the nearest, where there is none."""
    found = registry.build("suites", name, {})
    if not isinstance(found, Suite):
        raise ConfigError(f"suite {name!r}: its plugin returned a {type(found).__name__}; it must return a Suite")
    return found


def rows(name: str, folder: Path | None = None) -> list[Row]:
    """A suite's rows. ConfigError for a missing file or column, and for another number of problems than it has."""
    wanted = find(name)
    loaded = list(wanted.load(folder))
    if wanted.count is not None and len(loaded) != wanted.count:
        raise ConfigError(
            f"suite {name!r} has {wanted.count} problems, but {len(loaded)} were read"
            + (f" from {folder}" if folder else "")
            + ": this is another data set, or part of it, and its figures could not be compared"
        )
    return loaded


@contextmanager
def opened(
    name: str,
    tokenizer: Any,
    *,
    folder: Path | None = None,
    limit: int | None = None,
    chat: bool | None = None,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    scoring: ScoringConfig | None = None,
    plugins: Sequence[str] = (),
) -> Iterator[OpenSuite]:
    """The suite's problems (its first `limit`) as `tokenizer`'s model reads them, their golds checked by the verifier
    that scores the responses; it is closed at the end of the `with`.

    `chat`: whether prompts go through the tokenizer's chat template; None: where it has one. Raises ConfigError.
    """
    wanted = find(name)
    chosen = rows(name, folder)[:limit]
    if chat is None:
        chat = getattr(tokenizer, "chat_template", None) is not None
    put = DataConfig(
        path=name,
        template=wanted.template,
        chat=chat,
        system=system,
        chat_template_kwargs=dict(chat_template_kwargs or {}),
        max_prompt_tokens=sys.maxsize,
    )
    problems = data.as_problems(chosen, put, tokenizer, f"suite {name!r}").problems
    golds = [(problem.gold, problem.columns) for problem in problems]
    with scorer(wanted.verifier, scoring or ScoringConfig(), plugins) as verifier:
        bad, unchecked = [], None
        try:
            bad = [str(b) for b in bad_golds(verifier, golds)]
        except TokensUnknownError as error:
            unchecked = str(error)
        yield OpenSuite(name, wanted, problems, verifier, bad, unchecked)


def fingerprint(problems: Sequence[data.Problem]) -> str:
    """Changes with any prompt, as the model reads it, and any gold."""
    text = json.dumps([[problem.tokens, problem.answer] for problem in problems])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def table(
    hub: str,
    file: str,
    *,
    subset: str | None = None,
    split: str = "test",
    prompt: str = "problem",
    answers: Sequence[str] = ("answer",),
    gold: Callable[[str], str] = str.strip,
) -> Loader:
    """A loader of the hub's data set, or of `file` in a folder of local copies.

    `answers`: names the gold's column has in one copy or another; the first that is there counts. `gold` turns the
    column's text into what the verifier reads.
    """

    def load(folder: Path | None) -> list[Row]:
        where = str(folder / file) if folder else hub
        raw = data.read_rows(where) if folder else data.read_rows(hub, subset, split)
        loaded: list[Row] = []
        for i, row in enumerate(raw, 1):
            here = f"{where}, row {i}"
            name = next((name for name in answers if name in row), answers[0])
            question = data.column(row, prompt, "the file to one with the suite's columns", here)
            answer = data.column(row, name, "the file to one with the suite's columns", here)
            rest = {key: value for key, value in row.items() if key not in (prompt, name)}
            loaded.append({**rest, "prompt": question, "answer": gold(gold_text(answer, f"{here}, {name}"))})
        return loaded

    return load


BOXED = "{prompt}\n\nReason step by step, and put the final answer within \\boxed{}."
MARKED = "{prompt}\n\nReason step by step, and end with the answer alone, as a number, after ####."


@suite("math500")
def math500() -> Suite:
    """MATH-500: competition mathematics (arXiv 2103.03874, the split of arXiv 2305.20050)"""
    return Suite(load=table("HuggingFaceH4/MATH-500", "math500.jsonl"), count=500, template=BOXED, reward="math")


@suite("aime24")
def aime24() -> Suite:
    """AIME 2024, I and II: 30 problems whose answers are integers from 0 to 999"""
    return Suite(
        load=table("HuggingFaceH4/aime_2024", "aime24.jsonl", split="train", answers=("answer", "expected_answer")),
        count=30,
        template=BOXED,
        reward="math",
        samples=32,
    )


@suite("aime25")
def aime25() -> Suite:
    """AIME 2025, I and II: 30 problems whose answers are integers from 0 to 999"""
    return Suite(
        load=table("math-ai/aime25", "aime25.jsonl", answers=("answer", "expected_answer")),
        count=30,
        template=BOXED,
        reward="math",
        samples=32,
    )


@suite("olympiadbench")
def olympiadbench() -> Suite:
    """OlympiadBench (arXiv 2402.14008): its English, text-only mathematics with final answers, the copy of 675"""
    return Suite(
        # Hothan/OlympiadBench has 674 of them. This is the copy that Qwen2.5-Math and SimpleRL evaluate on.
        load=table(
            "zwhe99/simplerl-OlympiadBench",
            "olympiadbench.jsonl",
            prompt="question",
            answers=("final_answer",),
            # Several answers stand as $8$,$4$, which no parser reads inside one box.
            gold=lambda text: text.replace("$", "").strip(),
        ),
        count=675,
        template=BOXED,
        reward="math",
        options={"tolerance": "error"},
    )


@suite("gsm8k")
def gsm8k() -> Suite:
    """GSM8K (arXiv 2110.14168): grade-school word problems, the test split"""
    return Suite(
        load=table(
            "openai/gsm8k",
            "gsm8k_test.jsonl",
            subset="main",
            prompt="question",
            gold=lambda text: text.rpartition("####")[2].strip(),
        ),
        count=1319,
        template=MARKED,
        reward="final_answer",
    )
