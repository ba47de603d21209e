"""Rewards held against their contract: called in a worker process as in a run, and here in calls of every make-up."""

from __future__ import annotations

import asyncio
import copy
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from rlkit import distribution, registry
from rlkit.config import ScoringConfig
from rlkit.conformance.findings import Broken, Check, shown
from rlkit.data import reading
from rlkit.embedded import arithmetic, countdown, sorting
from rlkit.errors import ConfigError, RlkitError
from rlkit.evaluation.gold_check import FORMS
from rlkit.golds import gold_cell, gold_text
from rlkit.interfaces.declarations import reward_declaration
from rlkit.interfaces.rewards import RewardFn, RewardResult, Sample, SampleKey
from rlkit.registry import Plugin
from rlkit.scoring import score
from rlkit.scoring.checks import call
from rlkit.scoring.pool import Pool
from rlkit.scoring.worker import Fault, Killed, Outcome, TokensRead
from rlkit.wording import duration

ELSEWHERE = {
    "judge": "it asks a language model over the network, which no check can do for you",
    "reward_model": "it needs a trained model",
}
"""Rewards that ship and are more than a function of the sample."""

_FRAME = re.compile(r'\s*File "(.+)", line (\d+)')
"""Of a traceback."""
PROBLEMS = 4
"""Of each task, in made samples."""
TASKS: dict[str, ModuleType] = {"arithmetic": arithmetic, "countdown": countdown, "sorting": sorting}
"""That ship."""
MILLION = 2**20

HOSTILE = {
    "an empty response": "",
    "blanks alone": " \n\t ",
    "a megabyte of one letter": "a" * MILLION,
    "a megabyte of digits": "9" * MILLION,
    "5,000 digits after the marker": "#### " + "9" * 5000,
    "a number too large for a float": "#### 1e999999",
    "not a number": "#### nan",
    "a megabyte of open brackets": "(" * MILLION,
    "a megabyte of open boxes": r"\boxed{" * (MILLION // 7),
    "a megabyte of markers": "#### " * (MILLION // 5),
    "100,000 open braces in a box": r"\boxed{" + "{" * 100_000,
    "NULs and control codes": "\x00\x01\x1b[2J\x07 #### 1\x00",
    "lone surrogates": "\ud800 #### 1\udfff",
    "right-to-left marks": "\u202e#### 1\u202c\u200f",
    "letters that combine": "#### " + "e\u0301\u0323" * 2000,
    "digits of another script": "#### \u0661\u0662\u00b2",
}


def checks(plugin: Plugin, options: dict[str, Any], samples: Sequence[Sample] | None) -> Iterator[Check]:
    subject = _Subject(plugin, options, samples)
    try:
        yield Check("it scores samples in a worker process", subject.scores, first=True)
        yield Check("one result comes for each sample, however many there are", subject.counts)
        yield Check("every result is sound, and within the range that it declares", subject.sound)
        yield Check("the same sample gets the same reward again, in any process", subject.deterministic)
        yield Check("the others of a call and their order do not count", subject.alone)
        yield Check("samples are left as they are", subject.untouched)
        yield Check("hostile responses neither raise, nor hang, nor leave the range", subject.hostile)
    finally:
        subject.close()


def elsewhere(plugin: Plugin, options: dict[str, Any]) -> str | None:
    """Why a reward cannot be checked here; None: it can."""
    if plugin.distribution.startswith(f"{distribution.NAME} "):
        if plugin.name == "function" and options.get("url"):
            return "it asks a server over the network"
        return ELSEWHERE.get(plugin.name)
    return None


def read_samples(path: str) -> list[Sample]:
    """What a reward is called with on the user's data: rows with a column `response` as they are, others with their
    golds as responses in several forms. At most 40. ConfigError for what cannot be read."""
    rows = reading.read_rows(path)
    if not rows:
        raise ConfigError(f"{path} holds no rows to judge")
    prompt = reading.present(rows, reading.PROMPTS, "--data to a file with one", path)
    found: list[Sample] = []
    for number, row in enumerate(rows[:8], 1):
        answer = next((name for name in reading.ANSWERS if reading.cell(row, name) is not reading.MISSING), None)
        cell = None if answer is None else reading.cell(row, answer)
        gold = gold_text(cell, f"{path}, row {number}")
        responses = [str(row["response"])] if row.get("response") is not None else _responses(gold)
        rest = {name: value for name, value in row.items() if name not in (prompt, answer, "response")}
        for response in responses:
            found.append(
                _sample(f"row {number}", len(found), reading.cell(row, prompt), response, gold, rest, gold_cell(cell))
            )
    return found


def made_samples() -> dict[str, list[Sample]]:
    """Task -> samples of it, right and wrong, in several forms."""
    chance = random.Random(0)
    found: dict[str, list[Sample]] = {}
    for name, task in TASKS.items():
        found[name] = []
        for problem in task.problems(held_out=True)[:PROBLEMS]:
            worked = [task.demonstration(problem, chance, guess, 0.0) for guess in (0.0, 1.0)]
            for response in (*worked, *_responses(problem.answer)):
                at = len(found[name])
                found[name].append(
                    _sample(
                        problem.prompt, at, problem.prompt, response, problem.answer, problem.columns, problem.answer
                    )
                )
    return found


def _responses(gold: str) -> list[str]:
    return [*(form.format(gold) for form in FORMS), FORMS[0].format(gold + "1"), "I do not know."]


def _sample(
    prompt_id: str, index: int, prompt: Any, response: str, answer: str, columns: dict[str, Any], gold: Any
) -> Sample:
    return Sample(
        key=SampleKey(prompt_id, 1, 0, index),
        prompt=str(prompt),
        response=response,
        tokens=_tokens(response),
        answer=answer,
        truncated=False,
        columns=columns,
        question=prompt,
        gold=gold,
    )


def _tokens(response: str) -> list[int]:
    """Bytes stand for tokens, of which a run samples a bounded number; the last is an end token."""
    return [*response.encode("utf-8", "surrogatepass")[:4095], 0]


@dataclass
class _Subject:
    plugin: Plugin
    options: dict[str, Any]
    given: Sequence[Sample] | None
    pool: Pool | None = None

    @cached_property
    def function(self) -> RewardFn:
        made: RewardFn = registry.build("rewards", self.plugin.name, self.options)
        return made

    @cached_property
    def fitting(self) -> tuple[list[Sample], list[Outcome]]:
        """Samples that it can do something with, and what comes of them in a worker process. Broken where there are
        none."""
        families = {"given": list(self.given)} if self.given is not None else made_samples()
        first = next(iter(families.values()))[:1]
        for outcome in self._in_a_worker(first):  # alone: each sample that hangs takes its deadline twice
            if isinstance(outcome, Killed):
                raise Broken(f"{_why(outcome)}. The response: {shown(first[0].response)}")
        outcomes = self._in_a_worker([sample for family in families.values() for sample in family])
        best: tuple[list[Sample], list[Outcome]] = ([], [])
        most = 0
        for family in families.values():
            here, outcomes = outcomes[: len(family)], outcomes[len(family) :]
            if (valued := sum(isinstance(o, RewardResult) and o.value is not None for o in here)) > most:
                best, most = (family, here), valued
            if not best[1]:
                best = ([], here)
        if not most:
            if isinstance(fault := best[1][0], Fault):
                raise Broken(fault.said)
            whose = "the samples given" if self.given is not None else "sums, countdown and sorting"
            raise Broken(
                f"it has a value for none of {whose}: {_why(best[1][0])}. If it is right with your data, give it "
                "samples like those: --data FILE, or samples= in Python. It gets a list of samples, and options by "
                "keyword: `def mine(samples, *, limit=20)`"
            )
        return best

    def scores(self) -> str:
        declared = reward_declaration(self.function, f"reward {self.plugin.name!r}")
        samples, outcomes = self.fitting
        valued = sum(isinstance(outcome, RewardResult) and outcome.value is not None for outcome in outcomes)
        copies = copy.deepcopy(samples)
        start = time.perf_counter()
        self._score(copies)
        each = (time.perf_counter() - start) / len(samples)
        known = f"range {declared.range}" if declared.range else "it declares no range, which noise that flips needs"
        return f"{valued} of {len(samples)} with a value; {duration(each)} a sample; {known}"

    def counts(self) -> None:
        samples = [sample for sample, outcome in zip(*self.fitting, strict=True) if not isinstance(outcome, Fault)]
        for size in range(1, len(samples) + 1):
            try:
                returned = list(self._call(copy.deepcopy(samples[:size])))
            except Exception:
                continue  # what raises costs its samples their value, and is said by the others
            if len(returned) != size:
                raise Broken(
                    f"it returned {len(returned)} results for {size} samples, of which the last response is "
                    f"{shown(samples[size - 1].response)}: return one for each, in order (None for no value)"
                )

    def sound(self) -> None:
        pairs = sorted(zip(*self.fitting, strict=True), key=lambda pair: len(pair[0].response))
        for sample, outcome in pairs:
            if isinstance(outcome, (Fault, Killed, TokensRead)):
                raise Broken(
                    f"{outcome.said}. The response: {shown(sample.response)}, the gold: {shown(sample.answer)}"
                )
            if outcome.status == "error":
                raise Broken(
                    f"{_why(outcome)}. The response: {shown(sample.response)}, the gold: {shown(sample.answer)}"
                )

    def deterministic(self) -> None:
        for sample in self.fitting[0]:
            (outcome,) = self._in_a_worker([sample])
            first, again = (self._score([sample])[0] for _ in range(2))
            if _verdict(first) != _verdict(again):
                raise Broken(
                    f"of the response {shown(sample.response)} it makes {_said(first)}, and asked again "
                    f"{_said(again)}: a resumed run would see other "
                    "rewards. Draw nothing at random, and remember nothing between calls"
                )
            if isinstance(outcome, RewardResult) and _verdict(first) != _verdict(outcome):
                raise Broken(
                    f"of the response {shown(sample.response)} it makes {_said(first)} in one process and "
                    f"{_said(outcome)} in another. hash() of a text differs between processes, and the order of a set"
                )

    def alone(self) -> None:
        samples = self.fitting[0]
        single = [self._score([sample])[0] for sample in samples]
        for size in (2, 3, len(samples)):
            for start in range(0, len(samples) - size + 1):
                for order in (1, -1):
                    some = list(range(start, start + size))[::order]
                    for i, result in zip(some, self._score([samples[i] for i in some]), strict=True):
                        if _verdict(result) != _verdict(single[i]):
                            others = ", ".join(shown(samples[j].response, 40) for j in some if j != i)
                            with_them = f"{others}" if size < 4 else f"{size - 1} others"
                            raise Broken(
                                f"of the response {shown(samples[i].response)} it makes {_said(single[i])} alone, and "
                                f"{_said(result)} in a call with {with_them}: which samples come in one call is "
                                "chance. Judge each sample by itself"
                            )

    def untouched(self) -> None:
        for sample in self.fitting[0]:
            given = copy.deepcopy(sample)
            self._call([given])
            if given != sample:
                raise Broken(
                    f"it changes the sample that it is given, of the response {shown(sample.response)}, which others "
                    "read after it: copy what you change"
                )

    def hostile(self) -> str:
        like = self.fitting[0][0]
        texts = {**HOSTILE, "a good response and then NULs": like.response + "\x00" * 10}
        samples = [
            replace(like, response=text, tokens=_tokens(text), key=replace(like.key, index=i))
            for i, text in enumerate(texts.values())
        ]
        broken = [
            (name, outcome)
            for name, outcome in zip(texts, self._in_a_worker(samples), strict=True)
            if not isinstance(outcome, RewardResult) or outcome.status == "error"
        ]
        if broken:
            said = [f"{name}: {_why(outcome)}" for name, outcome in broken[:3]]
            more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
            raise Broken(
                f"{len(broken)} of {len(texts)} hostile responses break it: {'; '.join(said)}{more}. A model learns to "
                "write such things: give them 0, or status `refused`"
            )
        return f"{len(texts)} of them"

    def _score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Here, in one call on copies; a sample on which the call raises is without a value, as in a worker."""
        try:
            return score(self.function, self.plugin.name, copy.deepcopy(samples))
        except RlkitError as error:
            if len(samples) == 1:
                return [RewardResult(value=None, status="error", info={"error": str(error)})]
            return [self._score([sample])[0] for sample in samples]

    def _call(self, samples: Sequence[Sample]) -> Sequence[object]:
        returned: Any = call(self.function, self.plugin.name, samples, asyncio.run)
        return returned if hasattr(returned, "__len__") else [None] * len(samples)

    def _in_a_worker(self, samples: Sequence[Sample]) -> list[Outcome]:
        if "__main__" in self.plugin.homes:
            return list(self._score(samples))
        if self.pool is None:
            self.pool = Pool([(self.plugin.name, self.options)], self.plugin.homes, ScoringConfig(workers=1))
        for sample in samples:
            self.pool.submit(0, sample)
        try:
            return self.pool.finish()
        except RlkitError as error:
            raise Broken(str(error)) from error

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()


def _verdict(result: RewardResult) -> tuple[object, ...]:
    return result.value, result.status, result.correct


def _said(result: RewardResult) -> str:
    return f"no value ({result.status})" if result.value is None else f"{result.value:g}"


def _why(outcome: Outcome) -> str:
    if isinstance(outcome, RewardResult):
        error = str(outcome.info.get("error", "")).strip().splitlines()
        if not error or outcome.status != "error":
            return f"status {outcome.status}"
        places = [place for line in error if (place := _FRAME.match(line))]
        where = f" ({Path(places[-1][1]).name}:{places[-1][2]})" if places else ""
        return f"it raised {error[-1]}{where}"
    said = outcome.said.splitlines()[0]
    return f"it {said}" if isinstance(outcome, Killed) else said
