"""The rewards that ship: what counts as right, and what is neither right nor wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rlkit_rewards import math as math_module

from rlkit import registry
from rlkit.interfaces import RewardResult, Sample, SampleKey

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


def test_exact() -> None:
    assert verdict("exact", " yes\n", "yes").value == 1
    assert verdict("exact", "Yes", "yes").value == 0
    assert verdict("exact", "yes", " ").status == "bad_gold"


@pytest.mark.parametrize(
    ("response", "gold", "value", "status"),
    [
        (r"\boxed{5}", "5", 1, "ok"),
        (r"so \boxed{7}. No, it is \boxed{5}", "5", 1, "ok"),
        (r"so \boxed{5}. No, it is \boxed{7}", "5", 0, "ok"),
        (r"\boxed{\dfrac{1}{2}}", r"\frac12", 1, "ok"),
        (r"\boxed{\frac{-1}{2}}", "-0.5", 1, "ok"),
        (r"\boxed{0.333}", "1/3", 0, "ok"),
        (r"\boxed{1{,}000}", "1000", 1, "ok"),
        (r"\boxed{44/9}", "4 4/9", 0, "ok"),
        (r"\boxed{\{1, 2\}}", r"\{2,1\}", 1, "ok"),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\frac{\pi}{2})", 1, "ok"),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", 1, "ok"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1, "ok"),
        (r"\boxed{(x+1)^2}", "x^2+2x+2", 0, "ok"),
        (r"\boxed{5}", r"Therefore \boxed{5}.", 1, "ok"),
        (r"\boxed{\text{a}b", "5", 0, "no_answer"),
        (r"it is 5", "5", 0, "no_answer"),
        (r"\boxed{ }", "5", 0, "no_answer"),
        (r"\boxed{5}", " ", None, "bad_gold"),
    ],
)
def test_math(response: str, gold: str, value: float | None, status: str) -> None:
    result = verdict("math", response, gold)
    assert (result.value, result.status) == (value, status)


def test_math_takes_the_last_box_in_linear_time() -> None:
    assert math_module.last_box(r"\boxed{" * 50_000) is None
    assert math_module.last_box("{" * 100_000 + r"\boxed{\{a}") == r"\{a"


@pytest.mark.parametrize(
    "bomb",
    [
        "9^{9^{9^9}}",
        "9^9^9",
        "9**9**9",
        "((9^{99})^{99})^{99}",
        "10^{99*99*99*99}",
        "2^{1000000000}",
        "1E999999999",
        "99999!",
        "((3!)!)!",
        r"\binom{10^8}{5}",
        r"\sum_{k=1}^{10^{12}} \frac{1}{k}",
        "(x+y+z+w)^{200}",
        "7" * 5000,
        r"\frac{1}{1+" * 100 + "1" + "}" * 100,
    ],
)
def test_math_refuses_what_computer_algebra_may_not_come_back_from(bomb: str) -> None:
    result = verdict("math", rf"\boxed{{{bomb}}}", "x")
    assert (result.value, result.status) == (0.0, "refused")


def test_math_survives_the_timeout_of_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    import math_verify
    from math_verify.errors import TimeoutException

    def late(*args: Any, **kwargs: Any) -> bool:
        raise TimeoutException

    monkeypatch.setattr(math_verify, "verify", late)
    result = verdict("math", r"\boxed{x+1}", "1+y")
    assert (result.value, result.status) == (None, "timeout")


def test_every_math_gold_verifies_against_itself() -> None:
    golds = [row["answer"] for row in shared("math500.jsonl")]
    results = registry.build("rewards", "math", {})([sample(rf"\boxed{{{gold}}}", gold) for gold in golds])
    assert [g for g, r in zip(golds, results, strict=True) if r.value != 1] == []


def test_math_accepts_no_bomb_of_the_public_cases() -> None:
    cases = [c for c in shared("verifier_cases.jsonl") if c.get("bomb") and "boxed" in c["prediction"]]
    assert len(cases) > 10
    for case in cases:
        assert verdict("math", case["prediction"], case["gold"]).value in ((0.0, 1.0) if case["expected"] else (0.0,))
