"""Untrusted programs in bubblewrap: no network, no files but Python's own, no environment, bounded in everything.

Each run is a set of namespaces that dies as a whole. Started by root, it also has a uid that nothing else uses, since
root's processes are not counted against a limit.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlkit.cgroups import Group, memory_group
from rlkit.errors import ConfigError, RlkitError

from .sandbox_calls import system_calls
from .sandboxed import STARTED

INSTALL = (
    "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap; Arch: pacman -S "
    "bubblewrap), or, only where an answer may do to this machine what it likes, set unsafe_run_without_sandbox: true"
)
_SOURCE = Path(__file__).with_name("sandboxed.py")
_START_S = 20.0
_END_S = 5.0
# Between the ranges that Debian and systemd give out, and mapped in containers too.
_UIDS = range(60706, 61184)
# As root, Python's files are put here, in a mount namespace of the run's own, where its uid could not reach them.
_REACHABLE = "/mnt"


class SandboxError(RlkitError):
    """A run that did not come about, or did not end: not the program's doing."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    timeout_s: float
    """From the moment the program starts, in real time."""
    memory_mib: int
    """Address space of each process, and what /tmp holds; where a control group can be made, all of it together."""
    processes: int
    """And threads, the program's first included."""
    output_kib: int
    """Standard output and standard error together."""

    def __post_init__(self) -> None:
        for name, least in (("timeout_s", 0.1), ("memory_mib", 64), ("processes", 1), ("output_kib", 1)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"the sandbox: {name} is {getattr(self, name)}; it must be at least {least}")


End = Literal["exit", "time", "output", "said"]
"""By itself, past a limit, or, of a cell, with what it said at its end."""


@dataclass(frozen=True)
class Ran:
    """How a run ended."""

    end: End
    code: int
    """Exit status; meaningless unless `end` is exit."""
    output: bytes
    errors: str
    """The end of standard error."""


@dataclass
class _Box:
    """One running sandbox."""

    process: subprocess.Popen[bytes]
    ended: int
    """pidfd of the process started here."""
    info: int
    """Where bubblewrap names the first process inside, whose end is the end of all of them; -1 without it."""
    group: Group | None
    """That bounds the memory of all processes inside together; None where none can be made."""
    output: bytearray = field(default_factory=bytearray)
    errors: bytearray = field(default_factory=bytearray)


class Sandbox:
    """Runs programs one at a time. May be pickled; each process gets a uid of its own."""

    def __init__(self, limits: Limits, *, unsafe: bool = False) -> None:
        self.limits = limits
        self.unsafe = unsafe
        self._slot: tuple[int, socket.socket, int] | None = None
        self._one_at_a_time = threading.Lock()

    def __reduce__(self) -> Any:
        return functools.partial(Sandbox, unsafe=self.unsafe), (self.limits,)

    def program(self, text: str, stdin: str) -> Ran:
        """Run a script. Raises SandboxError."""
        return self._run([({"kind": "program", "program": text}, None)], stdin)

    def call(self, text: str, function: str, arguments: list[Any]) -> Ran:
        """What a module's function, or its class Solution's method, returns: JSON as output. Raises SandboxError."""
        return self._run([({"kind": "call", "program": text, "function": function, "arguments": arguments}, None)])

    def check(self, text: str, test: str, entry_point: str | None) -> Ran:
        """Run tests against a module, each in a sandbox of its own. Output: b"passed", or what failed.

        Raises SandboxError.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            return self._run(
                [
                    ({"kind": "check", "test": test, "entry_point": entry_point}, ours),
                    ({"kind": "serve", "program": text}, theirs),
                ]
            )

    def _run(self, tasks: list[tuple[dict[str, Any], socket.socket | None]], stdin: str = "") -> Ran:
        """The first task's end is the run's."""
        boxes: list[_Box] = []
        with self._one_at_a_time:
            try:
                for spec, line in tasks:
                    boxes.append(self._start(spec, stdin, line))
                    if line is not None:
                        line.close()
                end = self._watch(boxes, self.limits.timeout_s)
            except OSError as error:
                raise SandboxError(f"the sandbox cannot be started: {error}") from error
            finally:
                self._end(boxes)
        first = boxes[0]
        errors = bytes(boxes[-1].errors[-1000:]).decode(errors="replace")
        if not _have_started(boxes):
            raise SandboxError(f"the sandbox did not start: {errors.strip() or 'it said nothing'}")
        return Ran(end, first.process.returncode, bytes(first.output[len(STARTED) :]), errors)

    def cells(self) -> Cells:
        """A program in the sandbox that runs pieces of Python one after another, in one module. Raises SandboxError."""
        return Cells(self)

    def _start(self, spec: dict[str, Any], stdin: str, line: socket.socket | None) -> _Box:
        limits = self.limits
        spec |= {
            "memory_bytes": limits.memory_mib << 20,
            "processes": None if self.unsafe else limits.processes + 1,  # bubblewrap's own is inside, too
            "cpu_s": None if spec["kind"] == "cells" else math.ceil(limits.timeout_s) + 1,
            "cell_cpu_s": math.ceil(limits.timeout_s) + 1,
            "longest": limits.output_kib << 10,
        }
        if line is not None:
            spec["socket"] = line.fileno()
        with contextlib.ExitStack() as stack:
            texts = (
                json.dumps(spec).encode(),
                stdin.encode(errors="surrogatepass"),
                b"" if self.unsafe else system_calls(),
            )
            task, given, calls = (stack.enter_context(_readable(text)) for text in texts)
            info, told = os.pipe()
            stack.callback(os.close, told)
            unused = stack.enter_context(contextlib.ExitStack())
            unused.callback(os.close, info)
            group = None if self.unsafe else memory_group(limits.memory_mib << 20)
            if group is not None:
                unused.callback(group.close)
            passed = [task, told, calls, *([line.fileno()] if line is not None else [])]
            process = subprocess.Popen(
                [*self._around(told, calls), *_python(), "-c", _SOURCE.read_text(), str(task)],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=passed,
                start_new_session=True,
                preexec_fn=None if group is None else group.join,
                cwd=tempfile.gettempdir() if self.unsafe else "/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
            )
            unused.pop_all()
        return _Box(process, os.pidfd_open(process.pid), info, group)

    def _around(self, told: int, calls: int) -> list[str]:
        if self.unsafe:
            return []
        size = str(self.limits.memory_mib << 20)
        return [
            *self._as_nobody(),
            *(bubblewrap(), "--unshare-all", "--unshare-user", *no_more_namespaces()),
            *("--die-with-parent", "--new-session", "--clearenv", "--info-fd", str(told), "--seccomp", str(calls)),
            *("--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8"),
            *_files(),
            *("--dev", "/dev", "--remount-ro", "/dev", "--size", size, "--tmpfs", "/tmp", "--remount-ro", "/"),
            *("--chdir", "/tmp", "--"),
        ]

    def _as_nobody(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        uid = str(self._uid())
        drop = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--pdeathsig", "KILL"]
        if _prefix_is_reachable():
            return drop
        mount = f'mount --bind "$0" {_REACHABLE} && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, sys.base_prefix, *drop]

    def _uid(self) -> int:
        """One that no other sandbox of this machine uses, for as long as this process lives."""
        if self._slot is None or self._slot[0] != os.getpid():
            for uid in _UIDS:
                lock = socket.socket(socket.AF_UNIX)
                try:
                    lock.bind(f"\0rlkit-sandbox-{uid}")
                except OSError:
                    lock.close()
                    continue
                self._slot = (os.getpid(), lock, uid)
                _reap(uid)  # of one that was killed while it started a program
                break
            else:
                raise SandboxError(f"all {len(_UIDS)} uids for sandboxes are in use on this machine")
        return self._slot[2]

    def _watch(self, boxes: list[_Box], timeout_s: float, line: tuple[socket.socket, bytearray] | None = None) -> End:
        """Until the first box ends, or says a line."""
        deadline, started = time.monotonic() + _START_S, False
        with selectors.DefaultSelector() as selector:
            for box in boxes:
                for stream, text in ((box.process.stdout, box.output), (box.process.stderr, box.errors)):
                    assert stream is not None
                    os.set_blocking(stream.fileno(), False)
                    selector.register(stream, selectors.EVENT_READ, text)
            selector.register(boxes[0].ended, selectors.EVENT_READ)
            said = bytearray()
            if line is not None:
                said = line[1]
                selector.register(line[0], selectors.EVENT_READ, said)
            while True:
                if not started and _have_started(boxes):
                    deadline, started = time.monotonic() + timeout_s, True
                over = False
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    if key.data is None:
                        over = True
                    elif chunk := os.read(key.fd, 1 << 16):
                        key.data.extend(chunk)
                    else:
                        selector.unregister(key.fileobj)
                if any(len(box.output) + len(box.errors) + len(said) > self.limits.output_kib << 10 for box in boxes):
                    return "output"
                if over or said.endswith(b"\n"):
                    self._drain(boxes)
                    return "exit" if over else "said"
                if started and time.monotonic() >= deadline:
                    return "time"
                if time.monotonic() >= deadline and not _have_started(boxes):
                    raise SandboxError(f"a sandbox did not start within {_START_S:g} s")

    def _drain(self, boxes: list[_Box]) -> None:
        """What was written before the end; a process left behind may still write, so no more than the limit."""
        for box in boxes:
            for stream, text in ((box.process.stdout, box.output), (box.process.stderr, box.errors)):
                assert stream is not None
                with contextlib.suppress(BlockingIOError):
                    while len(text) <= self.limits.output_kib << 10 and (chunk := os.read(stream.fileno(), 1 << 16)):
                        text.extend(chunk)

    def _end(self, boxes: list[_Box]) -> None:
        """Kill what is left and wait until nothing is. Raises SandboxError where something stays."""
        for box in boxes:
            inner = None if self.unsafe else _first_inside(box.info)
            os.close(box.info)
            if inner is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(inner, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(box.process.pid, signal.SIGKILL)
            box.process.wait()
            for stream in (box.process.stdout, box.process.stderr):
                assert stream is not None
                stream.close()
            os.close(box.ended)
            if inner is not None:
                gone = _ends(inner)
                os.close(inner)
                if not gone:
                    raise SandboxError(f"a sandbox was killed and is still there after {_END_S:g} s")
        if self._slot is not None:
            _reap(self._slot[2])
        for box in boxes:
            if box.group is not None:
                box.group.close()


class Cells:
    """A program in a sandbox that runs pieces of Python one after another, in one module."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._line, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as unused:
            unused.callback(self._line.close)
            try:
                self._box: _Box | None = sandbox._start({"kind": "cells"}, "", theirs)
            except OSError as error:
                raise SandboxError(f"the sandbox cannot be started: {error}") from error
            unused.pop_all()

    def run(self, cell: str, timeout_s: float) -> Ran:
        """One piece, of which `errors` is what it raised. Whatever its end but "said", the program is over, and so is
        what the pieces have left in it. Raises SandboxError."""
        box, said = self._box, bytearray()
        if box is None:
            raise SandboxError("the program that runs cells is over")
        del box.output[len(STARTED) :]
        end: End = "exit"
        try:
            self._line.settimeout(timeout_s)
            with contextlib.suppress(OSError):  # its end, or that it reads no more, is seen below
                self._line.sendall(json.dumps(cell).encode() + b"\n")
            end = self._sandbox._watch([box], timeout_s, (self._line, said))
        finally:
            if end != "said":
                self.close()
        if not _have_started([box]):
            raise SandboxError(f"the sandbox did not start: {box.errors[-1000:].decode(errors='replace').strip()}")
        return Ran(
            end, box.process.returncode or 0, bytes(box.output[len(STARTED) :]), _fault(said) if end == "said" else ""
        )

    def close(self) -> None:
        """End the program. Calling it twice is harmless."""
        box, self._box = self._box, None
        if box is not None:
            self._line.close()
            self._sandbox._end([box])


def _fault(said: bytearray) -> str:
    """What a cell raised; it shares its process with whoever tells this, so that anything may have been said."""
    try:
        return str(json.loads(said)["fault"] or "")[:2000]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def _have_started(boxes: list[_Box]) -> bool:
    return all(box.output.startswith(STARTED) for box in boxes)


@contextlib.contextmanager
def _readable(text: bytes) -> Iterator[int]:
    """A descriptor that can be read but not written."""
    memory = os.memfd_create("rlkit")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(text)
        reader = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    finally:
        os.close(memory)
    try:
        yield reader
    finally:
        os.close(reader)


def _first_inside(info: int) -> int | None:
    """pidfd of the first process inside; None where it never was, or is over."""
    os.set_blocking(info, False)
    try:
        return os.pidfd_open(json.loads(os.read(info, 4096))["child-pid"])
    except (BlockingIOError, ValueError, ProcessLookupError):
        return None


def _ends(process: int) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(process, selectors.EVENT_READ)
        return bool(selector.select(_END_S))


def processes_of(uid: int) -> list[int]:
    """Those that live: what has ended and only waits for this machine's init does nothing any more."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if entry.stat().st_uid == uid and _lives(int(entry.name)):
                    found.append(int(entry.name))
    return found


def _lives(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state not in "ZX"


def _reap(uid: int) -> None:
    deadline = time.monotonic() + _END_S
    while left := processes_of(uid):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise SandboxError(f"processes {left} of uid {uid} were killed and are still there after {_END_S:g} s")
        time.sleep(0.005)


def bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise ConfigError(f"programs are run in bubblewrap, and there is no bwrap on the PATH: {INSTALL}")
    return found


@functools.cache
def no_more_namespaces() -> list[str]:
    """Added in bubblewrap 0.8."""
    said = subprocess.run([bubblewrap(), "--help"], capture_output=True, text=True, check=False).stdout
    return ["--disable-userns"] if "--disable-userns" in said else []


@functools.cache
def _prefix_is_reachable() -> bool:
    prefix = Path(sys.base_prefix)
    return all(place.stat().st_mode & stat.S_IXOTH for place in (prefix, *prefix.parents))


def _python() -> list[str]:
    base: str = sys._base_executable  # type: ignore[attr-defined]
    return [str(Path(base).resolve()), "-I", "-X", "utf8"]


@functools.cache
def _files() -> list[str]:
    """Mounts of the interpreter, its library without installed packages, and the system's shared libraries."""
    library = Path(sysconfig.get_path("stdlib"))
    shared = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib").glob("libpython3*.so*")
    mounts = []
    for system in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        if os.path.islink(system):
            mounts += ["--symlink", os.readlink(system), system]
        elif os.path.isdir(system):
            mounts += ["--ro-bind", system, system]
    mounts += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    hidden = os.geteuid() == 0 and not _prefix_is_reachable()
    for path in (Path(_python()[0]), library, *shared):
        inside = hidden and path.is_relative_to(sys.base_prefix)
        source = Path(_REACHABLE, path.relative_to(sys.base_prefix)) if inside else path
        mounts += ["--ro-bind", str(source), str(path)]
    packages = library / "site-packages"
    if packages.is_dir():
        mounts += ["--tmpfs", str(packages), "--remount-ro", str(packages)]
    return mounts
