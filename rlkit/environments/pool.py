"""Environments of trajectories under way, each in a process of its own with a deadline for each answer.

A thread of the parent watches over the processes, so that they go on while the sampler has the main thread. What an
environment does to its process costs its own trajectory alone: that is lost, and says why.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rlkit import registry
from rlkit.config import ConversationConfig, PluginRef
from rlkit.environments.nursery import START_S, Nursery, how_ended, room_for, where
from rlkit.environments.process import Asked, Begun, Cut, Ended, Failed, Kill, Ready, Setup, Start, Step, method_of
from rlkit.errors import ConfigError, PluginError, RlkitError
from rlkit.interfaces.declarations import EnvironmentDeclaration
from rlkit.interfaces.environments import Observation, Task
from rlkit.interfaces.progress import alive
from rlkit.processes.fresh import HUNG_UP_SAID
from rlkit.processes.messages import Channel
from rlkit.processes.printed import Printed

_PATIENCE_S = 0.5
"""How long a process that has closed its socket may take to say how it ended."""
_TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Answered:
    observation: Observation
    """Its text is a str, or a list of chat messages."""
    seconds: float
    """From the question to the answer."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The trajectory has no value, and its environment is no more."""

    status: Literal["error", "timeout"]
    said: str
    """A sentence, and what is known beyond it on the lines below."""
    seconds: float
    broken: bool = False
    """The environment broke its contract: it returned what is no answer."""


Answer = Answered | Lost


@dataclass(slots=True)
class _Trajectory:
    """What the thread knows of one under way."""

    life: int
    channel: Channel
    printed: Printed
    asked_at: float
    deadline: float
    begun: bool = False
    """Its process has; until then the deadline is that of the process that it is forked from."""
    method: str = "start"
    """What it was last asked."""
    busy: bool = True
    """It owes an answer."""
    hung_up_at: float | None = None
    fallen: str = ""
    """Why there will be no more answers, as long as none is asked for."""


@dataclass(slots=True)
class _Message:
    """From the callers to the thread."""

    life: int
    what: Asked | None
    """None: its end."""
    at: float = field(default_factory=time.monotonic)


class Environments:
    """The environment of a run, once for each trajectory under way, told apart by the caller's numbers.

    Its methods may be called from any thread. For each `start`, `step` and `cut` there is one answer, which `answered`
    gives; one that is Lost ends its trajectory, so that its number is free again, as after `end`.

    The processes are forked from one that imports the plugins and makes the environment. It begins with the first
    `start`, or with `warm`.

    Raises ConfigError for an environment or options that cannot be, for one that is defined in `__main__`, which no
    other process can import, and for more trajectories at once than the machine has open files for. Once processes
    cannot be started, every method but `end` and `close` raises the RlkitError that says why.
    """

    def __init__(self, ref: PluginRef, plugins: Sequence[str], config: ConversationConfig) -> None:
        registry.load(list(plugins))
        plugin = registry.find("environments", ref.kind)
        registry.validate_options(plugin, ref.options, where="environment")
        if "__main__" in plugin.homes:
            raise ConfigError(
                f"environment {ref.kind!r} is defined in __main__, where the processes that environments run in cannot "
                "import it: move it to a file and name that under `plugins`"
            )
        room_for(config.at_once)
        homes = [*plugins, *(home for home in plugin.homes if home not in plugins)]
        self._setup = Setup(homes, ref.kind, ref.options, config.memory_gib, config.timeout_s)
        self._file = str(plugin.place[0]) if plugin.place else None
        self._config = config
        self.log: Path | None = None
        """Where what environments print is put down; None: nowhere. To be set before the first start."""
        self._lock = threading.Condition()
        self._lives: dict[int, int] = {}
        """By the caller's number, one for each start that there ever was."""
        self._count = 0
        self._asked: deque[_Message] = deque()
        self._owed: dict[int, int] = {}
        """Numbers by life, of answers that have not come."""
        self._answers: dict[int, Answer] = {}
        """By number, those that nobody has fetched."""
        self._declared: EnvironmentDeclaration | None = None
        self._warm = False
        self._closing = False
        self._failed: BaseException | None = None
        # What follows is the thread's alone.
        self._nursery: Nursery | None = None
        self._deaths = 0
        self._under_way: dict[int, _Trajectory] = {}
        self._unborn: deque[_Message] = deque()
        self._selector = selectors.DefaultSelector()
        self._bell, self._clapper = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="rlkit-environments", daemon=True)

    def warm(self) -> EnvironmentDeclaration:
        """Make the environment, if that is not done, and wait for it. What it declares."""
        with self._lock:
            self._warm = True
            self._ring()
            while self._declared is None:
                self._refuse_if_failed()
                self._lock.wait(1.0)
            return self._declared

    def start(self, number: int, task: Task, seed: int) -> None:
        """Begin a trajectory; returns at once. ValueError where one of that number is under way."""
        with self._lock:
            self._refuse_if_failed()
            if number in self._lives:
                raise ValueError(f"trajectory {number} is under way: end it before you start another by its number")
            self._count += 1
            self._lives[number] = self._count
            self._ask(number, Start(task, seed))

    def step(self, number: int, action: str) -> None:
        """Tell a trajectory's environment what the model said; returns at once. ValueError where there is none of that
        number, or its last answer has not come."""
        self._go_on(number, Step(action))

    def cut(self, number: int, unheard: str) -> None:
        """Tell one that declares `cut` that its trajectory ends here, as `step` tells it of a turn."""
        self._go_on(number, Cut(unheard))

    def end(self, number: int) -> None:
        """Kill a trajectory's process, and forget what it has answered. Calling it twice is harmless."""
        with self._lock:
            life = self._lives.pop(number, None)
            self._answers.pop(number, None)
            if life is not None:
                self._owed.pop(life, None)
                self._asked.append(_Message(life, None))
                self._ring()
                self._lock.notify_all()

    def answered(self, *, wait: bool) -> list[tuple[int, Answer]]:
        """All answers that have come since the last call, with their numbers, the first to come first.

        wait: not before there is one. RlkitError where none can come, since nothing was asked.
        """
        with self._lock:
            while not self._answers:
                self._refuse_if_failed()
                if not wait:
                    return []
                if not self._owed:
                    raise RlkitError("no environment owes an answer, so waiting for one would never end")
                self._lock.wait(1.0)
            found = list(self._answers.items())
            self._answers.clear()
            for number, answer in found:
                if isinstance(answer, Lost):
                    del self._lives[number]
            return found

    def close(self) -> None:
        """End all processes and whatever they started. Calling it twice is harmless."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._ring()
        if self._thread.ident is not None:
            self._thread.join(60.0)
        self._bell.close()
        self._clapper.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_if_failed(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._closing:
            raise RlkitError("the environments are closed")
        if self._thread.ident is None:
            self._thread.start()

    def _go_on(self, number: int, what: Step | Cut) -> None:
        with self._lock:
            self._refuse_if_failed()
            life = self._lives.get(number)
            if life is None or life in self._owed or number in self._answers:
                why = "is not under way" if life is None else "has not been fetched since it was last asked"
                raise ValueError(f"trajectory {number} {why}")
            self._ask(number, what)

    def _ask(self, number: int, what: Asked) -> None:
        life = self._lives[number]
        self._owed[life] = number
        self._asked.append(_Message(life, what))
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # full, so it rings already; or closed
            self._clapper.send(b"!", socket.MSG_DONTWAIT)

    # What follows runs in the thread, which alone touches processes and trajectories.

    def _run(self) -> None:
        self._selector.register(self._bell, selectors.EVENT_READ, lambda: self._bell.recv(4096))
        try:
            while not self._closing:
                self._take_what_is_asked()
                self._see_to_the_nursery()
                for key, _ in self._selector.select(_TICK_S if self._waiting() else 1.0):
                    key.data()
                self._listen_to_the_nursery()
                for trajectory in list(self._under_way.values()):
                    self._look_after(trajectory)
        except Exception as error:
            with self._lock:
                self._failed = error if isinstance(error, RlkitError) else RlkitError(f"environments broke: {error!r}")
                self._failed.__cause__ = error.__cause__ if error is self._failed else error
                self._lock.notify_all()
        finally:
            for trajectory in list(self._under_way.values()):
                self._forget(trajectory)
            self._end_nursery()
            self._selector.close()

    def _waiting(self) -> bool:
        starting = self._nursery is not None and not self._nursery.ready
        return starting or any(each.busy or each.channel.hung_up for each in self._under_way.values())

    def _take_what_is_asked(self) -> None:
        while self._asked:
            asked = self._asked.popleft()
            trajectory = self._under_way.get(asked.life)
            if isinstance(asked.what, Start):
                self._unborn.append(asked)
            elif trajectory is None:  # it was lost, or has not begun
                self._unborn = deque(each for each in self._unborn if each.life != asked.life)
            elif asked.what is None:
                self._kill(trajectory)
            else:
                trajectory.asked_at, trajectory.method, trajectory.busy = asked.at, method_of(asked.what), True
                if trajectory.fallen:
                    self._lose(trajectory, "error", trajectory.fallen)
                else:
                    trajectory.deadline = asked.at + self._config.timeout_s
                    self._post(trajectory, asked.what)

    # The process that the others are forked from

    def _see_to_the_nursery(self) -> None:
        """Have it started where it is needed, and have it fork."""
        if self._nursery is None and (self._unborn or (self._warm and self._declared is None)):
            self._nursery = Nursery(self._setup, self.log)
            self._selector.register(self._nursery.link, selectors.EVENT_READ, self._nursery.read)
            self._register(self._nursery.printed)
        while self._nursery is not None and self._nursery.ready and self._unborn:
            self._fork(self._nursery, self._unborn.popleft())

    def _fork(self, nursery: Nursery, asked: _Message) -> None:
        channel, printed = nursery.fork(asked.life)
        trajectory = _Trajectory(asked.life, channel, printed, asked.at, time.monotonic() + START_S)
        self._under_way[asked.life] = trajectory
        self._selector.register(channel.link, selectors.EVENT_READ, lambda: self._exchange(trajectory))
        self._register(printed)
        self._post(trajectory, asked.what)

    def _listen_to_the_nursery(self) -> None:
        nursery = self._nursery
        if nursery is None:
            return
        for said in nursery.messages():
            if isinstance(said, Ready):
                if said.failed:
                    raise PluginError(
                        f"environment {self._setup.kind!r} cannot be made in a process of its own:\n{said.failed}"
                    )
                nursery.ready = True
                with self._lock:
                    self._declared = said.declared
                    self._lock.notify_all()
            elif isinstance(said, Ended) and (trajectory := self._under_way.get(said.life)) is not None:
                trajectory.channel.read()  # what it has answered before its end counts
                self._hear(trajectory)
                self._fall(trajectory, how_ended(said, self._memory))
        if nursery.dead():
            self._lose_nursery(nursery, nursery.cause(self._memory))
        elif not nursery.ready and time.monotonic() > nursery.deadline:
            self._lose_nursery(nursery, f"no answer within {START_S:g} s")

    @property
    def _memory(self) -> str:
        return f"conversation.memory_gib is {self._config.memory_gib:g}"

    def _lose_nursery(self, nursery: Nursery, cause: str) -> None:
        """What was forked from it is lost with it; the next start has another begin."""
        self._deaths += 1
        if not nursery.ready or self._deaths > 1:
            said = "did not start" if not nursery.ready else "ended twice in a row without an answer"
            raise RlkitError(
                f"the process that environment {self._setup.kind!r} is made in {said}: {cause}. Its last output:\n"
                f"{nursery.printed.last()}\nWhere memory is short, raise conversation.memory_gib."
            )
        self._end_nursery()
        for trajectory in list(self._under_way.values()):
            self._fall(trajectory, f"the process that it was forked from is lost: {cause}")

    def _end_nursery(self) -> None:
        if (nursery := self._nursery) is None:
            return
        self._nursery = None
        self._unregister(nursery.link)
        self._unregister(nursery.printed.stream)
        nursery.close()

    # Those of the trajectories

    def _post(self, trajectory: _Trajectory, message: Asked | None) -> None:
        trajectory.channel.post(message)
        self._write_on(trajectory.channel)

    def _exchange(self, trajectory: _Trajectory) -> None:
        trajectory.channel.flush()
        trajectory.channel.read()
        self._write_on(trajectory.channel)
        self._hear(trajectory)

    def _write_on(self, channel: Channel) -> None:
        """Be told when more of a long message goes, as long as there is any; of one that has hung up, nothing."""
        if channel.hung_up:
            self._unregister(channel.link)
            return
        key = self._selector.get_key(channel.link)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.unsent else 0)
        if key.events != events:
            self._selector.modify(channel.link, events, key.data)

    def _look_after(self, trajectory: _Trajectory) -> None:
        now = time.monotonic()
        if trajectory.channel.hung_up and trajectory.hung_up_at is None:
            trajectory.hung_up_at = now
        if trajectory.hung_up_at is not None and now > trajectory.hung_up_at + _PATIENCE_S:
            self._fall(trajectory, HUNG_UP_SAID)
        elif trajectory.busy and now > trajectory.deadline:
            if not trajectory.begun and self._nursery is not None:
                self._lose_nursery(self._nursery, f"it forked nothing within {START_S:g} s")
            else:
                printed = trajectory.printed.last()
                self._lose(
                    trajectory,
                    "timeout",
                    f"environment {self._setup.kind!r}: {trajectory.method} gave no answer within "
                    f"{self._config.timeout_s:g} s (conversation.timeout_s){where(printed, self._file)}\n{printed}",
                )

    def _hear(self, trajectory: _Trajectory) -> None:
        """Act on what it has said; it may be lost after that."""
        for said in trajectory.channel.messages():
            if isinstance(said, Begun):
                trajectory.begun = True
                trajectory.deadline = time.monotonic() + self._config.timeout_s
            elif isinstance(said, Observation) and trajectory.busy:
                trajectory.busy = False
                self._deaths = 0
                self._settle(trajectory, Answered(said, time.monotonic() - trajectory.asked_at))
            elif isinstance(said, Failed) and trajectory.busy:
                self._lose(trajectory, "error", said.said, broken=said.broken)
                return
            else:
                trajectory.channel.hung_up = True
                return

    def _fall(self, trajectory: _Trajectory, cause: str) -> None:
        """Its process is no more, or as good as: it is lost now, or when it is next asked."""
        if trajectory.life not in self._under_way or trajectory.fallen:
            return
        when = f"in {trajectory.method}" if trajectory.busy else "between two steps"
        said = f"environment {self._setup.kind!r}: its process ended {when}: {cause}\n{trajectory.printed.last()}"
        if trajectory.busy:
            self._lose(trajectory, "error", said)
        else:
            self._kill(trajectory)
            trajectory.fallen = said
            self._under_way[trajectory.life] = trajectory

    def _lose(
        self, trajectory: _Trajectory, status: Literal["error", "timeout"], said: str, broken: bool = False
    ) -> None:
        self._settle(trajectory, Lost(status, said.strip(), time.monotonic() - trajectory.asked_at, broken))
        self._kill(trajectory)

    def _settle(self, trajectory: _Trajectory, answer: Answer) -> None:
        alive()
        with self._lock:
            number = self._owed.pop(trajectory.life, None)
            if number is not None:  # it has not been ended meanwhile
                self._answers[number] = answer
                self._lock.notify_all()

    def _kill(self, trajectory: _Trajectory) -> None:
        if self._nursery is not None and not trajectory.fallen:
            self._nursery.send(Kill(trajectory.life))
        self._forget(trajectory)

    def _forget(self, trajectory: _Trajectory) -> None:
        self._under_way.pop(trajectory.life, None)
        for stream in (trajectory.channel.link, trajectory.printed.stream):
            self._unregister(stream)
            stream.close()

    def _register(self, printed: Printed) -> None:
        def drain() -> None:
            if not printed.drain():
                self._unregister(printed.stream)

        self._selector.register(printed.stream, selectors.EVENT_READ, drain)

    def _unregister(self, stream: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):  # it was before
            self._selector.unregister(stream)
