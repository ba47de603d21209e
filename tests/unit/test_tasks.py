"""The verifiers of made problems take every right answer and no other, and come to an end with any; the problems
themselves can be solved and are split cleanly."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from rlkit import embedded, registry
from rlkit.config import DataConfig
from rlkit.data import load_problems
from rlkit.embedded import countdown, sorting
from rlkit.errors import ConfigError
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey
from rlkit.scoring import score


def judged(reward: str, response: str, answer: str = "", **columns: Any) -> RewardResult:
    sample = Sample(
        key=SampleKey("p", 1, 0, 0), prompt="", response=response, tokens=[], answer=answer, truncated=False,
        columns=columns,
    )  # fmt: skip
    return score(registry.build("rewards", reward, {}), reward, [sample])[0]


def count(response: str, nums: object = (3, 7, 5), target: str = "26") -> RewardResult:
    return judged("countdown", response, target, nums=nums)


def order(response: str, items: object = (52, 7, 38, 7)) -> RewardResult:
    return judged("sorting", response, items=items)


# Countdown


@pytest.mark.parametrize(
    "response",
    [
        "#### 3*7+5",
        "#### (3*7)+5",
        "3*7=21;21+5=26;#### (3 * 7) + 5",
        "#### ((5+(7)*3))",
        "#### 5 + 3 \u00d7 7",
        "#### [3*7]+5 = 26",
        "#### 3+7+5\nNo, wait.\n#### 3*7+5\nThat is it.",
        "We try. <answer> 3*7+5 </answer>",
        "<answer>1</answer> better: <answer>5+7*3</answer>.",
    ],
)
def test_a_right_expression(response: str) -> None:
    assert count(response) == RewardResult(value=1.0, correct=True, info=count(response).info)


def test_numbers_may_be_left_over_and_division_is_exact() -> None:
    assert count("#### 3+7", target="10").value == 1
    assert count("#### 6/(1-3/4)", (1, 3, 4, 6), "24").value == 1
    assert count("#### 7/3*6", (3, 6, 7), "14").value == 1
    assert count("#### 7/3", (3, 6, 7), "2").value == 0
    assert count("#### 5-7", target="-2").value == 1
    assert count("#### 3+3", (3, 3), "6").value == 1


@pytest.mark.parametrize(
    "response",
    [
        "#### 3*7+4",  # a number that is not given
        "#### 7+7+7+5",  # one used more often than it is there
        "#### 3*7*5",  # another value
        "#### 26",
        "#### 3*7+5 = 27",
        "#### 3*7+5 = 26 = 26",
        "#### 3*7+5 or 5",
        "#### (3*7+5",
        "#### 3*7+5)",
        "#### 3*7+",
        "#### *3",
        "#### ()",
        "#### 3(7)5",
        "#### 3 7 5",
        "#### 5--3*7",
        "#### -3+5",
        "#### 3**7",
        "#### 3^7",
        "#### 7//3",
        "#### 3/(7-7)",
        "#### 5/0",
        "#### 37+5",
        "#### 3.0*7+5",
        "#### 3e0*7+5",
        "#### \u0663*7+5",  # an Arabic three
        "#### \u00b3*7+5",
        "#### x",
        "#### __import__('os')._exit(0)",
        "#### =26",
        "#### =",
    ],
)
def test_a_wrong_or_malformed_expression(response: str) -> None:
    result = count(response)
    assert (result.value, result.status, result.correct) == (0.0, "ok", False)


@pytest.mark.parametrize("response", ["", "3*7+5", "####", "####   \n3*7+5\n####", "<answer>3*7+5", "3*7+5</answer>"])
def test_no_expression(response: str) -> None:
    if response.startswith("####   "):
        response = response.strip()
    assert count(response).status == "no_answer"


HOSTILE = {
    "brackets": "(" * 100 + "3" + ")" * 100,
    "many brackets": "(" * 10_000,
    "closing brackets": ")" * 250,
    "power": "9**9**9**9**9",
    "tower": "3^" * 100 + "3",
    "exponent": "1E999999999",
    "long number": "9" * 10_000,
    "long sum": "+".join(["3"] * 5_000),
    "spaces": "3" + " " * 100_000 + "*7+5",
    "signs": "-" * 10_000 + "3",
    "markers": "#### " * 20_000,
    "tags": "<answer>" * 20_000,
    "factorials": "3" + "!" * 200,
    "code": "[x for x in iter(int, 1)]",
    "nothing": "\0" * 200,
    "surrogate": "\ud800" * 10,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["countdown", "sorting"])
def test_hostile_answers_are_wrong_and_end(name: str, kind: str) -> None:
    for response in (f"#### {HOSTILE[name]}", f"<answer>{HOSTILE[name]}</answer>", HOSTILE[name]):
        result = count(response) if kind == "countdown" else order(response)
        assert result.value == 0
        assert len(json.dumps(result.info)) < 5_000
    assert count("#### " + "(" * 21 + "3" + ")" * 21, target="3").status == "refused"
    assert count("#### " + "(" * 20 + "3" + ")" * 20, target="3").value == 1


@pytest.mark.parametrize(
    ("nums", "target"),
    [((), "26"), (None, "26"), ("375", "26"), ((3, "x"), "26"), ((3, 7.5), "26"), ((3, 10**5000), "26"), ((3,), ""),
     ((3,), "x"), ((3,), "2.5"), ((True, 3), "3"), ((3,), "9" * 5000)],
)  # fmt: skip
def test_a_problem_that_cannot_be_is_a_bad_gold(nums: object, target: str) -> None:
    assert count("#### 3", nums, target).status == "bad_gold"
    assert judged("countdown", "#### 3", "3").status == "bad_gold"


def test_columns_and_marker_are_options() -> None:
    sample = Sample(
        key=SampleKey("p", 1, 0, 0), prompt="", response="So: 3+4", tokens=[], answer="7", truncated=False,
        columns={"numbers": ["3", "4"]},
    )  # fmt: skip
    made = registry.build("rewards", "countdown", {"nums": "numbers", "marker": "So:"})
    assert made([sample])[0].value == 1
    assert made.range == (0.0, 1.0)


def test_it_agrees_with_a_tree_walk_on_random_expressions() -> None:
    rng = random.Random()
    seen: Counter[bool] = Counter()
    for _ in range(2000):
        nums = [rng.randint(1, 9) for _ in range(rng.randint(1, 5))]
        text, value = random_expression(rng, nums)
        right = value is not None and value.denominator == 1 and rng.random() < 0.8
        target = int(value) if right and value is not None else rng.randint(1_000_000, 2_000_000)
        rng.shuffle(nums)
        assert count(f"#### {text}", nums, str(target)).value == float(right), (text, nums, target)
        seen[right] += 1
    assert min(seen[True], seen[False]) > 300


def random_expression(rng: random.Random, nums: list[int]) -> tuple[str, Fraction | None]:
    """Text with no more brackets than precedence asks for, and the value; None where it divides by zero."""
    text, value, _ = _tree(rng, nums)
    return text, value


def _tree(rng: random.Random, nums: list[int]) -> tuple[str, Fraction | None, str]:
    if len(nums) == 1:
        return str(nums[0]), Fraction(nums[0]), ""
    cut, operation = rng.randint(1, len(nums) - 1), rng.choice("+-*/")
    (left, a, inner_left), (right, b, inner_right) = _tree(rng, nums[:cut]), _tree(rng, nums[cut:])
    if operation in "*/" and inner_left and inner_left in "+-":
        left = f"({left})"
    if inner_right and (operation == "/" or (operation == "*" and inner_right in "+-/") or operation == "-"):
        right = f"({right})"
    value = None
    if a is not None and b is not None and not (operation == "/" and b == 0):
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operation]
    return f"{left} {operation} {right}", value, operation


# Sorting


@pytest.mark.parametrize(
    "response",
    ["#### 7,7,38,52", "#### 7, 7, 38, 52", "#### [7 7 38 52]", "7,38\n#### 7;7;38;52.", "<answer>7,7,38,52</answer>"],
)
def test_a_right_order(response: str) -> None:
    assert order(response).correct


@pytest.mark.parametrize(
    "response",
    ["#### 52,7,38,7", "#### 7,38,52", "#### 7,7,38,52,52", "#### 38,52,7,7", "#### 7,7,38.0,52", "#### 773852",
     "#### 7,7,38,5 2", "#### 7,7,38,52 or so", "#### 7,,7", "#### ,"],
)  # fmt: skip
def test_a_wrong_order(response: str) -> None:
    result = order(response)
    assert (result.value, result.status, result.correct) == (0.0, "ok", False)


def test_sorting_without_an_answer_or_with_items_that_cannot_be() -> None:
    assert order("7,7,38,52").status == "no_answer"
    for items in ((), None, "7738", (1, "two"), (1.5,)):
        assert order("#### 1", items).status == "bad_gold"
    assert order("#### -100,-5,3", (3, -5, -100)).correct
    many = tuple(range(500, 0, -1))
    assert order(f"#### {','.join(map(str, sorted(many)))}", many).correct


# The problems


@pytest.mark.parametrize("task", [countdown, sorting])
def test_splits_are_disjoint_and_the_same_every_time(task: Any) -> None:
    train, test = task.problems(held_out=False), task.problems(held_out=True)
    assert train == task.problems(held_out=False)
    assert 0.17 < len(test) / (len(train) + len(test)) < 0.23
    for problems in (train, test):
        assert len({p.prompt for p in problems}) == len(problems) > 400
    # Not even in another order of the same numbers.
    names = [
        {(*sorted(Counter(getattr(p, "nums", None) or p.items).items()), p.answer) for p in s} for s in (train, test)
    ]
    assert not names[0] & names[1]


@pytest.mark.parametrize("task", [countdown, sorting])
def test_clean_demonstrations_are_right(task: Any) -> None:
    rng = random.Random(1)
    name = task.__name__.rpartition(".")[2]
    for problem in itertools.chain(task.problems(held_out=False), task.problems(held_out=True)):
        text = task.demonstration(problem, rng, 0, 0)
        assert judged(name, text, problem.answer, **problem.columns).correct, (problem, text)


@pytest.mark.parametrize(("task", "low", "high"), [(countdown, 0.3, 0.7), (sorting, 0.3, 0.7)])
def test_noisy_demonstrations_err(task: Any, low: float, high: float) -> None:
    rng = random.Random(2)
    name = task.__name__.rpartition(".")[2]
    some = rng.choices(task.problems(held_out=False), k=1000)
    right = [judged(name, task.demonstration(p, rng, 0.4, 0.1), p.answer, **p.columns).correct for p in some]
    assert low < sum(map(bool, right)) / len(right) < high


@pytest.mark.parametrize("name", embedded.TASKS)
def test_a_config_reads_them(name: str) -> None:
    from transformers import AutoTokenizer

    model = "xs-turns" if name in embedded.PLAYED else {"arithmetic": "xs"}.get(name, f"xs-{name}")
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve(f"embedded:{model}"))
    config = DataConfig(path=f"embedded:{name}")
    train, test = load_problems(config, tokenizer), load_problems(config, tokenizer, held_out=True)
    assert train is not None
    assert test is not None
    assert not {p.id for p in train.problems} & {p.id for p in test.problems}
    assert not any(tokenizer.unk_token_id in p.tokens for p in train.problems)
    assert set(train.problems[0].columns) == {"countdown": {"nums"}, "sorting": {"items"}}.get(name, set())


def test_an_unknown_task_or_split_is_named() -> None:
    with pytest.raises(ConfigError, match=r"embedded:countdwon.*did you mean 'embedded:countdown'"):
        load_problems(DataConfig(path="embedded:countdwon"), None)
    with pytest.raises(ConfigError, match=r"no split 'tests'.*did you mean 'test'"):
        load_problems(DataConfig(path="embedded:sorting", split="tests"), None)
