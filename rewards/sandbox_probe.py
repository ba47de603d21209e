"""The test that a sandbox passes before anything is run in it: attempts to get out, and past each limit."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import tempfile
import warnings

from rlkit.cgroups import can_bound_memory
from rlkit.errors import ConfigError

from .sandbox import INSTALL, Limits, Sandbox, SandboxError, no_more_namespaces

_PROBE = """
import ctypes, json, os, socket, sys, time
asked, faults = json.load(sys.stdin), []
for path in asked["hidden"]:
    if os.path.exists(path):
        faults.append(f"it sees {path}")
for path in ["/", "/dev", "/usr", "/usr/lib", os.path.dirname(os.__file__)]:
    try:
        open(os.path.join(path, "rlkit-probe"), "w")
        faults.append(f"it can write in {path}")
    except OSError:
        pass
if set(os.environ) - {"PATH", "HOME", "LANG", "PWD", "LC_CTYPE"}:
    faults.append("it sees the environment")
if os.getuid() == 0:
    faults.append("it is root")
try:
    socket.create_connection(("127.0.0.1", asked["port"]), 0.5)
    faults.append("it reaches the network")
except OSError:
    pass
try:
    os.kill(asked["pid"], 0)
    faults.append("it sees processes outside")
except OSError:
    pass
if asked["closed"] and ctypes.CDLL(None).unshare(0x10000000) == 0:
    faults.append("it can make namespaces of its own")
for name, *args in (("memfd_create", b"x", 0), ("shmget", 0, 4096, 0o600)):
    if getattr(ctypes.CDLL(None), name)(*args) >= 0:
        faults.append(f"it can call {name}")
try:
    bytearray(asked["memory"])
    faults.append("its memory has no limit")
except MemoryError:
    pass
for _ in range(asked["processes"]):
    try:
        if os.fork() == 0:
            time.sleep(600)
    except OSError:
        break
else:
    faults.append("its processes have no limit")
print(json.dumps(faults))
"""


def tried_out(limits: Limits, *, unsafe: bool, where: str) -> Sandbox:
    """A sandbox that has passed the test; `unsafe`: none, untested. `where` opens what is said of limits that cannot be
    had here. ConfigError where it does not hold."""
    sandbox = Sandbox(limits, unsafe=unsafe)
    if not unsafe:
        self_test(sandbox)
        if not can_bound_memory():
            warnings.warn(
                f"{where}: no control group can be made here, so a program's processes may hold {limits.processes} "
                f"times {limits.memory_mib} MiB together: see `rlkit doctor`",
                stacklevel=3,
            )
    return sandbox


def self_test(sandbox: Sandbox) -> None:
    """Try to get out of the sandbox, and past each limit. ConfigError where anything succeeds, or nothing runs."""
    quick = Sandbox(dataclasses.replace(sandbox.limits, timeout_s=0.3, output_kib=16))
    patient = Sandbox(dataclasses.replace(sandbox.limits, timeout_s=10.0, output_kib=64))
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.NamedTemporaryFile() as file:
        asked = {
            "hidden": [file.name, "/etc/passwd", "/proc/self/environ", "/home", "/var", "/sys"],
            "port": server.getsockname()[1],
            "pid": os.getpid(),
            "closed": bool(no_more_namespaces()),
            "memory": (sandbox.limits.memory_mib << 20) + 1,
            "processes": sandbox.limits.processes,
        }
        try:
            probe = patient.program(_PROBE, json.dumps(asked))
            loop = quick.program("while True: pass", "")
            flood = patient.program("while True: print('x' * 4096)", "")
            checked = patient.check("def f(x): return [x]", "assert f(1) == [1]", None)
        except SandboxError as error:
            raise ConfigError(f"the sandbox for programs does not work here: {error}. {INSTALL}") from error
    faults = [f"a probe ended with {probe}"] if probe.end != "exit" or probe.code else json.loads(probe.output)
    if loop.end != "time":
        faults.append("an endless loop was not stopped")
    if flood.end != "output":
        faults.append("a flood of output was not stopped")
    if checked.output != b"passed":
        faults.append(f"a right program does not pass: {checked}")
    if faults:
        raise ConfigError(f"the sandbox for programs does not hold here: {'; '.join(faults)}. {INSTALL}")
