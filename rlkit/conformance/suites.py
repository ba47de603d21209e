"""Suites held against their contract: problems that can be put, and golds that their own verifier takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from rlkit.config import ScoringConfig
from rlkit.conformance.environments import AT_ONCE, Play, answers_to, task_of, why
from rlkit.conformance.findings import Broken, Check, LeftOut, shown
from rlkit.data import reading
from rlkit.environments.pool import Environments, Lost
from rlkit.errors import ConfigError, TokensUnknownError
from rlkit.evaluation import suites
from rlkit.evaluation.gold_check import bad_golds
from rlkit.evaluation.verify import scorer
from rlkit.generation.acting import declared
from rlkit.registry import Plugin

BEGUN = 64
"""Problems of a suite that its environment is begun with."""


def checks(plugin: Plugin, options: Mapping[str, Any], folder: Path | None) -> Iterator[Check]:
    subject = _Subject(plugin, options, folder)
    yield Check("it says what it is made of", subject.declares, first=True)
    yield Check("its problems can be read", subject.reads, first=True)
    acts = subject.suite.environment is not None
    has = "the columns that it names" if acts else "a question and a gold"
    yield Check(f"every problem has {has}", subject.problems)
    if subject.suite.rewards:
        yield Check("its verifier takes its own golds", subject.golds)
    if acts:
        yield Check("its environment begins with its problems", subject.begins)


class _Subject:
    def __init__(self, plugin: Plugin, options: Mapping[str, Any], folder: Path | None) -> None:
        self.plugin, self.options, self.folder = plugin, options, folder

    @cached_property
    def suite(self) -> suites.Suite:
        return suites.find(self.plugin.name, self.options)

    @cached_property
    def rows(self) -> list[suites.Row]:
        try:
            return suites.rows_of(self.plugin.name, self.suite, self.folder)
        except ConfigError as error:
            said = str(error).splitlines()[0]
            raise LeftOut(f"{said}. Local copies are given as a folder: --data FOLDER") from error

    def declares(self) -> str:
        suite = self.suite
        if suite.template is not None and "{prompt}" not in suite.template:
            raise Broken(f"its template {shown(suite.template)} has no {{prompt}}, where the question goes")
        ref = suite.acted.environment
        with scorer(suite.rewards, ScoringConfig(), self.plugin.homes, declared(ref)):
            judges = [*(reward.kind for reward in suite.rewards), *([ref.kind] if ref is not None else [])]
            return f"verified by {', '.join(judges)}"

    def reads(self) -> str:
        if not self.rows:
            raise Broken("it has no problems")
        return f"{len(self.rows)} problems"

    def problems(self) -> None:
        prompt, answer = self.suite.prompt, self.suite.answer
        for number, row in enumerate(self.rows, 1):
            for name in [prompt, *([answer] if answer else [])]:
                # An environment may ask the question itself.
                empty: tuple[Any, ...] = () if name == prompt and self.suite.environment is not None else (None, "", [])
                if reading.cell(row, name) in (*empty, reading.MISSING):
                    raise Broken(
                        f"problem {number} has nothing in its column {name!r}; it has {', '.join(map(str, row))}"
                    )

    def golds(self) -> None:
        if self.suite.answer is None:
            raise LeftOut("its problems have no golds")
        golds = [
            (reading.cell(row, self.suite.answer), {k: v for k, v in row.items() if k != self.suite.answer})
            for row in self.rows
        ]
        with scorer(self.suite.rewards, ScoringConfig(), self.plugin.homes) as verifier:
            try:
                bad = bad_golds(verifier, golds)
            except TokensUnknownError as error:
                raise LeftOut(str(error)) from error
        if bad:
            raise Broken(
                f"its verifier takes {len(bad)} of {len(golds)} golds for wrong, whatever form they are given in: "
                f"{'; '.join(map(str, bad[:3]))}. No response to these can be right"
            )

    def begins(self) -> str:
        ref, conversation = self.suite.acted.environment, self.suite.acted.conversation
        assert ref is not None
        plays = [
            Play(task_of(row, self.suite.prompt, self.suite.answer, f"problem {number}"), 0, ())
            for number, row in enumerate(self.rows[:BEGUN], 1)
        ]
        with Environments(ref, self.plugin.homes, conversation.model_copy(update={"at_once": AT_ONCE})) as environments:
            for number, (answer, *_) in enumerate(answers_to(environments, plays), 1):
                if isinstance(answer, Lost):
                    raise Broken(f"it does not begin with problem {number}: {why(answer)}")
        return f"{len(plays)} of them"
