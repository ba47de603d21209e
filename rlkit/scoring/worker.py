"""A worker process: builds the rewards by name, then scores what its parent sends until it is killed or left.

User functions run in the main thread. Frames on the socket are an 8-byte length and a pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import os
import pickle
import resource
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkit import registry
from rlkit.errors import RlkitError, TokensUnknownError
from rlkit.interfaces.declarations import reward_declaration
from rlkit.interfaces.rewards import RewardFn, RewardResult, Sample
from rlkit.parent import end_with
from rlkit.scoring.checks import call, checked, named, one_each, tail

OUT_OF_MEMORY = 77
"""Exit code."""
LONGEST_REPLY = 64 * 2**20
_HEADER = struct.Struct("!Q")


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


def frame(message: object) -> bytes:
    """Bytes on the socket."""
    payload = pickle.dumps(message)
    return _HEADER.pack(len(payload)) + payload


def unframe(inbox: bytearray) -> Any:
    """The first message of the bytes read so far, taken out of them; None where it is not all there."""
    if len(inbox) < _HEADER.size:
        return None
    (length,) = _HEADER.unpack_from(inbox)
    end = _HEADER.size + length
    if len(inbox) < end:
        return None
    message = pickle.loads(bytes(inbox[_HEADER.size : end]))
    del inbox[:end]
    return message


def main() -> None:
    """Entry of the process: `argv` holds the socket's file descriptor and the parent's process id."""
    link = socket.socket(fileno=int(sys.argv[1]))
    end_with(int(sys.argv[2]), signal.SIGKILL)
    inbox = bytearray()
    setup = json.loads(_receive(link, inbox))
    _limit(resource.RLIMIT_AS, int(setup["memory_gib"] * 2**30))
    _limit(resource.RLIMIT_CORE, 0)
    try:
        registry.load(setup["plugins"])
        rewards = [_ready(kind, options) for kind, options in setup["rewards"]]
    except BaseException as error:
        link.sendall(frame(Ready(failed=str(error) if isinstance(error, RlkitError) else tail(error))))
        return
    link.sendall(frame(Ready()))
    desk = _Desk(link, os.getpid(), setup["timeout_s"], asyncio.Runner())
    while (work := _receive(link, inbox)) is not None:
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


def _receive(link: socket.socket, inbox: bytearray) -> Any:
    """The next message; None where the parent has gone."""
    while (message := unframe(inbox)) is None:
        chunk = link.recv(2**20)
        if not chunk:
            return None
        inbox += chunk
    return message


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
        # Where a call hangs is on stderr by the time it is killed.
        faulthandler.dump_traceback_later(0.8 * self.timeout_s, file=sys.__stderr__ or 2)
        try:
            return call(reward.function, reward.name, samples, self.runner.run)
        except MemoryError as error:
            # What is left in such a process is not to be trusted with the next sample.
            with contextlib.suppress(BaseException):
                os.write(2, tail(error).encode())
            os._exit(OUT_OF_MEMORY)
        finally:
            faulthandler.cancel_dump_traceback_later()
            # An alarm that a function left behind would go off in the next one's.
            signal.setitimer(signal.ITIMER_REAL, 0)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # the function may have closed or replaced it
                    stream.flush()

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
    if size > LONGEST_REPLY // 64:
        return Fault(f"{where}: a result of {size:,} bytes; keep less in info and parts")
    return result


def _limit(what: int, amount: int) -> None:
    hard = resource.getrlimit(what)[1]
    amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(what, (amount, amount))
