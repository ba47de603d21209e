"""Control groups of Linux: a bound on the memory of all processes of a program together. Needs no torch."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LIMITS = ("memory.max", "memory.limit_in_bytes")
"""Of version 2 and of version 1, the same below."""
_SWAP = ("memory.swap.max", "memory.memsw.limit_in_bytes")
_NAME = "rlkit-"
_PATIENCE_S = 1.0
_TRIED = 64 << 20

_count = itertools.count()


@dataclass(frozen=True)
class Group:
    """A group of this process's own making. What is started in it stays in it, and so does what that starts."""

    folder: Path

    def join(self) -> None:
        """Move this process in: for the `preexec_fn` of a new one. OSError where it may not."""
        file = os.open(self.folder / "cgroup.procs", os.O_WRONLY)
        try:
            os.write(file, b"0")  # the one that writes
        finally:
            os.close(file)

    def close(self) -> None:
        """Remove it; its processes have ended, or are about to."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    return  # it is removed by whoever makes the next one
                time.sleep(0.005)
            else:
                return


def memory_group(limit: int) -> Group | None:
    """A group whose processes have so many bytes together, what they write to a tmpfs included; past that the kernel
    kills one of them, or all. None where this process may make none."""
    place = _place()
    return None if place is None else _made(place, limit)


def can_bound_memory() -> bool:
    """Whether `memory_group` makes one here."""
    return _place() is not None


@functools.cache
def _place() -> Path | None:
    """The first folder in which a group can be made, bounded and joined: this process's own group, or one above."""
    for place in _candidates():
        group = _made(place, _TRIED)
        if group is None:
            continue
        try:
            subprocess.run(["true"], preexec_fn=group.join, capture_output=True, check=True)
            return place
        except (OSError, subprocess.SubprocessError):
            continue
        finally:
            group.close()
    return None


def _made(place: Path, limit: int) -> Group | None:
    _remove_left(place)
    folder = place / f"{_NAME}{os.getpid()}-{next(_count)}"
    try:
        folder.mkdir()
    except OSError:
        return None
    group = Group(folder)
    bound = any(_write(folder / name, limit) for name in _LIMITS)
    if not bound:
        group.close()
        return None
    # Version 2 counts swap by itself, version 1 memory and swap together.
    _write(folder / _SWAP[0], 0)
    _write(folder / _SWAP[1], limit)
    _write(folder / "memory.oom.group", 1)
    return group


def _write(file: Path, number: int) -> bool:
    """Whether there is such a file, and it has taken the number."""
    if not file.exists():
        return False
    with contextlib.suppress(OSError):
        file.write_text(str(number))
        return True
    return False


def _remove_left(place: Path) -> None:
    """Groups of processes that were killed before they could."""
    for folder in place.glob(f"{_NAME}*-*"):
        maker = folder.name.removeprefix(_NAME).partition("-")[0]
        if maker.isdecimal() and not Path("/proc", maker).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def _candidates() -> Iterator[Path]:
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:  # no Linux
        return
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        if kind not in ("cgroup", "cgroup2") or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        for _, controllers, path in own:
            if (controllers == "") if kind == "cgroup2" else ("memory" in controllers.split(",")):
                inner = path.removeprefix(root) if path.startswith(root) else ""
                here = Path(point, inner.lstrip("/"))
                yield from (each for each in (here, *here.parents) if each.is_relative_to(point))
