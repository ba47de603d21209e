"""my_plugin keeps what rlkit asks of a suite."""

from __future__ import annotations

from rlkit.conformance import check_suite

from my_plugin import my_plugin


def test_it_keeps_the_contract() -> None:
    check_suite(my_plugin)


def test_its_problems() -> None:
    suite = my_plugin()
    problems = list(suite.load(None))
    assert len(problems) == suite.count
    assert problems[0] == {"prompt": "17+25=", "answer": "42"}
