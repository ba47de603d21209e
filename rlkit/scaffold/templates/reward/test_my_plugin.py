"""my_plugin keeps what rlkit asks of a reward, and says what it should of samples made by hand."""

from __future__ import annotations

from rlkit import Sample
from rlkit.conformance import check_reward
from rlkit.interfaces.rewards import SampleKey

from my_plugin import my_plugin


def sample(response: str, answer: str = "132") -> Sample:
    key = SampleKey("prompt", 1, 0, 0)
    return Sample(key=key, prompt="47+85=", response=response, tokens=[], answer=answer, truncated=False)


def test_it_keeps_the_contract() -> None:
    check_reward(my_plugin)


def test_right_wrong_and_missing() -> None:
    right, wrong, missing, no_gold = my_plugin([sample("132"), sample("133"), sample(" "), sample("132", answer="")])
    assert right.value == 1.0
    assert wrong.value == 0.0
    assert missing.status == "no_answer"
    assert no_gold.status == "bad_gold"


def test_the_marker() -> None:
    after, before = my_plugin([sample("7+5=12 #### 132"), sample("132 #### 12")], marker="####")
    assert after.correct
    assert not before.correct
