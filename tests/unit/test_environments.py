"""Environments: what they answer is sound plain data, or named; each trajectory has a process and a seed of its own.

What hangs, dies or floods is in promises/test_a_hung_environment_costs_one_sample.py.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkit import Observation, environment
from rlkit.config import ConversationConfig, PluginRef
from rlkit.environments.checks import observed, within
from rlkit.environments.pool import Answered, Environments, Lost
from rlkit.errors import ConfigError, PluginError, RlkitError
from rlkit.interfaces.declarations import environment_declaration
from rlkit.interfaces.environments import Task


class Level(enum.IntEnum):
    HIGH = 3


class Word(str):
    """Text of a class that the trainer need not know."""


@dataclass
class Place:
    x: int
    name: str


@pytest.mark.parametrize(
    ("returned", "same"),
    [
        ("higher", Observation(text="higher")),
        ("", Observation()),
        (Word("higher"), Observation(text="higher")),
        (Observation(reward=1), Observation(reward=1.0)),
        (Observation(reward=np.float32(0.5)), Observation(reward=0.5)),
        (Observation(reward=torch.tensor(-2.0)), Observation(reward=-2.0)),
        (Observation(reward=Fraction(1, 4)), Observation(reward=0.25)),  # type: ignore[arg-type]
        (Observation(done=np.bool_(True), correct=np.bool_(False)), Observation(done=True, correct=False)),
        (Observation(counts={"calls": True, "cost": np.int64(2)}), Observation(counts={"calls": 1.0, "cost": 2.0})),
        (
            Observation(text=({"role": "tool", "content": "5", "name": "add"},)),
            Observation(text=[{"role": "tool", "content": "5", "name": "add"}]),
        ),
        (
            Observation(info={"grid": np.eye(2), "at": Place(1, "door"), "level": Level.HIGH, "path": (1, None)}),
            Observation(info={"grid": [[1, 0], [0, 1]], "at": {"x": 1, "name": "door"}, "level": 3, "path": [1, None]}),
        ),
    ],
)
def test_sound_answers_become_plain_data(returned: Any, same: Observation) -> None:
    found = observed(returned, "it")
    assert found == same
    assert type(found.text) in (str, list)
    assert found.reward is None or type(found.reward) is float
    assert all(type(count) is float for count in found.counts.values())
    assert type(found.info.get("level", 3)) is int


ITSELF: list[Any] = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, r"returned None; it must return text or an rlkit\.Observation: does it end with `return \.\.\.`\?"),
        (1.0, r"returned float \(1\.0\); it must return text or an rlkit\.Observation$"),
        (("higher", 1.0, False), r"returned tuple"),
        (b"higher", r"returned bytes"),
        (Observation(text=None), r"its text is None \(NoneType\); it must be text, or a list of chat messages"),  # type: ignore[arg-type]
        (Observation(text=5), r"its text is 5 \(int\)"),  # type: ignore[arg-type]
        (Observation(text=["higher"]), r"its text holds higher \(str\), which is no chat message; each is a dict"),  # type: ignore[list-item]
        (Observation(text=[{"role": "user"}]), r"which is no chat message"),
        (Observation(text=[{"role": "user", "content": 5}]), r"which is no chat message"),
        (Observation(text="a\ud800b"), r"holds half a character \('\\ud800'\), which no model can read"),
        (Observation(text=[{"role": "user", "content": "\udfff"}]), r"holds half a character"),
        (Observation(reward=float("nan")), r"its reward is nan \(float\); it must be a finite number, or None"),
        (Observation(reward=float("-inf")), r"its reward is -inf \(float\)"),
        (Observation(reward=10**400), r"its reward is 1000"),
        (Observation(reward=True), r"its reward is True \(bool\)"),
        (Observation(reward="1"), r"its reward is 1 \(str\)"),  # type: ignore[arg-type]
        (Observation(reward=np.ones(2)), r"its reward is \[1\.0, 1\.0\] \(list\)"),  # type: ignore[arg-type]
        (Observation(done=1), r"done is 1 \(int\); it must be True or False"),  # type: ignore[arg-type]
        (Observation(done=None), r"done is None"),  # type: ignore[arg-type]
        (Observation(correct="yes"), r"correct is yes \(str\); it must be True, False, or None"),  # type: ignore[arg-type]
        (Observation(counts=[1]), r"counts are \[1\] \(list\); they must be a dict"),  # type: ignore[arg-type]
        (Observation(counts={1: 1}), r"counts hold the name 1 \(int\); names must be text"),  # type: ignore[dict-item]
        (
            Observation(counts={"turns": 1}),
            r"counts hold 'turns', which rlkit counts itself and logs as environment/turns",
        ),
        (Observation(counts={"calls": "2"}), r"count 'calls' is 2 \(str\); counts must be finite numbers"),  # type: ignore[dict-item]
        (Observation(counts={"calls": float("inf")}), r"count 'calls' is inf"),
        (Observation(info={"f": print}), r"info holds <built-in function print> .*which is no plain data; keep text"),
        (Observation(info={"s": {1}}), r"info holds \{1\} \(set\)"),
        (Observation(info={"a": {1: 2}}), r"info holds the key 1 \(int\); keys must be text"),
        (Observation(info=[]), r"info is \[\] \(list\); it must be a dict"),  # type: ignore[arg-type]
        (Observation(info={"l": ITSELF}), r"info holds itself, or is nested too deep"),
        (Observation(text="x" * 2**20), r"an answer of 1,0\d\d,\d\d\d bytes, of which 1,048,576 are allowed; cut its"),
    ],
)
def test_what_is_no_answer_is_named(returned: Any, said: str) -> None:
    with pytest.raises(PluginError, match=r"^environment 'mine': step.*? " + said):
        observed(returned, "environment 'mine': step")


def test_the_sum_of_rewards_is_held_against_the_range() -> None:
    for total in (0.0, 1.0, sum([0.1] * 10), -1e-9):
        within(total, (0.0, 1.0), "it")
    within(5.0, None, "it")
    with pytest.raises(PluginError, match=r"it: its rewards add up to 1\.5, outside the range \(0\.0, 1\.0\)"):
        within(1.5, (0.0, 1.0), "it")


class Bare:
    def start(self, task: Task, seed: int) -> str:
        return ""

    def step(self, action: str) -> str:
        return ""


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("range", 1.0, r"range is 1\.0 \(float\), but must be two finite numbers"),
        ("ranges", (0.0, 1.0), r"its attribute 'ranges' is nearly the declaration 'range'"),
        ("tools", {"name": "add"}, r"tools is .*, but must be a list of JSON schemas, each a dict"),
        ("tools", [{"f": print}], r"tools is .*, but must be JSON"),
        ("tool", [], r"its attribute 'tool' is nearly the declaration 'tools'"),
        ("cut", True, r"cut is True \(bool\), but must be a method, cut\(self, unheard\)"),
        ("cuts", lambda unheard: "", r"its attribute 'cuts' is nearly the declaration 'cut'"),
    ],
)
def test_declarations_that_cannot_be(attribute: str, value: Any, said: str) -> None:
    bare = Bare()
    setattr(bare, attribute, value)
    with pytest.raises(ConfigError, match=r"^environment 'bare', .*Bare.*: " + said):
        environment_declaration(bare, "environment 'bare'")


PLUGIN = """
import asyncio, os, random, sys, threading
import numpy
import rlkit
from rlkit import Observation

MADE = os.getpid()


@rlkit.environment("told")
class Told:
    range = (0.0, 2.0)
    tools = ({"name": "add"},)

    def __init__(self, *, word: str = "", heavy: bool = False):
        self.word = word
        self.memory = []

    def start(self, task, seed):
        self.memory.append(task.answer)
        self.chance = random.Random(seed)
        return Observation(
            text=f"{self.word}{task.question}",
            info={
                "answer": task.answer, "gold": task.gold, "columns": dict(task.columns), "seed": seed,
                "made": MADE, "pid": os.getpid(), "main": threading.current_thread() is threading.main_thread(),
                "heavy": sorted({"torch", "transformers"} & set(sys.modules)), "stdin": sys.stdin.read(),
            },
        )

    async def step(self, action):
        await asyncio.sleep(0)
        self.memory.append(action)
        print("seen", action, "MY_API_KEY=abcdefghijklm")
        match action:
            case "end":
                return Observation(reward=1.0, done=True, correct=True)
            case "too much":
                return Observation(reward=3.0, done=True)
            case "sleep":
                await asyncio.sleep(600)
            case "nan":
                return Observation(reward=float("nan"))
            case "unlike":
                return Observation(info={"set": {1}})
            case "dice":
                drawn = [self.chance.random(), random.random(), float(numpy.random.random()), hash("text")]
                return Observation(info={"drawn": drawn})
        return "|".join(self.memory)

    async def cut(self, unheard):
        if unheard == "too much":
            return Observation(reward=3.0)
        found = await self.step(unheard)
        return found if unheard else f"{found}."


@rlkit.environment("unmade")
def unmade():
    raise ValueError("no board here")

"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("environments") / "told.py"
    file.write_text(PLUGIN)
    return str(file)


def made(plugin: str, kind: str = "told", **options: Any) -> Environments:
    return Environments(PluginRef(kind=kind, **options), [plugin], ConversationConfig(timeout_s=60))


@pytest.fixture(scope="module")
def environments(plugin: str) -> Iterator[Environments]:
    with made(plugin, word="So: ") as environments:
        yield environments


def next_of(environments: Environments, number: int) -> Observation:
    ((answered, answer),) = environments.answered(wait=True)
    assert answered == number
    assert isinstance(answer, Answered), answer
    assert answer.seconds > 0
    return answer.observation


def test_it_is_told_of_the_row_in_a_process_of_its_own(environments: Environments) -> None:
    task = Task(question="Guess", answer="47", gold=47, columns={"level": [2]})
    found = {}
    for number in (7, 3):
        environments.start(number, task, seed=2**62 + number)
        found[number] = next_of(environments, number)
    for number, told in found.items():
        assert told.text == "So: Guess"
        info = told.info
        assert (info["answer"], info["gold"], info["columns"]) == ("47", 47, {"level": [2]})
        assert info["seed"] == 2**62 + number
        assert (info["main"], info["heavy"], info["stdin"]) == (True, [], "")
    assert found[7].info["made"] == found[3].info["made"]
    assert len({found[7].info["pid"], found[3].info["pid"], found[3].info["made"]}) == 3
    # What the one remembers the other does not know.
    environments.step(3, "a")
    assert next_of(environments, 3).text == "47|a"
    environments.step(7, "b")
    assert next_of(environments, 7).text == "47|b"
    environments.step(7, "end")
    assert next_of(environments, 7) == Observation(reward=1.0, done=True, correct=True)
    for number in (7, 3):
        environments.end(number)


def test_what_it_declares(environments: Environments) -> None:
    declared = environments.warm()
    assert (declared.range, declared.tools, declared.cut) == ((0.0, 2.0), [{"name": "add"}], True)
    bare = Bare()
    assert not environment_declaration(bare, "bare").cut
    bare.cut = None  # type: ignore[attr-defined]
    assert not environment_declaration(bare, "bare").cut


def test_it_is_told_of_a_cut_by_a_method_of_its_own(environments: Environments) -> None:
    environments.start(0, Task(), 0)
    next_of(environments, 0)
    environments.step(0, "a")
    next_of(environments, 0)
    environments.cut(0, "b")
    assert next_of(environments, 0).text == "|a|b"
    environments.end(0)
    environments.start(0, Task(), 0)
    next_of(environments, 0)
    environments.cut(0, "")
    assert next_of(environments, 0).text == "|."
    environments.end(0)


def test_the_same_seed_draws_the_same(plugin: str, environments: Environments) -> None:
    def drawn(of: Environments, seed: int) -> list[float]:
        of.start(0, Task(), seed)
        next_of(of, 0)
        of.step(0, "dice")
        found: list[float] = next_of(of, 0).info["drawn"]
        of.end(0)
        return found

    first = drawn(environments, 5)
    assert drawn(environments, 5) == first
    assert set(drawn(environments, 6)).isdisjoint(first[:3])
    with made(plugin) as others:  # as after a resume
        assert drawn(others, 5) == first


@pytest.mark.parametrize("method", ["step", "cut"])
@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("nan", "its reward is nan (float); it must be a finite number"),
        ("unlike", "info holds {1} (set), which is no plain data"),
        ("too much", "its rewards add up to 3, outside the range (0.0, 2.0)"),
    ],
)
def test_a_broken_contract_is_said_to_be_that(environments: Environments, method: str, action: str, said: str) -> None:
    environments.start(0, Task(), 0)
    next_of(environments, 0)
    getattr(environments, method)(0, action)
    ((number, answer),) = environments.answered(wait=True)
    assert number == 0
    assert isinstance(answer, Lost)
    assert (answer.status, answer.broken) == ("error", True)
    assert answer.said.startswith(f"environment 'told': {method}: {said}")


def test_waiting_for_nothing_is_refused(environments: Environments) -> None:
    assert environments.answered(wait=False) == []
    with pytest.raises(RlkitError, match="no environment owes an answer"):
        environments.answered(wait=True)
    environments.start(0, Task(), 0)
    environments.end(0)  # so there is none any more, whether it has come or not
    with pytest.raises(RlkitError, match="no environment owes an answer"):
        environments.answered(wait=True)


def test_one_that_waits_is_told_when_the_last_is_ended(environments: Environments) -> None:
    environments.start(0, Task(), 0)
    next_of(environments, 0)
    environments.step(0, "sleep")
    said: list[str] = []

    def wait() -> None:
        try:
            environments.answered(wait=True)
        except RlkitError as error:
            said.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    environments.end(0)
    thread.join(60)
    assert said == ["no environment owes an answer, so waiting for one would never end"]


def test_questions_out_of_turn_are_refused(environments: Environments) -> None:
    with pytest.raises(ValueError, match="trajectory 4 is not under way"):
        environments.step(4, "x")
    with pytest.raises(ValueError, match="trajectory 4 is not under way"):
        environments.cut(4, "x")
    environments.start(4, Task(), 0)
    with pytest.raises(ValueError, match="trajectory 4 is under way"):
        environments.start(4, Task(), 0)
    with pytest.raises(ValueError, match="trajectory 4 has not been fetched"):
        environments.step(4, "x")
    next_of(environments, 4)
    environments.end(4)


def test_what_they_print_is_in_the_log_without_secrets(plugin: str, tmp_path: Path) -> None:
    log = tmp_path / "environments.log"
    log.write_text("from before\n")
    with made(plugin) as environments:
        environments.log = log
        for number in range(3):
            environments.start(number, Task(), 0)
            next_of(environments, number)
            environments.step(number, f"word {number}")
            next_of(environments, number)
        for number in range(3):
            environments.end(number)
        environments.start(0, Task(), 0)
        next_of(environments, 0)
    text = log.read_text()
    assert text.startswith("from before\n")
    assert all(f"seen word {number} MY_API_KEY=***" in text for number in range(3))
    assert "abcdefgh" not in text


def test_one_that_cannot_be_made(plugin: str) -> None:
    with made(plugin, "unmade") as environments:
        environments.start(0, Task(), 0)
        said = r"(?s)environment 'unmade' cannot be made in a process of its own:\n.*ValueError: no board here"
        for _ in range(2):
            with pytest.raises(PluginError, match=said):
                environments.answered(wait=True)
        with pytest.raises(PluginError, match=said):
            environments.warm()
    with pytest.raises(RlkitError, match="cannot be made"):
        environments.start(1, Task(), 0)


def test_mistakes_are_found_at_once(plugin: str) -> None:
    with pytest.raises(ConfigError, match="unknown environment 'tolld'; did you mean 'told'"):
        made(plugin, "tolld")
    with pytest.raises(ConfigError, match="unknown key 'wrod'"):
        made(plugin, wrod="x")
    with pytest.raises(ConfigError, match=r"nowhere\.py' does not exist"):
        made("nowhere.py")
    with pytest.raises(
        ConfigError, match=r"conversation\.at_once: 1,000,000,000 trajectories .* \(ulimit -Hn\): set it"
    ):
        Environments(PluginRef(kind="told"), [plugin], ConversationConfig(at_once=10**9))


def test_one_that_is_defined_in_main_is_refused() -> None:
    class Mine(Bare):
        pass

    Mine.__module__ = "__main__"
    environment("environments_of_main")(Mine)
    with pytest.raises(ConfigError, match=r"'environments_of_main' is defined in __main__.*move it to a file and name"):
        Environments(PluginRef(kind="environments_of_main"), [], ConversationConfig())


def test_closing_twice_is_harmless(plugin: str) -> None:
    environments = made(plugin)
    environments.close()
    environments.close()
    with pytest.raises(RlkitError, match="the environments are closed"):
        environments.start(0, Task(), 0)
    environments = made(plugin)
    environments.start(0, Task(), 0)
    environments.close()
    environments.close()
    environments.end(0)
