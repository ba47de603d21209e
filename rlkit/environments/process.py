"""The processes of a run's environment: one that has made it, and copies of that, one for each trajectory.

The first is a fresh interpreter that imports the plugins and builds the environment, and then forks when it is told
to: a copy begins in milliseconds, and shares the memory of what was imported and loaded. It runs no code of the
environment after that. Each copy talks with the trainer over a socket of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rlkit import registry
from rlkit.blame import tail
from rlkit.environments.checks import observed, within
from rlkit.errors import PluginError, RlkitError
from rlkit.importing import importing
from rlkit.interfaces.declarations import EnvironmentDeclaration, environment_declaration
from rlkit.interfaces.environments import Environment, Observation, Task
from rlkit.parent import adopt, end_with
from rlkit.processes.inside import confine, watched
from rlkit.processes.messages import frame, receive, unframe

HUNG_UP = 78
"""Exit code of a copy whose socket is closed."""
_LOOK_S = 0.25
"""Between two looks at what trajectories have left behind: a look reads all of /proc."""
_LEFTOVERS_S = 5.0
"""How long the end waits for what does not end."""


@dataclass(frozen=True, slots=True)
class Setup:
    plugins: Sequence[str]
    kind: str
    options: dict[str, Any]
    memory_gib: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Ready:
    """From the first process: the environment is made; and, with `failed`, why it is not."""

    declared: EnvironmentDeclaration | None = None
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Fork:
    """To the first process, with two open files: the copy's end of its socket, and where it prints."""

    life: int


@dataclass(frozen=True, slots=True)
class Kill:
    """To the first process."""

    life: int


@dataclass(frozen=True, slots=True)
class Ended:
    """From the first process: a copy has, as waitid tells it; or, with `failed`, it could not be made."""

    life: int
    code: int = 0
    status: int = 0
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """From a copy, before all else: from now on a deadline counts."""


@dataclass(frozen=True, slots=True)
class Start:
    """To a copy, as the two that follow: each is the environment's method of that name."""

    task: Task
    seed: int


@dataclass(frozen=True, slots=True)
class Step:
    action: str


@dataclass(frozen=True, slots=True)
class Cut:
    unheard: str


@dataclass(frozen=True, slots=True)
class Failed:
    """From a copy: its environment raised, or broke its contract."""

    said: str
    broken: bool


Asked = Start | Step | Cut


def method_of(asked: Asked) -> str:
    """Its name."""
    return type(asked).__name__.lower()


def main() -> None:
    """Entry of the first process: `argv` holds the socket's file descriptor and the parent's process id."""
    link = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(link.fileno(), False)
    parent = int(sys.argv[2])
    end_with(parent, signal.SIGKILL)
    inbox = bytearray()
    setup: Setup = receive(link, inbox)
    confine(setup.memory_gib)
    try:
        with importing():
            registry.load(list(setup.plugins))
            environment: Environment = registry.build("environments", setup.kind, setup.options)
            declared = environment_declaration(environment, f"environment {setup.kind!r}")
            if "numpy" in sys.modules:
                importlib.import_module("numpy.random")  # which it loads when it is first used, and then unseeded
        ready = frame(Ready(declared))
    except BaseException as error:
        link.sendall(frame(Ready(failed=str(error) if isinstance(error, RlkitError) else tail(error))))
        return
    _Nursery(link, inbox, setup, environment, declared).serve(parent, ready)


@dataclass(slots=True)
class _Nursery:
    link: socket.socket
    inbox: bytearray
    setup: Setup
    environment: Environment
    declared: EnvironmentDeclaration
    lives: dict[int, int] = field(default_factory=dict)
    """By process id."""
    files: list[int] = field(default_factory=list)
    """That have come, and belong to the next fork."""

    def serve(self, parent: int, ready: bytes) -> NoReturn:
        """Until the parent closes the link, or ends."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        bell, clapper = os.pipe()
        for end in (bell, clapper):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(clapper, warn_on_full_buffer=False)
        adopt()
        own = set(_children())  # what the plugins started when they were imported
        try:
            # Not killed, so that what copies have started can still be ended.
            end_with(parent, signal.SIGTERM)
            self.link.sendall(ready)
            look_at = float("inf")
            while True:
                wait = max(0.0, look_at - time.monotonic()) if look_at < float("inf") else None
                heard = select.select([self.link.fileno(), bell], [], [], wait)[0]
                if bell in heard:
                    with contextlib.suppress(BlockingIOError):
                        os.read(bell, 4096)
                if self._reap():
                    look_at = min(look_at, time.monotonic() + _LOOK_S)
                if time.monotonic() >= look_at:
                    look_at = float("inf")
                    _kill(set(_children()) - own - self.lives.keys())
                if self.link.fileno() in heard and not self._hear((bell, clapper)):
                    break
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._end_all()
            os._exit(0)

    def _hear(self, bells: tuple[int, int]) -> bool:
        try:
            # One call never gives the files of two messages.
            data, files, _, _ = socket.recv_fds(self.link, 2**16, 2)
        except OSError:
            return False
        self.inbox += data
        self.files += files
        while (message := unframe(self.inbox)) is not None:
            if isinstance(message, Kill):
                for process in [process for process, life in self.lives.items() if life == message.life]:
                    _kill_group(process)
            else:
                line, out, self.files = self.files[0], self.files[1], self.files[2:]
                self._fork(message.life, line, out, bells)
        return bool(data)

    def _fork(self, life: int, line: int, out: int, bells: tuple[int, int]) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()  # or each copy would print it
        ours = os.getpid()
        try:
            process = os.fork()
        except OSError as error:
            self.link.sendall(frame(Ended(life, failed=str(error))))
        else:
            if process == 0:
                try:
                    signal.set_wakeup_fd(-1)
                    for end in bells:
                        os.close(end)
                    self.link.close()
                    _live(ours, line, out, self.setup, self.environment, self.declared)
                except BaseException as error:
                    os.write(2, tail(error).encode())
                    os._exit(1)
                finally:
                    os._exit(0)
            self.lives[process] = life
        os.close(line)
        os.close(out)

    def _reap(self) -> bool:
        """Take leave of children that have ended, and say so of the copies; True: there were any."""
        found = False
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return found
            if ended is None:
                return found
            found = True
            life = self.lives.pop(ended.si_pid, None)
            if life is not None:
                _kill_group(ended.si_pid)  # while its id is still taken
            os.waitpid(ended.si_pid, 0)
            if life is not None:
                with contextlib.suppress(OSError):
                    self.link.sendall(frame(Ended(life, ended.si_code, ended.si_status)))

    def _end_all(self) -> None:
        for process in self.lives:
            _kill_group(process)
        until = time.monotonic() + _LEFTOVERS_S
        while time.monotonic() < until:
            self._reap()
            left = set(_children())
            if not left:
                return
            _kill(left)
            time.sleep(0.01)


def _kill_group(leader: int) -> None:
    for kill in (os.killpg, os.kill):  # a copy that has just begun leads no group yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(leader, signal.SIGKILL)


def _kill(processes: set[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)


def _children() -> list[int]:
    """Of this process, those among them that it has adopted; zombies too."""
    here, found = os.getpid(), []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path("/proc", entry, "stat").read_text(errors="replace")
                if int(stat.rpartition(")")[2].split()[1]) == here:
                    found.append(int(entry))
    return found


def _live(
    parent: int, line: int, out: int, setup: Setup, environment: Environment, declared: EnvironmentDeclaration
) -> None:
    """A copy, from its first moment until the trainer hangs up."""
    os.setsid()
    adopt()
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    end_with(parent, signal.SIGKILL)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.close(out)
    os.set_inheritable(line, False)
    link, inbox = socket.socket(fileno=line), bytearray()
    copy = _Copy(link, os.getpid(), setup, environment, declared)
    copy.send(Begun())
    while (asked := receive(link, inbox)) is not None:
        copy.send(copy.answer(asked))


@dataclass(slots=True)
class _Copy:
    link: socket.socket
    owner: int
    setup: Setup
    environment: Environment
    declared: EnvironmentDeclaration
    total: float = 0.0
    """Rewards so far."""
    runner: asyncio.Runner | None = None
    """One event loop for its life, so that what an async method keeps open stays usable."""

    def answer(self, asked: Asked) -> Observation | Failed:
        where = f"environment {self.setup.kind!r}: {method_of(asked)}"
        with watched(self.setup.timeout_s):
            try:
                returned = self._returned(asked)
            except MemoryError:
                raise
            except BaseException as error:
                return Failed(f"{where} raised:\n{tail(error)[-4000:]}", broken=False)
            try:
                return self._checked(asked, returned, where)
            except PluginError as error:
                return Failed(str(error), broken=True)
            except MemoryError:
                raise
            except BaseException as error:  # from a class of the user's that was looked into
                return Failed(f"{where} returned what cannot be read:\n{tail(error)[-4000:]}", broken=True)

    def _returned(self, asked: Asked) -> object:
        environment: Any = self.environment  # not all have `cut`
        match asked:
            case Start(task, seed):
                _seed(seed)
                return self._called(environment.start, task, seed)
            case Step(action):
                return self._called(environment.step, action)
            case Cut(unheard):
                return self._called(environment.cut, unheard)

    def _checked(self, asked: Asked, returned: object, where: str) -> Observation:
        found = observed(returned, where)
        if isinstance(asked, Start) and (found.done or found.reward is not None):
            what = "over" if found.done else "rewarded"
            raise PluginError(f"{where} says that all is {what} before the model has acted")
        self.total += found.reward or 0.0
        if found.done or isinstance(asked, Cut):
            within(self.total, self.declared.range, where)
        return found

    def _called(self, method: Callable[..., Any], *arguments: Any) -> object:
        returned = method(*arguments)
        if not inspect.isawaitable(returned):
            return returned
        self.runner = self.runner or asyncio.Runner()
        return self.runner.run(_awaited(returned))

    def send(self, message: object) -> None:
        if os.getpid() != self.owner:  # a child that the environment forked, and that came back from it
            os._exit(0)
        try:
            self.link.sendall(frame(message))
        except OSError:
            os._exit(HUNG_UP)


async def _awaited(returned: Any) -> object:
    return await returned


def _seed(seed: int) -> None:
    """The generators that an environment may draw from without knowing of its seed."""
    random.seed(seed)
    if (numpys := sys.modules.get("numpy.random")) is not None:
        numpys.seed(seed % 2**32)
