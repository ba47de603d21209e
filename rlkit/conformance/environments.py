"""Environments held against their contract: played in processes of their own, as in a run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rlkit.config import ConversationConfig, PluginRef
from rlkit.conformance.findings import Broken, Check, shown
from rlkit.conformance.rewards import HOSTILE, PROBLEMS, TASKS
from rlkit.data import reading
from rlkit.environments.checks import within
from rlkit.environments.pool import Answer, Answered, Environments, Lost
from rlkit.errors import ConfigError, PluginError, RlkitError
from rlkit.evaluation.gold_check import FORMS
from rlkit.golds import gold_cell, gold_text
from rlkit.interfaces.environments import Task
from rlkit.registry import Plugin
from rlkit.wording import duration

TURNS = 8
"""Of a trajectory that does not end before."""
AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Play:
    """A trajectory that is to be: what a model would say, turn by turn."""

    task: Task
    seed: int
    actions: tuple[str, ...]
    unheard: str = ""
    """Of the turn behind these, where it is cut in one."""


def checks(plugin: Plugin, options: dict[str, object], tasks: Sequence[Task] | None) -> Iterator[Check]:
    subject = _Subject(plugin, options, tasks)
    try:
        yield Check("it starts and answers in a process of its own", subject.answers, first=True)
        yield Check("every answer is sound, and the rewards add up within the range that it declares", subject.sound)
        yield Check("the same seed and actions get the same answers again, in any process", subject.repeats)
        yield Check("hostile actions neither raise, nor hang, nor break the contract", subject.hostile)
    finally:
        subject.close()


def read_tasks(path: str) -> list[Task]:
    """What an environment is told of the first rows of the user's data. ConfigError for what cannot be read."""
    rows = reading.read_rows(path)
    if not rows:
        raise ConfigError(f"{path} holds no rows to begin from")
    prompt = reading.present(rows, reading.PROMPTS, "--data to a file with one", path)
    found: list[Task] = []
    for number, row in enumerate(rows[:PROBLEMS], 1):
        answer = next((name for name in reading.ANSWERS if reading.cell(row, name) is not reading.MISSING), None)
        found.append(task_of(row, prompt, answer, f"{path}, row {number}"))
    return found


def task_of(row: reading.Row, prompt: str, answer: str | None, where: str) -> Task:
    """What an environment is told of a row; `answer` None: it has no gold."""
    cell = None if answer is None else reading.cell(row, answer)
    rest = {name: value for name, value in row.items() if name not in (prompt, answer)}
    return Task(question=reading.cell(row, prompt), answer=gold_text(cell, where), gold=gold_cell(cell), columns=rest)


def made_tasks() -> dict[str, list[Task]]:
    """Name of a kind of tasks -> some of it; the last has no gold."""
    found = {
        name: [
            Task(question=problem.prompt, answer=problem.answer, gold=problem.answer, columns=problem.columns)
            for problem in task.problems(held_out=True)[:PROBLEMS]
        ]
        for name, task in TASKS.items()
    }
    return {**found, "a question alone": [Task(question="Begin.")]}


def _plays(tasks: Sequence[Task]) -> list[Play]:
    """Of each task: the gold said again and again, in its forms, then whatever comes into one's mind; and less of that,
    for those that hear where they are cut."""
    found = []
    for number, task in enumerate(tasks):
        chance = random.Random(number)
        words = [*(form.format(task.answer) for form in FORMS), "I do not know.", "", "0", "50", "yes", "a b c"]
        found.append(Play(task, number, (task.answer,) * TURNS))
        found += [
            Play(task, 100 * number + seed, tuple(chance.choice(words) for _ in range(TURNS))) for seed in range(3)
        ]
        cuts = [((), task.answer), (("0",), ""), (("0", "yes"), "a b")]
        found += [Play(task, number, actions, unheard) for actions, unheard in cuts]
    return found


@dataclass
class _Subject:
    plugin: Plugin
    options: dict[str, object]
    given: Sequence[Task] | None
    pool: Environments | None = None

    @cached_property
    def tasks(self) -> Sequence[Task]:
        """Those that it can begin with. Broken where there are none."""
        families = {"yours": self.given} if self.given is not None else made_tasks()
        plays = [Play(task, 0, ()) for family in families.values() for task in family]
        outcomes = iter(self._played(plays))
        begun = {
            name: [task for task in family if isinstance(next(outcomes)[0], Answered)]
            for name, family in families.items()
        }
        best = max(begun.values(), key=len)
        if not best:
            first = self._played([Play(next(iter(families.values()))[0], 0, ())])[0][0]
            whose = "the rows given" if self.given is not None else "sums, countdown, sorting and a question alone"
            raise Broken(
                f"it can begin with none of {whose}: {why(first)}. If it is right with your data, give it some: "
                "--data FILE, or tasks= in Python"
            )
        return best

    @cached_property
    def played(self) -> list[tuple[Play, list[Answer]]]:
        plays = _plays(self.tasks)
        return list(zip(plays, self._played(plays), strict=True))

    def answers(self) -> str:
        seconds = [answer.seconds for _, answers in self.played for answer in answers[1:]]
        ended = sum(
            isinstance(a[-1], Answered) and a[-1].observation.done and len(a) <= len(play.actions) + 1
            for play, a in self.played
        )
        declared = self._environments().warm().range
        known = f"range {declared}" if declared else "it declares no range, which noise that flips needs"
        each = f"{duration(sum(seconds) / len(seconds))} a step; " if seconds else ""
        return f"{len(self.played)} trajectories, of which it ended {ended}; {each}{known}"

    def sound(self) -> None:
        declared = self._environments().warm()
        for play, answers in self.played:
            total = 0.0
            for turn, answer in enumerate(answers):
                if isinstance(answer, Lost):
                    raise Broken(f"{why(answer)}. {_story(play, turn)}")
                total += answer.observation.reward or 0.0
                if declared.cut and turn < len(answers) - 1:
                    continue  # it is not the sum of a whole trajectory
                try:
                    within(total, declared.range, f"environment {self.plugin.name!r}")
                except PluginError as error:
                    raise Broken(f"{error}. A trajectory may be cut after any turn. {_story(play, turn)}") from error

    def repeats(self) -> None:
        plays = [play for play, _ in self.played]
        others = _made(self.plugin, self.options)
        try:
            for again in (self._played(plays), answers_to(others, plays)):
                for (play, first), second in zip(self.played, again, strict=True):
                    for turn, (one, other) in enumerate(zip(first, second, strict=False)):
                        if _said(one) != _said(other):
                            raise Broken(
                                f"it answers {_said(one)}, and {_said(other)} when all is done again: a resumed run "
                                "would be another. Draw from the `seed` of start alone, and look at no clock. "
                                f"{_story(play, turn)}"
                            )
        finally:
            others.close()

    def hostile(self) -> str:
        task = self.tasks[0]
        texts = {name: text.encode(errors="replace").decode() for name, text in HOSTILE.items()}
        outcomes = self._played([Play(task, 0, (text, task.answer), text) for text in texts.values()])
        broken = [(name, a[-1]) for name, a in zip(texts, outcomes, strict=True) if isinstance(a[-1], Lost)]
        if broken:
            said = [f"{name}: {why(answer)}" for name, answer in broken[:3]]
            more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
            raise Broken(
                f"{len(broken)} of {len(texts)} hostile actions break it: {'; '.join(said)}{more}. A model says such "
                "things: answer them with text that it can read"
            )
        return f"{len(texts)} of them"

    def _environments(self) -> Environments:
        if self.pool is None:
            self.pool = _made(self.plugin, self.options)
        return self.pool

    def _played(self, plays: Sequence[Play]) -> list[list[Answer]]:
        return answers_to(self._environments(), plays)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()


def _made(plugin: Plugin, options: dict[str, object]) -> Environments:
    try:
        return Environments(PluginRef(kind=plugin.name, **options), plugin.homes, ConversationConfig(at_once=AT_ONCE))
    except ConfigError as error:
        raise Broken(str(error)) from error


def answers_to(environments: Environments, plays: Sequence[Play]) -> list[list[Answer]]:
    """The answers to each, that of `start` first, and last, where it has not ended, that of `cut` if it has that."""
    found: list[list[Answer]] = [[] for _ in plays]
    waiting = list(enumerate(plays))[::-1]
    under_way = 0
    try:
        cut = environments.warm().cut
        while waiting or under_way:
            while waiting and under_way < AT_ONCE:
                number, play = waiting.pop()
                environments.start(number, play.task, play.seed)
                under_way += 1
            for number, answer in environments.answered(wait=True):
                found[number].append(answer)
                play, turn = plays[number], len(found[number]) - 1
                if isinstance(answer, Lost) or answer.observation.done or turn == len(play.actions) + cut:
                    environments.end(number)
                    under_way -= 1
                elif turn < len(play.actions):
                    environments.step(number, play.actions[turn])
                else:
                    environments.cut(number, play.unheard)
    except RlkitError as error:
        raise Broken(str(error)) from error
    return found


def _said(answer: Answer) -> str:
    """All that must be the same again."""
    if isinstance(answer, Lost):
        return f"nothing ({answer.status})"
    seen = answer.observation
    parts = [shown(seen.text), *(f"{name} {value!r}" for name, value in (("reward", seen.reward), ("done", seen.done)))]
    return ", ".join([*parts, *(f"{name} {value!r}" for name, value in seen.counts.items())])


def why(answer: Answer) -> str:
    """The first line of why it was lost, and the last where that is an exception's."""
    assert isinstance(answer, Lost)
    first, *rest = answer.said.splitlines()
    return f"{first} {rest[-1].strip()}" if first.endswith("raised:") and rest else first


def _story(play: Play, turn: int) -> str:
    actions = ", ".join(shown(action, 40) for action in play.actions[:turn])
    said = f"; it was told {actions}" if actions else ""
    if turn > len(play.actions):
        said += f"; it was cut in {shown(play.unheard, 40)}" if play.unheard else "; it was cut"
    return f"The question: {shown(play.task.question)}, the gold: {shown(play.task.answer)}, seed {play.seed}{said}"
