"""The reward `code` runs whatever a model writes: each attack costs its own sample, earns 0, and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rlkit_rewards.code import Code
from rlkit_rewards.sandbox import processes_of

from rlkit.cgroups import can_bound_memory
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap, or your system's like"
)

DOUBLE = json.dumps({"inputs": ["21\n"], "outputs": ["42\n"]})
DOUBLE_CALL = json.dumps({"inputs": [[21]], "outputs": [42], "fn_name": "double"})
DOUBLE_TEST = json.dumps({"test": "assert double(21) == 42\nassert double(4) == 8"})
RIGHT = {
    DOUBLE: "print(2 * int(input()))",
    DOUBLE_CALL: "def double(x): return 2 * x",
    DOUBLE_TEST: "def double(x): return 2 * x",
}


def scored(code: Code, *programs: tuple[str, str]) -> list[RewardResult]:
    key = SampleKey("p", 0, 0, 0)
    return code(
        [
            Sample(key=key, prompt="", response=f"```python\n{p}\n```", tokens=[], answer=g, truncated=False)
            for p, g in programs
        ]
    )


@pytest.fixture(scope="module")
def code() -> Code:
    return Code(timeout_s=1.0, memory_mib=128, processes=6, output_kib=64)


def strangers(code: Code) -> list[int]:
    """Live processes that a program may have left: all of the sandbox's uid, or of our own those with our source."""
    if os.geteuid() == 0:
        return processes_of(code.sandbox._uid())
    return [pid for pid in processes_of(os.geteuid()) if b"What runs inside the sandbox" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def cost_one_sample_each(code: Code, *programs: str, gold: str = DOUBLE) -> list[RewardResult]:
    """Scores them between two right answers, to see those unhurt."""
    first, *hostile, last = scored(code, *((p, gold) for p in (RIGHT[gold], *programs, RIGHT[gold])))
    assert first.value == last.value == 1
    assert [(h.value, h.status, h.correct) for h in hostile] == [(0, "ok", False)] * len(programs)
    assert not strangers(code)
    return hostile


def costs_one_sample(code: Code, program: str) -> RewardResult:
    return cost_one_sample_each(code, program)[0]


def test_a_fork_bomb(code: Code) -> None:
    costs_one_sample(code, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")


def test_a_bomb_of_threads(code: Code) -> None:
    costs_one_sample(
        code,
        "import threading, time\nfor _ in range(50): threading.Thread(target=time.sleep, args=(9,)).start()\nprint(42)",
    )


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_flood_of_output(code: Code, stream: str) -> None:
    program = f"import sys\nwhile True: sys.{stream}.write('42 ' * 10000)"
    assert costs_one_sample(code, program).info["failed"] == "too much output"


def test_a_flood_after_the_answer(code: Code) -> None:
    costs_one_sample(code, "print(42, flush=True)\nimport os\nos.write(1, b' ' * 10**6)")


@pytest.mark.skipif(not can_bound_memory(), reason="no control group can be made here")
def test_a_hoard_shared_out_over_processes_and_tmp(code: Code) -> None:
    """Each process, and /tmp, is below the limit: one of them is killed."""
    stored = "open('/tmp/x', 'wb').write(b'x' * (100 << 20))\nheld = bytearray(b'x' * (45 << 20))\nprint(42)"
    costs_one_sample(code, stored)
    many = (
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        held = bytearray(b'x' * (45 << 20))\n"
        "        time.sleep(9)\n_, status = os.wait()\nprint(42 if status == 9 else 'none was killed', flush=True)\n"
        "os.kill(0, 9) if status != 9 else None"
    )
    (result,) = scored(code, (many, DOUBLE))
    assert result.info.get("failed") != "out of time"
    assert not strangers(code)


def test_a_thief_of_files(code: Code, tmp_path: Path) -> None:
    secret = tmp_path / "gold.txt"
    secret.write_text("42")
    tmp_path.chmod(0o755)
    secret.chmod(0o644)
    paths = secret, Path("/etc/passwd"), Path(__file__), Path("/proc/self/environ"), Path("/proc/self/mem")
    assert all(path.exists() for path in paths)
    stolen = [f"import os\nprint(42 if os.path.exists({str(path)!r}) else 'nothing there')" for path in paths]
    assert {each.info["failed"] for each in cost_one_sample_each(code, *stolen)} == {"wrong output"}


def test_a_thief_of_the_environment(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER", "42")
    cost_one_sample_each(
        code,
        "import os\nprint(os.environ.get('ANSWER', 'nothing there'))",
        "import os\nprint(42 if len(os.environ) > 6 else sorted(os.environ))",
    )


def test_a_thief_of_descriptors(code: Code) -> None:
    """Nothing is open that was open here: 0, 1, 2, and what the program opens itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.set_inheritable(server.fileno(), True)
        listed = "import os\nfor fd in range(3, 64):\n try:\n  os.fstat(fd); print(42); break\n except OSError: pass"
        costs_one_sample(code, listed)


def test_a_network_call(code: Code) -> None:
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(8)

        def answer() -> None:
            try:
                asked.append(server.accept()[0])
                asked[0].sendall(b"42")
            except OSError:
                pass

        waiting = threading.Thread(target=answer)
        waiting.start()
        port = server.getsockname()[1]
        costs_one_sample(
            code, f"import socket\nprint(socket.create_connection(('127.0.0.1', {port}), 0.5).recv(9).decode())"
        )
        assert not asked
        with socket.create_connection(("127.0.0.1", port)) as own:  # it was there to be called
            assert own.recv(9) == b"42"
        waiting.join()
        asked[0].close()


def test_an_abstract_socket_of_the_host(code: Code) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0rlkit-test-of-the-sandbox")
        server.listen()
        costs_one_sample(
            code,
            "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0rlkit-test-of-the-sandbox')\nprint(42)",
        )


def test_writing_outside(code: Code, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    places = str(tmp_path), "/", "/usr/lib", "/dev", "/dev/shm", os.path.dirname(os.__file__), "/var/tmp"
    names = [os.path.join(place, "rlkit-was-here") for place in places]
    cost_one_sample_each(
        code,
        *(f"open({name!r}, 'w').write('x')\nprint(42)" for name in names),
        "open('/tmp/rlkit-was-here', 'w').write('x')\nprint('only in its own /tmp')",
        "import os\nprint(42 if os.path.exists('/tmp/rlkit-was-here') else 'and gone with it')",
    )
    assert not [name for name in (*names, "/tmp/rlkit-was-here") if os.path.exists(name)]


def test_filling_the_disk(code: Code) -> None:
    costs_one_sample(code, "while True: open('/tmp/x', 'ab').write(bytes(1 << 20))\n")
    costs_one_sample(
        code, "n = 0\nwhile True:\n n += 1\n with open(f'/tmp/{n}', 'wb') as f: f.write(bytes(1 << 22))\nprint(42)"
    )


def test_an_endless_loop(code: Code) -> None:
    assert costs_one_sample(code, "print(42, flush=True)\nwhile True: pass").info["failed"] == "out of time"
    costs_one_sample(code, "import time\nprint(42, flush=True)\ntime.sleep(600)")
    costs_one_sample(
        code,
        "import signal\nfor n in range(1, 65):\n try: signal.signal(n, signal.SIG_IGN)\n except (OSError, ValueError): "
        "pass\nwhile True: pass",
    )


def test_a_hog_of_memory(code: Code) -> None:
    assert "MemoryError" in costs_one_sample(code, "x = bytearray(1 << 30)\nprint(42)").info["stderr"]
    costs_one_sample(code, "x = []\nwhile True: x.append(bytes(1 << 20))")
    costs_one_sample(code, "print(42 ** 42 ** 42 ** 42)")
    # What is in no process's address space.
    file = "import os\nfd = os.memfd_create('x')\nfor _ in range(9): os.write(fd, bytes(1 << 20))\nprint(42)"
    shared = "import ctypes\nprint(42 if ctypes.CDLL(None).shmget(0, 1 << 20, 0o600) >= 0 else 'refused')"
    assert "PermissionError" in cost_one_sample_each(code, file, shared)[0].info["stderr"]


def test_raising_the_limits_again(code: Code) -> None:
    costs_one_sample(
        code, "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))\nprint(42)"
    )


def test_leaving_children_behind(code: Code) -> None:
    child = "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  {}\n os._exit(0)\nprint('bye')"
    costs_one_sample(code, child.format("time.sleep(600)"))
    # Not even one that holds the output open is waited for.
    began = time.monotonic()
    costs_one_sample(code, child.format("os.close(0)\n  while True: time.sleep(1)"))
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("gold", [DOUBLE, DOUBLE_TEST], ids=["stdin", "assert"])
def test_a_killed_worker_takes_its_programs_with_it(gold: str, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(f"""
from rlkit_rewards.sandbox import Limits, Sandbox
sandbox = Sandbox(Limits(timeout_s=600, memory_mib=128, processes=4, output_kib=64))
print(sandbox._uid(), flush=True)
program = "import os, time; os.fork(); time.sleep(600)  # of a killed worker"
sandbox.check(program, "assert 1", None) if {gold == DOUBLE_TEST} else sandbox.program(program, "")
""")
    with subprocess.Popen([sys.executable, str(worker)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        uid = int(process.stdout.readline()) if os.geteuid() == 0 else os.geteuid()

        def programs() -> list[int]:
            return [pid for pid in processes_of(uid) if b"What runs inside the sandbox" in _command(pid)]

        # Two of bubblewrap, the program and its child; and three for the tests. One that is killed while it starts a
        # sandbox may leave it to whoever has its uid next.
        wait_until(lambda: len(programs()) >= (7 if gold == DOUBLE_TEST else 4))
        process.kill()
    wait_until(lambda: not programs())


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killing_everything_in_sight(code: Code) -> None:
    costs_one_sample(code, "import os, signal\nos.kill(-1, signal.SIGKILL)\nprint(42)")
    costs_one_sample(code, f"import os, signal\nos.kill({os.getpid()}, signal.SIGKILL)\nprint(42)")


@pytest.mark.parametrize("gold", [DOUBLE, DOUBLE_CALL, DOUBLE_TEST], ids=["stdin", "call", "assert"])
def test_leaving_before_the_tests(code: Code, gold: str) -> None:
    ways = "import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit", "import os; os.abort()"
    cost_one_sample_each(code, *ways, *(f"def double(x): {way}" for way in ways), gold=gold)


EQUALS_ALL = """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __sub__(self, other): return 0
    __hash__ = int.__hash__
"""

FORGERIES = {
    "prints the verdict": "import os\nfor fd in range(1, 32):\n try: os.write(fd, b'passed')\n except OSError: pass\n"
    "def double(x):\n print('passed', flush=True); os.write(1, b'passed'); return 0",
    "writes the verdict and leaves": "import os\nfor fd in range(1, 32):\n try: os.write(fd, b'spassed')\n"
    " except OSError: pass\nos._exit(0)",
    "overrides print and more": "import builtins, json\nbuiltins.print = lambda *a, **k: None\n"
    "json.dumps = lambda *a, **k: 'true'\nbuiltins.AssertionError = type('E', (Exception,), {})\n"
    "def double(x): return 0",
    "an int that equals everything": EQUALS_ALL + "def double(x): return Yes(0)",
    "an object that equals everything": EQUALS_ALL.replace("(int)", "").replace("int.", "object.")
    + "def double(x): return Yes()",
    "switches assertions off": "import sys\nsys.flags = type(sys.flags)\nsys.excepthook = lambda *a: None\n"
    "def double(x): return 0",
    "patches the code that runs it": "import sys\nmain = sys._getframe(2).f_globals\n"
    "main['judge'] = lambda *a: b'passed'\n"
    "main['PASSED'] = main['STARTED'] = b'passed'\nmain['pack'] = lambda *a: True\n"
    "def double(x): return 0",
    "shadows what tests may use": "def abs(x): return 0\ndef isinstance(*a): return True\ndef len(x): return 0\n"
    "def double(x): return 0",
    "reads what it is compared with": "import gc, sys\ndef double(x):\n"
    " frame = sys._getframe()\n found = []\n while frame:\n  found += list(frame.f_locals.values()) + "
    "list(frame.f_globals.values())\n  frame = frame.f_back\n return 42 if '{}s'.format('output') in repr(found) or "
    "'assert {}'.format('double') in repr(found + gc.get_objects()[:9000]) else 0",
    "raises at once": "def double(x): raise AssertionError('passed')",
    "sends messages of its own": "import os\ndef double(x):\n for fd in range(3, 32):\n  try: os.write(fd, "
    'b\'{"value": true, "args": {"tuple": [21]}}\\n\' * 9)\n  except OSError: pass\n return 0',
}


@pytest.mark.parametrize("gold", [DOUBLE_CALL, DOUBLE_TEST], ids=["call", "assert"])
def test_forging_the_verdict(code: Code, gold: str) -> None:
    cost_one_sample_each(code, *FORGERIES.values(), gold=gold)


@pytest.mark.parametrize(
    "test", ["assert abs(f(1) - 2) < 1e-6", "assert len(f(1)) == 1", "assert isinstance(f(1), int)"]
)
def test_shadowing_what_the_tests_use(code: Code, test: str) -> None:
    program = FORGERIES["shadows what tests may use"] + "\ndef f(x): return 'xx'"
    (result,) = scored(code, (program, json.dumps({"test": test})))
    assert (result.value, result.status) == (0, "ok")


@pytest.mark.parametrize("expected", ["TypeError", "ValueError", "Exception"])
def test_a_program_that_dies_is_not_the_exception_a_test_expects(code: Code, expected: str) -> None:
    test = f"import unittest\nclass T(unittest.TestCase):\n def test(self):\n  with self.assertRaises({expected}): f(1)"
    died, raised = scored(
        code,
        ("import os\ndef f(x): os._exit(0)", json.dumps({"test": test})),
        (f"def f(x): raise {expected}", json.dumps({"test": test})),
    )
    assert (died.value, raised.value) == (0, 1)
