"""my_plugin keeps what rlkit asks of an algorithm."""

from __future__ import annotations

from rlkit.conformance import check_algorithm

from my_plugin import my_plugin


def test_it_keeps_the_contract() -> None:
    check_algorithm(my_plugin)
    check_algorithm(my_plugin, scale=0.5)
