"""The system calls that a sandbox refuses."""

from __future__ import annotations

import errno
import functools
import platform
import struct

from rlkit.errors import ConfigError

# Memory that no limit counts (memfd_create, memfd_secret, shmget, msgget), and ways into the kernel or into other
# processes that no answer needs (ptrace, bpf, io_uring_setup, userfaultfd, perf_event_open, add_key, keyctl).
_REFUSED = {
    "x86_64": (0xC000003E, (319, 447, 29, 68, 101, 321, 425, 323, 298, 248, 250)),
    "aarch64": (0xC00000B7, (279, 447, 194, 186, 117, 280, 425, 282, 241, 217, 219)),
}


@functools.cache
def system_calls() -> bytes:
    """A filter in classic BPF (struct seccomp_data: number at 0, architecture at 4); what is refused gets EPERM."""
    machine = platform.machine()
    if machine not in _REFUSED:
        raise ConfigError(f"the sandbox knows {', '.join(_REFUSED)}, and this is {machine}")
    architecture, refused = _REFUSED[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),  # x32's numbers mean other calls
        (give, 0, 0, refuse),
    ]
    for number in refused:
        program += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    return b"".join(struct.pack("HBBI", *step) for step in [*program, (give, 0, 0, allow)])
