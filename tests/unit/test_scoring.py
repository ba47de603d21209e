"""Scoring: sound results pass, with the verdict filled in; a fault names the reward, the sample and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from rlkit.errors import RlkitError
from rlkit.interfaces import RewardResult, Sample, SampleKey
from rlkit.scoring import score

KEYS = [SampleKey("9f2c", 4, 0, index) for index in range(3)]
SAMPLES = [Sample(key=key, prompt="", response="", tokens=[], answer="", truncated=False) for key in KEYS]


class Returns:
    """A reward that returns what it was given."""

    def __init__(self, values: Any, range: tuple[float, float] | None = None) -> None:
        self.values = values
        if range is not None:
            self.range = range

    def __call__(self, samples: Sequence[Sample]) -> Any:
        return self.values


def one(value: Any, **options: Any) -> RewardResult:
    return score(Returns([0.0, value, 0.0], **options), "mine", SAMPLES)[1]


@pytest.mark.parametrize(
    ("returned", "value", "status", "correct"),
    [
        (1, 1.0, "ok", True),
        (0.5, 0.5, "ok", False),
        (True, 1.0, "ok", True),
        (False, 0.0, "ok", False),
        (np.float32(1), 1.0, "ok", True),
        (Fraction(1, 4), 0.25, "ok", False),
        (None, None, "abstain", None),
        (RewardResult(value=1), 1.0, "ok", True),
        (RewardResult(value=0.2, correct=True), 0.2, "ok", True),
        (RewardResult(value=1.0, correct=False), 1.0, "ok", False),
        (RewardResult(value=0, status="no_answer"), 0.0, "no_answer", False),
        (RewardResult(value=0.0, status="refused"), 0.0, "refused", False),
        (RewardResult(value=None, status="bad_gold"), None, "bad_gold", None),
        (RewardResult(value=None, status="timeout"), None, "timeout", None),
    ],
)
def test_sound_results(returned: Any, value: float | None, status: str, correct: bool | None) -> None:
    result = one(returned)
    assert (result.value, result.status, result.correct) == (value, status, correct)
    assert result.value is None or type(result.value) is float


def test_correct_is_the_highest_of_the_declared_range() -> None:
    assert one(1.0, range=(-1.0, 2.0)).correct is False
    assert one(2.0, range=(-1.0, 2.0)).correct is True
    with pytest.raises(RlkitError, match=r"got 3\.0, outside the range \(-1\.0, 2\.0\)"):
        one(3.0, range=(-1.0, 2.0))
    # Without a declared range 1 is what verifiers give.
    assert one(2.0).correct is True
    assert one(0.9).correct is False
    # 0 is the highest here, but there was no answer to be correct.
    assert one(RewardResult(value=0.0, status="no_answer"), range=(-1.0, 0.0)).correct is False


def test_parts_and_info_are_kept() -> None:
    result = one(RewardResult(value=1.0, parts={"format": 0.5}, info={"answer": "5"}))
    assert (result.parts, result.info) == ({"format": 0.5}, {"answer": "5"})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), r"got nan \(float\)"),
        (float("-inf"), r"got -inf \(float\)"),
        ("1.0", r"got 1\.0 \(str\)"),
        ({"score": 1.0}, r"got \{'score': 1\.0\} \(dict\)"),
        (torch.tensor(1.0), r"\(Tensor\)"),
        (1j, r"\(complex\)"),
        (RewardResult(value=float("nan")), r"got nan"),
        (RewardResult(value="1"), r"got 1 \(str\)"),  # type: ignore[arg-type]
        (RewardResult(value=None), r"no value, but status 'ok'.*abstain"),
        (RewardResult(value=1.0, status="timeout"), r"status 'timeout' has no value, but got 1\.0"),
        (RewardResult(value=1.0, status="refused"), r"status 'refused' has the value 0, but got 1\.0"),
        (RewardResult(value=1.0, status="timed_out"), r"unknown status 'timed_out'; did you mean 'timeout'"),  # type: ignore[arg-type]
        (RewardResult(value=1.0, parts={"format": float("nan")}), r"part 'format' is nan"),
    ],
)
def test_faults_name_the_reward_the_sample_and_the_value(value: Any, said: str) -> None:
    with pytest.raises(
        RlkitError, match=r"reward 'mine', sample 2 of 3 \(prompt 9f2c, step 4, index 1\): .*" + said
    ) as e:
        one(value)
    assert e.value.exit_code == 1


def test_what_is_allowed_is_said() -> None:
    with pytest.raises(RlkitError, match=r"allowed are a finite number, True or False, None .* or a RewardResult"):
        one("good")


@pytest.mark.parametrize("values", [[1.0], [1.0] * 4, []])
def test_a_wrong_count_is_named(values: list[float]) -> None:
    with pytest.raises(RlkitError, match=rf"reward 'mine' returned {len(values)} results for 3 samples"):
        score(Returns(values), "mine", SAMPLES)


@pytest.mark.parametrize("values", ["abc", None, 1.0, {0: 1.0}, (v for v in [1.0] * 3), torch.ones(3), np.ones(3)])
def test_anything_but_a_list_is_refused(values: Any) -> None:
    with pytest.raises(RlkitError, match=r"reward 'mine' returned a \w+ .*must return a list"):
        score(Returns(values), "mine", SAMPLES)


def test_an_exception_comes_with_its_place() -> None:
    def fragile(samples: Sequence[Sample]) -> list[float]:
        return [1 / len(s.response) for s in samples]

    with pytest.raises(RlkitError, match=r"reward 'fragile' raised on a batch of 3 samples") as caught:
        score(fragile, "fragile", SAMPLES)
    said = str(caught.value)
    assert "return [1 / len(s.response) for s in samples]" in said
    assert said.endswith("ZeroDivisionError: division by zero")
    assert "rlkit/scoring.py" not in said


def test_a_reward_that_takes_other_arguments_is_an_error_too() -> None:
    def wrong(prompts: list[str], completions: list[str]) -> list[float]:
        return []

    with pytest.raises(RlkitError, match=r"(?s)reward 'wrong' raised.*missing 1 required positional argument"):
        score(wrong, "wrong", SAMPLES)  # type: ignore[arg-type]


def test_no_samples_need_no_reward() -> None:
    assert score(Returns("never looked at"), "mine", []) == []


def test_interrupts_pass_through() -> None:
    def interrupted(samples: Sequence[Sample]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(interrupted, "mine", SAMPLES)
