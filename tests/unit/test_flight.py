"""A rollout on its way: who waits for it gets it, or what was raised within; who does not can have it end."""

from __future__ import annotations

import threading

import pytest

from rlkit.errors import RlkitError
from rlkit.interfaces.progress import Progress, unseen
from rlkit.loop.dynamic_sampling import Gathered
from rlkit.loop.flight import Flight
from rlkit.loop.rollouts import Taken
from rlkit.loop.state import Place

TAKEN = Taken(3, Gathered([], [], [], 0, {}, {}), Place(4, 0))


def test_it_goes_on_in_a_thread_of_its_own_and_says_how_far_it_is_to_who_waits() -> None:
    go_on, seen, threads = threading.Event(), [], []

    def take(progress: Progress) -> Taken:
        threads.append(threading.get_ident())
        progress("sampling", 7, 12)
        assert go_on.wait(20)
        return TAKEN

    def shown(phase: str, done: int = 0, total: int = 0) -> None:
        seen.append((phase, done, total))
        if seen[-1][1] == 7:
            go_on.set()

    flight = Flight(take, None)
    assert flight.wait(shown) is TAKEN
    assert threads != [threading.get_ident()]
    assert seen[-1] == ("sampling", 7, 12)
    assert flight.ended > 0
    assert flight.wait(unseen) is TAKEN


def test_what_is_raised_within_is_raised_where_it_is_waited_for() -> None:
    def take(progress: Progress) -> Taken:
        raise RlkitError("the server has gone")

    flight = Flight(take, None)
    with pytest.raises(RlkitError, match="the server has gone"):
        flight.wait(unseen)


def test_given_up_it_ends_with_its_next_completion() -> None:
    begun, closed = threading.Event(), []

    def take(progress: Progress) -> Taken:
        try:
            done = 0
            while True:
                done += 1
                progress("sampling", done, 10**9)
                begun.set()
        finally:
            closed.append(True)

    flight = Flight(take, None)
    assert begun.wait(20)
    flight.give_up()
    assert closed == [True]
