"""A worker process: builds the rewards by name, then scores what its parent sends until it is killed or left.

User functions run in the main thread.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkit import registry
from rlkit.blame import tail
from rlkit.errors import RlkitError, TokensUnknownError
from rlkit.interfaces.declarations import reward_declaration
from rlkit.interfaces.rewards import RewardFn, RewardResult, Sample
from rlkit.parent import end_with
from rlkit.processes.inside import confine, watched
from rlkit.processes.messages import frame, receive
from rlkit.scoring.checks import call, checked, named, one_each

LARGEST_RESULT = 2**20
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The function broke its contract: what it returned is no result."""

    said: str
    miscounted: bool = False
    """Of all samples of a call: it returned another number of results, so no telling which is whose."""


@dataclass(frozen=True, slots=True)
class Killed:
    """Not from a worker: the sample took two of them down."""

    said: str


@dataclass(frozen=True, slots=True)
class TokensRead:
    """The function read the sample's tokens, which are not known."""

    said: str


Outcome = RewardResult | Fault | Killed | TokensRead


@dataclass(frozen=True, slots=True)
class Work:
    """To a worker: pickled samples for one reward, as one call or as one call each."""

    part: int
    one_by_one: bool
    samples: list[bytes]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """From a worker: of the next samples of its work, in order."""

    outcomes: list[Outcome]


@dataclass(frozen=True, slots=True)
class Raised:
    """From a worker: the call of several samples raised, so each is to be called for itself."""


@dataclass(frozen=True, slots=True)
class Ready:
    """From a worker: the rewards are built; and, with `failed`, why they are not."""

    failed: str = ""


def main() -> None:
    """Entry of the process: `argv` holds the socket's file descriptor and the parent's process id."""
    link = socket.socket(fileno=int(sys.argv[1]))
    end_with(int(sys.argv[2]), signal.SIGKILL)
    inbox = bytearray()
    setup = json.loads(receive(link, inbox))
    confine(setup["memory_gib"])
    try:
        registry.load(setup["plugins"])
        rewards = [_ready(kind, options) for kind, options in setup["rewards"]]
    except BaseException as error:
        link.sendall(frame(Ready(failed=str(error) if isinstance(error, RlkitError) else tail(error))))
        return
    link.sendall(frame(Ready()))
    desk = _Desk(link, os.getpid(), setup["timeout_s"], asyncio.Runner())
    while (work := receive(link, inbox)) is not None:
        desk.score(rewards[work.part], work)


@dataclass(frozen=True, slots=True)
class _Reward:
    function: RewardFn
    name: str
    range: tuple[float, float] | None


def _ready(kind: str, options: dict[str, Any]) -> _Reward:
    function: RewardFn = registry.build("rewards", kind, options)
    declared = reward_declaration(function, f"reward {kind!r}")
    if declared.warm_up is not None:
        declared.warm_up()
    return _Reward(function, kind, declared.range)


@dataclass(frozen=True, slots=True)
class _Desk:
    link: socket.socket
    owner: int
    timeout_s: float
    runner: asyncio.Runner
    """One event loop for the worker's life, so that what an async function keeps open stays usable."""

    def score(self, reward: _Reward, work: Work) -> None:
        samples = [pickle.loads(sample) for sample in work.samples]
        if not work.one_by_one:
            self._send(self._together(reward, samples))
            return
        for sample in samples:
            self._send(Outcomes([self._alone(reward, sample)]))

    def _together(self, reward: _Reward, samples: list[Sample]) -> Outcomes | Raised:
        try:
            returned = self._call(reward, samples)
        except BaseException:
            return Raised()
        try:
            values = one_each(returned, reward.name, samples)
        except RlkitError as error:
            return Outcomes([Fault(str(error), miscounted=True) for _ in samples])
        return Outcomes([_outcome(v, reward, s) for v, s in zip(values, samples, strict=True)])

    def _alone(self, reward: _Reward, sample: Sample) -> Outcome:
        try:
            (value,) = one_each(self._call(reward, [sample]), reward.name, [sample])
        except TokensUnknownError as error:
            return TokensRead(str(error))
        except RlkitError as error:
            return Fault(str(error))
        except BaseException as error:
            return RewardResult(value=None, status="error", info={"error": tail(error)[-4000:]})
        return _outcome(value, reward, sample)

    def _call(self, reward: _Reward, samples: Sequence[Sample]) -> object:
        with watched(self.timeout_s):
            return call(reward.function, reward.name, samples, self.runner.run)

    def _send(self, message: Outcomes | Raised) -> None:
        if os.getpid() != self.owner:  # a child that a function forked, and that came back from it
            os._exit(0)
        self.link.sendall(frame(message))


def _outcome(value: object, reward: _Reward, sample: Sample) -> Outcome:
    where = f"reward {reward.name!r} ({named(sample)})"
    try:
        result = checked(value, reward.range, where, sample)
    except RlkitError as error:
        return Fault(str(error))
    try:
        size = len(pickle.dumps(result))
    except Exception as error:
        return Fault(f"{where}: its result cannot leave the worker process: {error!r}")
    if size > LARGEST_RESULT:
        return Fault(f"{where}: a result of {size:,} bytes; keep less in info and parts")
    return result
