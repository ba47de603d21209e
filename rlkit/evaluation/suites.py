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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from rlkit import config as configs
from rlkit import embedded, registry, secrets
from rlkit.blame import Blame
from rlkit.config import ConversationConfig, DataConfig, EnvironmentRef, PluginRef, RewardRef, ScoringConfig, Section
from rlkit.data import Problem, as_problems, reading
from rlkit.errors import ConfigError, TokensUnknownError
from rlkit.evaluation.gold_check import BadGold, bad_golds
from rlkit.evaluation.verify import scorer
from rlkit.generation.acting import Acting, acting_of
from rlkit.golds import gold_text
from rlkit.mistakes import explain
from rlkit.registry import suite
from rlkit.scoring import Scorer

Row = Mapping[str, Any]
Loader = Callable[[Path | None], Sequence[Row]]
"""Rows with the columns `prompt`, `answer` (the gold, as the verifier reads it) and any others, which the verifier
gets too. Its argument is the folder of local copies; None: read from the hub."""


class Acted(Section):
    """What a suite says of its environment, as a run's config does."""

    environment: EnvironmentRef | None
    conversation: ConversationConfig


@dataclass(frozen=True, kw_only=True)
class Suite:
    load: Loader
    template: str | None
    """Text around the question, with {prompt} for it; None: the bare question. Chat models read it as the user's
    message."""
    reward: str | Sequence[RewardRef] = ()
    """The verifier: a reward's name; or rewards that are summed up, of which the first one gives the verdict. With an
    environment, which judges itself, it may be left out; else it is as a run's `reward` beside its `environment`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The verifier's, where it is given by its name."""
    environment: str | Mapping[str, Any] | PluginRef | None = None
    """In which the model acts over several turns, as a run's: a name, or `kind` and options. None: it answers once."""
    conversation: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a run's `conversation`, such as max_turns, that the environment is made for."""
    prompt: str = "prompt"
    """The rows' column of the question."""
    answer: str | None = "answer"
    """The rows' column of the gold; None: they have none."""
    samples: int = 1
    """Responses to each problem, unless asked otherwise."""
    metric: Literal["mean", "pass", "maj"] = "mean"
    """The one the suite is quoted by."""
    count: int | None = None
    """Problems there must be; None: any number."""
    file: str | None = None
    """The user's own data that it was made of; None: it is a plugin."""

    @property
    def rewards(self) -> list[RewardRef]:
        return [RewardRef(kind=self.reward, **self.options)] if isinstance(self.reward, str) else list(self.reward)

    @property
    def acted(self) -> Acted:
        """ValidationError for what cannot be."""
        return Acted.model_validate({"environment": self.environment, "conversation": self.conversation})


@dataclass(frozen=True)
class OpenSuite:
    """A suite with its problems, put to a model, and its verifier at work."""

    name: str
    suite: Suite
    problems: list[Problem]
    rows: int
    """That there are, of which the problems are the first."""
    verifier: Scorer
    bad_golds: list[str]
    """Those that do not verify against themselves, as "row 12: \\emptyset (bad_gold)"."""
    unchecked: str | None
    """Why the golds could not be checked; None: they were."""
    acting: Acting | None
    """In the suite's environment, or in another, whose verdicts do not count; None: the model answers once."""


def find(name: str, options: Mapping[str, Any] | None = None) -> Suite:
    """The suite of that name, with these of its options, and all of its environment's. ConfigError, naming the nearest,
    where there is none, and for one that nothing judges, or whose environment cannot be."""
    found = registry.build("suites", name, dict(options or {}))
    if not isinstance(found, Suite):
        raise ConfigError(f"suite {name!r}: its plugin returned a {type(found).__name__}; it must return a Suite")
    try:
        return _checked(found)
    except ConfigError as error:
        raise ConfigError(f"suite {name!r}: {error}") from error


def _checked(suite: Suite) -> Suite:
    try:
        environment = suite.acted.environment
    except ValidationError as error:
        raise explain(error, Acted) from error
    if suite.options and not isinstance(suite.reward, str):
        raise ConfigError(
            "its options are those of a reward given by its name, and it names none. An environment's stand beside its "
            "kind: environment={'kind': NAME, ...}"
        )
    if environment is None and not suite.rewards:
        raise ConfigError("nothing judges its answers: give it a reward, or an environment")
    if environment is None and suite.conversation:
        raise ConfigError("its conversation is held with no environment: give it one, or leave the settings out")
    if environment is None:
        return suite
    whole = configs.resolve_ref("environments", environment, "environment")
    secrets.check({"environment": whole.model_dump(mode="json")})
    return replace(suite, environment=whole)


def rows(name: str, folder: Path | None = None) -> list[Row]:
    """A suite's rows. ConfigError for a missing file or column, and for another number of problems than it has."""
    return rows_of(name, find(name), folder)


def rows_of(name: str, wanted: Suite, folder: Path | None, limit: int | None = None) -> list[Row]:
    """All there are; of a local copy that has only part of the suite, where its first `limit` are wanted."""
    with Blame(f"suite {name!r}", "its load", wanted.load):
        loaded = list(wanted.load(folder))
    if wanted.count is None or len(loaded) == wanted.count:
        return loaded
    part = folder is not None and 0 < len(loaded) < wanted.count
    if part and limit is not None and limit <= len(loaded):
        return loaded
    raise ConfigError(
        f"suite {name!r} has {wanted.count} problems, but {len(loaded)} were read"
        + (f" from {folder}" if folder else "")
        + ": this is another data set, or part of it, and its figures could not be compared"
        + (f". `rlkit eval --limit {len(loaded)}`, or less, measures on the first of them alone" if part else "")
    )


@contextmanager
def opened(
    name: str,
    tokenizer: Any,
    *,
    wanted: Suite | None = None,
    folder: Path | None = None,
    limit: int | None = None,
    chat: bool | None = None,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    scoring: ScoringConfig | None = None,
    plugins: Sequence[str] = (),
    environment: PluginRef | None = None,
    conversation: ConversationConfig | None = None,
    ends: Sequence[int] = (),
) -> Iterator[OpenSuite]:
    """The suite's problems (its first `limit`) as `tokenizer`'s model reads them, their golds checked by the verifier
    that scores the responses; it is closed at the end of the `with`.

    `wanted`: the suite itself; None: the one that is registered by that name. `chat`: whether prompts go through the
    tokenizer's chat template; None: where it has one. `environment`: in which the model acts where the suite has none;
    its rewards do not count. `conversation`: how it acts, the suite's settings among it; None: as the suite says.
    `ends`: the model's end tokens. Raises ConfigError, for a chat template too that cannot hold the conversations.
    """
    wanted = wanted or find(name)
    loaded = rows_of(name, wanted, folder, limit)
    if chat is None:
        chat = getattr(tokenizer, "chat_template", None) is not None
    put = DataConfig(
        path=name,
        prompt=wanted.prompt,
        answer=wanted.answer,
        template=wanted.template,
        chat=chat,
        system=system,
        chat_template_kwargs=dict(chat_template_kwargs or {}),
        max_prompt_tokens=sys.maxsize,
    )
    source = wanted.file or f"suite {name!r}"
    try:
        held = conversation or wanted.acted.conversation
        acting = acting_of(wanted.acted.environment or environment, held, put, tokenizer, ends)
    except ConfigError as error:
        if wanted.file is not None:
            raise
        raise ConfigError(f"{source}: {error}") from error
    acted_in = acting.declared if acting is not None else None
    problems = as_problems(loaded[:limit], put, tokenizer, source, acted_in).problems
    with ExitStack() as stack:
        bad: list[str] = []
        unchecked: str | None = "the environment judges"
        if wanted.rewards:
            verifier = stack.enter_context(scorer(wanted.rewards, scoring or ScoringConfig(), plugins))
            bad, unchecked = _checked_golds(wanted, problems, verifier)
        if acting is not None and wanted.environment is not None:
            judge = scorer(wanted.rewards, scoring or ScoringConfig(), plugins, acting.declared)
            verifier = stack.enter_context(judge)
        yield OpenSuite(name, wanted, problems, len(loaded), verifier, bad, unchecked, acting)


def _checked_golds(wanted: Suite, problems: Sequence[Problem], verifier: Scorer) -> tuple[list[str], str | None]:
    """The bad golds, and why they could not be checked, or None.

    ConfigError where the user's own data have no gold that the verifier could use: nothing could be right.
    """
    # Data without golds are asked once whether the verifier reads any.
    golds = [(problem.gold, problem.columns) for problem in problems[: 1 if wanted.answer is None else None]]
    try:
        bad = bad_golds(verifier, golds)
    except TokensUnknownError as error:
        return [], str(error)
    if wanted.file is not None and len(bad) == len(golds) and all(each.status == "bad_gold" for each in bad):
        raise ConfigError(_no_gold(wanted, bad[0]))
    return ([], "there are none") if wanted.answer is None else ([str(each) for each in bad], None)


def _no_gold(wanted: Suite, first: BadGold) -> str:
    said = f"reward {wanted.rewards[0].kind!r} needs golds, and {wanted.file} has none"
    if wanted.answer is not None:
        said += f" in its column {wanted.answer!r} that it can use ({first})"
    return f"{said}: give the column of the golds with --answer, or another reward with --reward"


def fingerprint(problems: Sequence[Problem]) -> str:
    """Changes with any prompt, as the model reads it, and any gold."""
    return _digest([[problem.tokens, problem.answer] for problem in problems])


def fingerprint_of_columns(problems: Sequence[Problem]) -> str:
    """Changes with anything in the rows' other columns, which verifiers read too."""
    return _digest([problem.columns for problem in problems])


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, default=str).encode(), digest_size=8).hexdigest()


def of_data(
    path: str,
    *,
    reward: Sequence[RewardRef],
    environment: PluginRef | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    template: str | None = None,
    subset: str | None = None,
    split: str = "test",
) -> tuple[str, Suite]:
    """A suite of the user's own problems, and its name: a file (its stem), or a hub or embedded data set's split.

    `prompt`, `answer`: columns; None: looked for under the usual names; `answer` NO_GOLDS: there are none. Raises
    ConfigError for what cannot be read, is empty or lacks a column.
    """
    rows = reading.read_rows(path, subset, split)
    if not rows:
        raise ConfigError(f"{path} holds no problems: it is empty")
    prompt = prompt or reading.present(rows, reading.PROMPTS, "--prompt", path)
    answer = answer or reading.present(
        rows, reading.ANSWERS, f"--answer ({reading.NO_GOLDS}: the data has no golds)", path
    )
    gold = None if answer == reading.NO_GOLDS else answer
    reading.questions(rows, prompt, "--prompt", path)
    reading.golds(rows, gold, "--answer", path)
    name = Path(path.removeprefix(embedded.PREFIX))
    made = Suite(
        load=lambda _: rows,
        template=template,
        reward=reward,
        environment=environment,
        prompt=prompt,
        answer=gold,
        file=path,
    )
    return name.stem if name.suffix in reading.FILES else name.name, made


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
        raw = reading.read_rows(where) if folder else reading.read_rows(hub, subset, split)
        loaded: list[Row] = []
        for i, row in enumerate(raw, 1):
            here = f"{where}, row {i}"
            name = next((name for name in answers if name in row), answers[0])
            question = reading.column(row, prompt, "the file to one with the suite's columns", here)
            answer = reading.column(row, name, "the file to one with the suite's columns", here)
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
