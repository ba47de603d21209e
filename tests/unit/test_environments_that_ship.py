"""The environments that ship, and the embedded tasks that are played in them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rlkit
from rlkit import config as configs
from rlkit import embedded, registry
from rlkit.embedded import calculator, guessing, keys
from rlkit.embedded.task import VOCABULARY
from rlkit.errors import ConfigError

TASKS: dict[str, Any] = {"guessing": guessing, "calculator": calculator, "keys": keys}
OPTIONS: dict[str, dict[str, Any]] = {
    name: dict(configs.load(f"embedded_{name}").environment.options)  # type: ignore[union-attr]
    for name in embedded.PLAYED
}


def begun(kind: str, answer: str, seed: int = 0, **options: Any) -> Any:
    environment = registry.build("environments", kind, options)
    assert environment.start(rlkit.Task(question="?", answer=answer), seed) == ""
    return environment


def played(environment: Any, turns: Sequence[str]) -> list[rlkit.Observation]:
    """Up to the end of the game or of the turns."""
    said: list[rlkit.Observation] = []
    for turn in turns:
        if not said or not said[-1].done:
            said.append(environment.step(turn))
    return said


def rewards(said: Sequence[rlkit.Observation]) -> list[float | None]:
    return [observation.reward for observation in said]


# What they answer


def test_guessing_says_on_which_side_the_number_lies() -> None:
    said = played(begun("guessing", "47", guesses=4), ["is it 50?", "1, no: 40", "47"])
    assert [observation.text for observation in said[:2]] == ["lower", "higher"]
    assert rewards(said) == [0.0, 0.0, 0.5]
    assert (said[-1].done, said[-1].correct) == (True, True)
    assert rewards(played(begun("guessing", "-3"), ["-3"])) == [1.0]


def test_guessing_ends_without_a_hit_or_a_number() -> None:
    said = played(begun("guessing", "47", guesses=2, higher="+", lower="-"), ["46", "48", "47"])
    assert (rewards(said), said[0].text, said[-1].done, said[-1].correct) == ([0.0, 0.0], "+", True, False)
    for turn in ("", "higher", "9" * 30):
        assert played(begun("guessing", "47"), [turn])[-1].done


def test_a_calculator_call_costs_and_an_answer_ends() -> None:
    said = played(begun("calculator", "3995"), ["let me see: (1+1) or [47 * 85]", "so #### 3995"])
    assert (said[0].text, rewards(said), said[0].counts) == ("3995", [-0.2, 1.0], {"calls": 1.0})
    assert (said[-1].done, said[-1].correct) == (True, True)
    assert [played(begun("calculator", "1"), [call])[0].text for call in ("(3-5)", "[3+-5]")] == ["-2", "-2"]
    assert rewards(played(begun("calculator", "12"), ["#### 13"])) == [0.0]


@pytest.mark.parametrize("last", ["(1+2", "no idea", "(1/2)", "(2+2)", "#### none"])
def test_the_calculator_ends_with_nothing_for_what_it_cannot_read(last: str) -> None:
    said = played(begun("calculator", "5", calls=1, cost=0.1), ["(2+3)", last])
    assert (rewards(said), said[-1].done, said[-1].correct) == ([-0.1, 0.0], True, False)


def test_the_key_is_told_only_at_the_end() -> None:
    for choice, right in (("9", True), ("4", False), ("", False)):
        environment = begun("keys", "9", work=3, pay=0.5)
        said = [environment.step(choice)]
        while not said[-1].done:
            said.append(environment.step("9"))
        assert len(said) == 4
        assert {observation.reward for observation in said[:-1]} <= {0.0, 0.5}
        assert said[-1].correct is right
        assert said[-1].reward in ((1.0, 1.5) if right else (0.0, 0.5))


def test_work_is_paid_for_in_one_case_of_two_by_luck_that_the_turns_decide() -> None:
    paid = []
    for seed in range(300):
        first = begun("keys", "9", seed, work=1).step("9")
        digit = int(first.text.rstrip(";"))
        assert first.text == begun("keys", "9", seed, work=1).step("2").text
        assert [played(begun("keys", "9", seed, work=1), ["4", str(digit)])[-1].reward] == [0.0]
        paid.append([played(begun("keys", "9", seed, work=1), [key, "9"])[-1].reward for key in ("4", "5")])
    means = [sum(column) / len(column) for column in zip(*paid, strict=True)]
    assert all(abs(mean - 0.25) < 0.06 for mean in means)
    assert 0.4 < sum(a != b for a, b in paid) / len(paid) < 0.6


@pytest.mark.parametrize("kind", embedded.PLAYED)
@settings(max_examples=60)
@given(
    turns=st.lists(st.text(alphabet="0123456789+-*()#[] x", max_size=9), min_size=12, max_size=12),
    answer=st.integers(-99, 99).map(str),
    seed=st.integers(0, 2**63),
)
def test_any_play_stays_in_range_ends_and_comes_again(kind: str, turns: list[str], answer: str, seed: int) -> None:
    environment = begun(kind, answer, seed)
    said = played(environment, turns)
    low, high = environment.range
    assert said[-1].done
    assert low <= sum(observation.reward or 0.0 for observation in said) <= high
    assert said == played(begun(kind, answer, seed), turns)


@pytest.mark.parametrize("kind", embedded.PLAYED)
def test_a_gold_that_is_no_number_is_named(kind: str) -> None:
    with pytest.raises(ValueError, match=r"gold must be a whole number, but is 'a lot': see data\.answer"):
        begun(kind, "a lot")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("guessing", {"guesses": 0}, "guesses must be 1 or more"),
        ("calculator", {"cost": -1.0}, r"calls \(2\) and cost \(-1.0\) must be 0 or more"),
        ("calculator", {"marker": ""}, "marker not empty"),
        ("keys", {"work": 0}, "work must be 1 or more"),
        ("keys", {"key": 2}, "key"),
    ],
)
def test_options_that_cannot_be_are_named(kind: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        registry.build("environments", kind, options)


# The embedded tasks


@pytest.mark.parametrize("name", embedded.PLAYED)
def test_splits_are_disjoint_and_the_same_every_time(name: str) -> None:
    train, test = TASKS[name].problems(held_out=False), TASKS[name].problems(held_out=True)
    assert train == TASKS[name].problems(held_out=False)
    assert 0.17 < len(test) / (len(train) + len(test)) < 0.23
    for problems in (train, test):
        assert len({p.prompt for p in problems}) == len(problems) > 300
    assert not {p.prompt for p in train} & {p.prompt for p in test}


def game(name: str, problem: Any, rng: random.Random, guess: float, step_error: float) -> list[rlkit.Observation]:
    environment = begun(name, problem.answer, rng.getrandbits(32), **OPTIONS[name])
    turns: list[str] = []
    said: list[rlkit.Observation] = []
    while not said or not said[-1].done:
        turns.append(TASKS[name].move(problem, turns, [o.text for o in said], rng, guess, step_error))
        said.append(environment.step(turns[-1]))
        # The small model reads and writes no other characters.
        assert set(turns[-1].replace("#### ", "")) | (set(said[-1].text) if not said[-1].done else set()) <= CHARACTERS
    return said


CHARACTERS = {token for token in VOCABULARY if len(token) == 1}


@pytest.mark.parametrize("name", ["guessing", "calculator"])
def test_clean_play_finds_every_answer(name: str) -> None:
    rng = random.Random(1)
    for problem in (*TASKS[name].problems(held_out=False), *TASKS[name].problems(held_out=True)):
        assert game(name, problem, rng, 0.0, 0.0)[-1].correct, problem


@pytest.mark.parametrize(("name", "high"), [("guessing", 0.7), ("calculator", 0.7), ("keys", 0.3)])
def test_careless_play_mostly_fails(name: str, high: float) -> None:
    rng = random.Random(2)
    some = rng.choices(TASKS[name].problems(held_out=False), k=1000)
    right = [game(name, problem, rng, 0.6, 0.2)[-1].correct for problem in some]
    assert 0.2 < sum(map(bool, right)) / len(right) < high


def test_the_largest_key_is_right_and_all_are_picked_alike() -> None:
    assert keys.Keys((4, 9, 2, 7)).answer == "9"
    rng = random.Random(3)
    first = [keys.move(keys.Keys((4, 9, 2, 7)), [], [], rng, 0.0, 0.0) for _ in range(2000)]
    assert all(abs(first.count(key) / 2000 - 0.25) < 0.05 for key in "4927")


@pytest.mark.parametrize("name", embedded.PLAYED)
def test_the_presets_room_holds_the_longest_game(name: str) -> None:
    config = configs.load(f"embedded_{name}")
    longest = {"guessing": 5 * 4, "calculator": len("(99*99).9801#99801."), "keys": 4 * 4}[name]
    assert longest <= config.sampling.max_tokens
    assert config.conversation.max_turns >= {"guessing": 5, "calculator": 3, "keys": 4}[name]
