"""One at a time works in a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from rlkit.errors import ConfigError

NAME = "lock"


@contextlib.contextmanager
def alone(folder: Path, what: str, otherwise: str) -> Iterator[int]:
    """Hold the folder's lock; the folder is made where there is none.

    `what`: a run, a sweep. `otherwise`: what to do where another has it. Yields the lock's file descriptor: processes
    that inherit it hold the lock too. ConfigError where another process has it, naming it, its machine and since when;
    and where the folder cannot be made.

    On a file system of several machines (NFS, Lustre with -o flock) it holds between them. Where the file system knows
    no locks, a warning says so.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _taken(folder, what, otherwise)
    except OSError as error:
        raise ConfigError(f"cannot make the {what}'s folder {folder}: {error}. Choose another with --out") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_unused(folder: Path, made: Sequence[Path]) -> None:
    """Of a folder that this process alone holds: where nothing but the lock is in it, remove what was made for it,
    `made`, the folder first and then those that it lies in."""
    with contextlib.suppress(OSError):
        if [each.name for each in folder.iterdir()] == [NAME]:
            (folder / NAME).unlink()
            for each in made:
                each.rmdir()


def _taken(folder: Path, what: str, otherwise: str) -> int:
    """The lock's file, held, with a line in it on who holds it."""
    file = folder / NAME
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise ConfigError(f"{folder}: a {what} is at work there ({holder}). {otherwise}") from error
        except OSError as error:
            warnings.warn(
                f"{folder} is on a file system without locks ({error.strerror}): nothing keeps a second {what} from "
                "working there at the same time",
                stacklevel=4,
            )
        # Whoever had it may have removed it between the two calls above.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                break
        os.close(descriptor)
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode())
    return descriptor
