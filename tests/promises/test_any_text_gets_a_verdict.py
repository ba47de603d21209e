"""Every verifier has a verdict on every text: it neither raises nor leaves its range, and nothing of the text reaches a
terminal but what can be seen."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit import registry
from rlkit.interfaces.rewards import VALUELESS, Sample, SampleKey
from rlkit.scoring.checks import score
from rlkit.wording import one_line, visible

NEEDS: dict[str, dict[str, Any]] = {
    "regex": {"pattern": r"(\d+)"},
    "json_schema": {"definition": {"type": "object", "required": ["a"]}},
    "length": {"max_tokens": 40, "buffer": 10},
}
ELSEWHERE = {"code", "function", "judge", "reward_model"}
"""They run a program, or ask a server: `test_hostile_programs_earn_nothing.py`, `test_judge.py` and so on."""

GOLDS = [
    "12",
    "-0.5",
    r"\frac{1}{2}",
    "B",
    "(1, 2]",
    r"x^2 + \sqrt{3}",
    '{"a": 1}',
    "Paris",
    "10^4",
    "1,234",
    r"\{1, 2\}",
]
SOUP = [
    r"\boxed{", "}", "{", r"\frac", r"\sqrt", "$", "$$", "#### ", "<answer>", "</answer>", "</think>", "<think>",
    "^", "**", "_", "/", "!", "(", ")", "[", "]", ",", ";", "=", "+", "-", r"\pm", r"\cup", "±", "e", "i", "pi", "x",
    "nan", "inf", "1e999", "12", "0.5", "B", "1", "9" * 40, "answer is ", "\n", "\\", "'", '"', "\x00", "\u202e", "²",
    "٣", "½", "\u2212", "…", "__import__('os')", "{{", "%s", "True", "None", "10**10**10", "factorial(9**9)",
]  # fmt: skip
texts = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zs", "Nd", "Nl", "No", "Sm"]), max_size=40),
    st.lists(st.sampled_from(SOUP), max_size=25).map("".join),
)


def names() -> list[str]:
    return sorted(set(registry.names("rewards")) - ELSEWHERE)


@pytest.mark.parametrize("name", names())
def test_every_verifier_has_one(name: str) -> None:
    reward = registry.build("rewards", name, NEEDS.get(name, {}))

    @settings(max_examples=25)
    @given(st.lists(texts, min_size=1, max_size=4), st.one_of(st.sampled_from(GOLDS), texts))
    def judged(responses: list[str], gold: str) -> None:
        samples = [
            Sample(
                key=SampleKey("p", 1, 0, index),
                prompt="What is it?",
                response=response,
                tokens=list(range(len(response))),
                answer=gold,
                truncated=False,
                columns={"items": "[3, 1, 2]", "numbers": "[3, 1, 2]", "target": 6},
                question="What is it?",
                gold=gold,
            )
            for index, response in enumerate(responses)
        ]
        results = score(reward, name, samples)
        assert len(results) == len(samples)
        for result in results:
            assert (result.value is None) == (result.status in VALUELESS)

    judged()


@given(texts)
def test_what_a_terminal_is_given_can_be_seen(text: str) -> None:
    shown = visible(text)
    assert not [each for each in shown if unicodedata.category(each) in ("Cc", "Cf", "Cs") and each not in "\n\t"]
    shown.encode()  # no half of a surrogate pair is left
    assert "\n" not in one_line(text)
