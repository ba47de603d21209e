"""The rewards that ship: what counts as right, and what is neither right nor wrong."""

from __future__ import annotations

import dataclasses
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rlkit import registry
from rlkit.errors import ConfigError
from rlkit.evaluation import datacheck
from rlkit.golds import gold_cell, gold_text
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def sample(response: str, answer: str) -> Sample:
    return Sample(key=SampleKey("p", 0, 0, 0), prompt="", response=response, tokens=[], answer=answer, truncated=False)


def verdict(name: str, response: str, answer: str, **options: Any) -> RewardResult:
    (result,) = registry.build("rewards", name, options)([sample(response, answer)])
    assert isinstance(result, RewardResult)
    return result


def shared(name: str) -> list[dict[str, Any]]:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("response", "gold", "value", "status"),
    [
        ("7+5+0=12;#### 132", "132", 1, "ok"),
        ("#### 132", "work\n#### 132", 1, "ok"),
        ("#### 1,234,567.", "1234567", 1, "ok"),
        ("#### $ 5.00", "5", 1, "ok"),
        ("#### .5", "1/2", 1, "ok"),
        ("#### 6/8", "3/4", 1, "ok"),
        ("#### 5 #### 6", "6", 1, "ok"),
        ("#### 5 #### 6", "5", 0, "ok"),
        ("#### 12\nQuestion: and now?", "12", 1, "ok"),
        ("####\n12", "12", 1, "ok"),
        ("#### two  words", "two words", 1, "ok"),
        ("#### 0.30000000000000004", "0.3", 0, "ok"),
        ("#### 12 apples", "12", 0, "ok"),
        ("#### -12", "12", 0, "ok"),
        ("#### 1,2", "12", 0, "ok"),
        ("#### 1/0", "1", 0, "ok"),
        ("#### 1e999999999", "1", 0, "ok"),
        ("#### " + "9" * 100_000, "1", 0, "ok"),
        ("132", "132", 0, "no_answer"),
        ("####  ", "132", 0, "no_answer"),
        ("", "132", 0, "no_answer"),
        ("#### 5", "", None, "bad_gold"),
        ("#### 5", "work ####", None, "bad_gold"),
    ],
)
def test_final_answer(response: str, gold: str, value: float | None, status: str) -> None:
    result = verdict("final_answer", response, gold)
    assert (result.value, result.status) == (value, status)


def test_final_answer_takes_another_marker() -> None:
    assert verdict("final_answer", "so Answer: 5", "5", marker="Answer:").value == 1


def test_every_gsm8k_gold_verifies_against_itself_and_not_against_another() -> None:
    golds = [row["answer"] for row in shared("gsm8k_train.jsonl")]
    final_answer = registry.build("rewards", "final_answer", {})
    assert {r.value for r in final_answer([sample(gold, gold) for gold in golds])} == {1.0}
    rng = random.Random(0)
    for gold in rng.sample(golds, 300):
        work, _, text = gold.rpartition("#### ")
        number = int(text.replace(",", ""))
        assert verdict("final_answer", f"{work}#### {number + rng.choice([-1, 1])}", gold).value == 0
        assert verdict("final_answer", f"#### ${number:,}.0", gold).value == 1


def outcome(name: str, response: str, answer: str, **options: Any) -> tuple[float | None, str]:
    result = verdict(name, response, answer, **options)
    return result.value, result.status


RIGHT, WRONG, NO_ANSWER, BAD_GOLD = (1.0, "ok"), (0.0, "ok"), (0.0, "no_answer"), (None, "bad_gold")


@pytest.mark.parametrize(
    ("response", "gold", "options", "expected"),
    [
        (" yes\n", "yes", {}, RIGHT),
        ("Yes", "yes", {}, WRONG),
        ("Yes", "yes", {"ignore_case": True}, RIGHT),
        (" ", "yes", {}, NO_ANSWER),
        ("yes", " ", {}, BAD_GOLD),
    ],
)
def test_exact(response: str, gold: str, options: dict[str, Any], expected: tuple[float | None, str]) -> None:
    assert outcome("exact", response, gold, **options) == expected


@pytest.mark.parametrize(
    ("response", "gold", "options", "expected"),
    [
        (r"so \boxed{0.5}", "1/2", {}, RIGHT),
        (r"\boxed{x = 5 \text{ cm}}", "5", {}, RIGHT),
        ("The answer is 3.14.", "3.1416", {"tolerance": 0.01}, RIGHT),
        ("The answer is 3.14.", "3.1416", {}, WRONG),
        ("The answer is 990.", "1000", {"relative": 0.01}, RIGHT),
        ("The answer is 989.", "1000", {"relative": 0.01}, WRONG),
        ("The answer is 0.3.", "0.30000000000000004", {}, WRONG),
        ("12 or 13", "13", {"answer_in": "last_number"}, RIGHT),
        (r"\boxed{x}", "5", {}, NO_ANSWER),
        ("I cannot tell you that.", "5", {}, NO_ANSWER),
        (r"\boxed{5}", "five", {}, BAD_GOLD),
        (r"\boxed{5}", "", {}, BAD_GOLD),
        (r"\boxed{9^{9^{9}}}", "5", {}, NO_ANSWER),
    ],
)
def test_numeric(response: str, gold: str, options: dict[str, Any], expected: tuple[float | None, str]) -> None:
    assert outcome("numeric", response, gold, **options) == expected


@pytest.mark.parametrize(
    ("response", "gold", "pattern", "expected"),
    [
        ("a 4 and a 5", "5", r"a (\d)", RIGHT),
        ("a 5 and a 4", "5", r"a (\d)", WRONG),
        ("a five", "5", r"a (\d)", NO_ANSWER),
        ("a 5", "", r"a (\d)", BAD_GOLD),
        ("so be it", "", "be", RIGHT),
        ("so be it", "", "^be", WRONG),
    ],
)
def test_regex(response: str, gold: str, pattern: str, expected: tuple[float | None, str]) -> None:
    assert outcome("regex", response, gold, pattern=pattern) == expected


def test_regex_names_a_pattern_that_is_none() -> None:
    with pytest.raises(ConfigError, match="no regular expression"):
        verdict("regex", "a", "b", pattern="(")


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        ("The answer is (B).", "B", RIGHT),
        (r"\boxed{\text{(B) } 5}", "b", RIGHT),
        ("Answer: **B**", "(B)", RIGHT),
        ("<think>A?</think><answer>B. Paris</answer>", "B", RIGHT),
        ("B", "B) Paris", RIGHT),
        ("The answer is C.", "B", WRONG),
        (r"\boxed{F}", "B", NO_ANSWER),
        ("I do not know which one.", "B", NO_ANSWER),
        ("B", "Paris", BAD_GOLD),
        ("B", "", BAD_GOLD),
    ],
)
def test_choice(response: str, gold: str, expected: tuple[float | None, str]) -> None:
    assert outcome("choice", response, gold) == expected


def test_choice_knows_other_letters() -> None:
    assert outcome("choice", r"\boxed{J}", "J", letters="ABCDEFGHIJ") == RIGHT


@pytest.mark.parametrize(
    ("response", "gold", "options", "expected"),
    [
        ("It is in  New\nYork.", "new york", {}, RIGHT),
        ("It is in New York.", "new york", {"ignore_case": False}, WRONG),
        ("155", "15", {}, WRONG),
        ("it costs $5 (five)", "$5", {}, RIGHT),
        (" ", "15", {}, NO_ANSWER),
        ("15", "", {}, BAD_GOLD),
    ],
)
def test_contains(response: str, gold: str, options: dict[str, Any], expected: tuple[float | None, str]) -> None:
    assert outcome("contains", response, gold, **options) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>a</think><answer>5</answer>", RIGHT),
        (" <think>\na\n</think>\n\n<answer> 5 </answer>\n", RIGHT),
        ("<think>a</think>5", WRONG),
        ("<think>a</think><answer> </answer>", WRONG),
        ("<answer>5</answer><think>a</think>", WRONG),
        ("well <think>a</think><answer>5</answer>", WRONG),
        ("<think>a</think><answer>5</answer> hm", WRONG),
        ("<think>a</think> hm <answer>5</answer>", WRONG),
        ("<think>a</think><think>b</think><answer>5</answer>", WRONG),
        ("<think>a<answer>5</answer>", WRONG),
        ("", NO_ANSWER),
    ],
)
def test_format(response: str, expected: tuple[float | None, str]) -> None:
    assert outcome("format", response, "") == expected


def test_format_knows_an_opened_prompt_and_other_tags() -> None:
    format_reward = registry.build("rewards", "format", {})
    opened = dataclasses.replace(sample("a</think><answer>5</answer>", ""), prompt="Q: 2+3?\n<think>\n")
    assert format_reward([opened])[0].value == 1
    untagged = registry.build("rewards", "format", {"thinking": "r", "answer": ""})
    assert [r.value for r in untagged([sample("<r>a</r> 5", ""), sample("<r>a</r> ", "")])] == [1, 0]


@pytest.mark.parametrize(("tokens", "value"), [(0, 0.0), (80, 0.0), (90, -0.5), (100, -1.0), (500, -1.0)])
def test_length_is_the_soft_overlong_penalty(tokens: int, value: float) -> None:
    length = registry.build("rewards", "length", {"max_tokens": 100, "buffer": 20})
    assert length([dataclasses.replace(sample("", ""), tokens=[1] * tokens)]) == [pytest.approx(value)]
    assert length.range == (-1.0, 0.0)


def test_length_refuses_a_buffer_that_does_not_fit() -> None:
    for buffer in (0, 101):
        with pytest.raises(ConfigError, match="buffer"):
            registry.build("rewards", "length", {"max_tokens": 100, "buffer": buffer})


SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ('{"age": 5}', RIGHT),
        ('Here it is:\n```json\n{"age": 5}\n```\nDone.', RIGHT),
        ('{"age": "5"}', WRONG),
        ("{}", WRONG),
        ("age: 5", NO_ANSWER),
        ("[" * 100_000, NO_ANSWER),
    ],
)
def test_json_schema(response: str, expected: tuple[float | None, str]) -> None:
    assert outcome("json_schema", response, "", definition=SCHEMA) == expected


def test_json_schema_reads_a_column() -> None:
    judge = registry.build("rewards", "json_schema", {"column": "schema"})
    row = dataclasses.replace(sample('{"age": 5}', ""), columns={"schema": json.dumps(SCHEMA)})
    assert judge([row])[0].value == 1
    for broken in (None, "{", {"type": 5}):
        assert judge([dataclasses.replace(row, columns={"schema": broken})])[0].status == "bad_gold"


def test_json_schema_wants_one_sound_schema() -> None:
    for options in ({}, {"definition": SCHEMA, "column": "schema"}, {"definition": {"type": 5}}):
        with pytest.raises(ConfigError, match="json_schema"):
            registry.build("rewards", "json_schema", options)


@pytest.mark.parametrize("name", ["exact", "numeric", "choice", "contains", "final_answer", "format"])
def test_linear_rewards_declare_their_range_and_stay_in_process(name: str) -> None:
    built = registry.build("rewards", name, {})
    assert built.range == (0.0, 1.0)
    assert built.in_process
    built([sample("<think>" * 20_000 + r"\boxed{" * 20_000 + "$" * 20_000 + "9" * 50_000, "B 5")])


def test_what_may_hang_asks_for_a_worker() -> None:
    for name, options in (("math", {}), ("regex", {"pattern": "a"}), ("json_schema", {"definition": SCHEMA})):
        assert not getattr(registry.build("rewards", name, options), "in_process", False)


CITIES = ["London", "Greater London"]


@pytest.mark.parametrize(
    ("name", "response", "gold", "value", "status"),
    [
        ("exact", "Greater London", CITIES, 1, "ok"),
        ("exact", "London", CITIES, 1, "ok"),
        ("exact", "Paris", CITIES, 0, "ok"),
        ("exact", "", CITIES, 0, "no_answer"),
        ("exact", "x", ["x"], 1, "ok"),
        ("exact", "x", [["x", "y"]], 1, "ok"),
        ("exact", "x", [float("nan"), "x"], 1, "ok"),
        ("exact", "nan", [float("nan"), None, "x"], 0, "ok"),
        ("exact", "x", ["", "  "], None, "bad_gold"),
        ("contains", "It is greater london.", ("Paris", "London"), 1, "ok"),
        ("final_answer", "#### 1/2", ["0.5", "x"], 1, "ok"),
        ("final_answer", "#### 1.5", [Decimal("1.50"), 3], 1, "ok"),
        ("final_answer", "#### 2", [Decimal("1.50"), 3], 0, "ok"),
        ("numeric", "The answer is 3", ["none", 3], 1, "ok"),
        ("numeric", "The answer is 4", ["none", 3], 0, "ok"),
        ("choice", "(B)", ["A", "B"], 1, "ok"),
        ("math", r"\boxed{\frac{1}{2}}", ["0.6", "0.5"], 1, "ok"),
        ("math", r"\boxed{7}", [8, 9], 0, "ok"),
        ("math", r"\boxed{7}", {"target": 7}, None, "bad_gold"),
        ("exact", "x", [["x"], ["y"]], None, "bad_gold"),
    ],
)
def test_a_list_means_any_of_these(name: str, response: str, gold: Any, value: float | None, status: str) -> None:
    one = dataclasses.replace(sample(response, gold_text(gold, "")), gold=gold_cell(gold))
    (result,) = registry.build("rewards", name, {})([one])
    assert (result.value, result.status) == (value, status)
    assert "data.answer" in result.info.get("error", "data.answer")


def test_golds_that_are_lists_are_checked_by_their_first(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": "a", "answer": CITIES}, {"prompt": "b", "answer": {"a": 1}}]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "c", "answer": None}]))
    found = datacheck.check(str(file), reward="exact", folder=tmp_path)
    assert [(bad["row"], bad["status"]) for bad in found["bad_golds"]] == [(2, "bad_gold"), (3, "bad_gold")]
