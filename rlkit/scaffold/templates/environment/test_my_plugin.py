"""my_plugin keeps what rlkit asks of an environment, and answers as it should."""

from __future__ import annotations

import pytest
from rlkit import Task
from rlkit.conformance import check_environment

from my_plugin import MyPlugin


def test_it_keeps_the_contract() -> None:
    check_environment(MyPlugin)


def test_the_gold_at_the_second_try() -> None:
    game = MyPlugin(cost=0.2)
    assert game.start(Task(question="47+85=", answer="132"), seed=0) == ""
    first = game.step("131")
    assert (first.reward, first.done) == (-0.2, False)
    second = game.step("It is 132")
    assert (second.reward, second.done, second.correct) == (1.0, True, True)


def test_tries_run_out() -> None:
    game = MyPlugin(tries=2)
    game.start(Task(answer="132"), seed=0)
    assert [game.step(said).done for said in ("", "1132")] == [False, True]


def test_a_row_without_a_gold_is_an_error() -> None:
    with pytest.raises(ValueError, match="no gold"):
        MyPlugin().start(Task(question="47+85="), seed=0)
