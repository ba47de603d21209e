"""Which programs the reward `code` passes, and which golds it can use."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rlkit_rewards import sandbox, sandbox_probe
from rlkit_rewards.code import BadGold, Code, program_of, read_tests

from rlkit import registry
from rlkit.errors import ConfigError
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap, or your system's like"
)


def score(code: Code, program: str, gold: object) -> RewardResult:
    gold = gold if isinstance(gold, str) else json.dumps(gold)
    key = SampleKey("p", 0, 0, 0)
    (result,) = code([Sample(key=key, prompt="", response=program, tokens=[], answer=gold, truncated=False)])
    return result


@pytest.fixture(scope="module")
def code() -> Code:
    return Code(timeout_s=2.0, memory_mib=128)


@pytest.fixture(scope="module")
def partial() -> Code:
    return Code(timeout_s=1.0, partial=True)


STACK = "class Stack:\n def __init__(self): self.x = []\n def push(self, v): self.x.append(v)\n def pop(self): "
STACK += "return self.x.pop()\n def __len__(self): return len(self.x)"

RIGHT = [
    ("print(sum(map(int, input().split())))", {"inputs": ["1 2 3"], "outputs": ["6\n"]}),
    ("import sys\nfor l in sys.stdin: print(l.strip()[::-1])", {"inputs": [["ab", "cd"]], "outputs": [["ba", "dc"]]}),
    ("print('a ', '\\n\\nb')", [{"input": "", "output": "a\nb"}]),
    ("print('é', 2 ** 20000 % 7)\nexit()", [{"input": "", "output": "é 4", "testtype": "stdin"}]),
    ("if __name__ == '__main__':\n print(7)", {"inputs": [""], "outputs": ["7"]}),
    ("def add(a, b): return a + b", {"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [3, [[1, 2]]]}),
    ("class Solution:\n def add(self, a, b): return a + b", {"fn_name": "add", "inputs": ["1\n2"], "outputs": ["3"]}),
    ("def f(): return (1, 'x', None)", {"fn_name": "f", "inputs": [[]], "outputs": [[1, "x", None]]}),
    ("def add(a, b): return a + b", "assert add(1, 2) == 3"),
    ("def add(a, b): return a + b", ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"]),
    (
        "def both(x): return {(1, b'y'): {x, 2.5}, None: [frozenset({1})], 'c': 1j}",
        {"test": "assert both(1) == {(1, b'y'): {1, 2.5}, None: [frozenset({1})], 'c': 1j}"},
    ),
    ("def tup(): return (1, 2)", {"test": "assert tup() == (1, 2) and tup() != [1, 2]"}),
    ("def f(x): return x + 1", {"test": "def check(candidate):\n assert candidate(1) == 2", "entry_point": "f"}),
    (
        "class Solution:\n def f(self, x): return x + 1",
        {"test": "def check(candidate):\n assert candidate(x=1) == 2", "entry_point": "Solution().f"},
    ),
    ("def f(x): return x + 1", {"test": "from solution import f\ndef test_f():\n assert f(1) == 2"}),
    (
        "def f(x): return [x][1]",
        {
            "test": "import unittest\nclass T(unittest.TestCase):\n def test(self):\n"
            "  with self.assertRaises(IndexError): f(1)"
        },
    ),
    (STACK, {"test": "s = Stack()\ns.push(3)\ns.push([1])\nassert len(s) == 2 and s.pop() == [1] and s.pop() == 3"}),
    ("def up(n):\n yield from range(n)", {"test": "assert list(up(3)) == [0, 1, 2] and sum(up(4)) == 6"}),
    ("def sort(x): x.sort()", {"test": "x = [2, 1]\nassert sort(x) is None\nassert x == [1, 2]"}),
    ("import math\ndef area(r): return math.pi * r", {"test": "assert math.isclose(area(1), math.pi)"}),
    ("LIMIT = 3\ndef f(): print('noise'); return LIMIT", {"test": "assert f() == LIMIT == 3"}),
    (
        "class E(ValueError): pass\ndef f(): raise E('no')",
        "try:\n f()\n assert False\nexcept ValueError as e:\n assert str(e) == 'no'",
    ),
]


@needs_bubblewrap
@pytest.mark.parametrize(("program", "gold"), RIGHT)
def test_right_programs(code: Code, program: str, gold: Any) -> None:
    result = score(code, f"Here it is:\n```python\n{program}\n```\nDone.", gold)
    assert (result.value, result.status, result.correct) == (1, "ok", True), result.info


WRONG = [
    ("print(5)", {"inputs": ["", ""], "outputs": ["5", "6"]}, "wrong output"),
    ("print(5)\nraise ValueError('late')", {"inputs": [""], "outputs": ["5"]}, "exit status 1"),
    ("print(5", {"inputs": [""], "outputs": ["5"]}, "exit status 1"),
    ("print('12')", {"inputs": [""], "outputs": ["1 2"]}, "wrong output"),
    ("I cannot write it.", {"inputs": [""], "outputs": [""]}, "exit status 1"),
    ("def g(x): return 1", {"fn_name": "f", "inputs": [[1]], "outputs": [1]}, "exit status 1"),
    ("def f(x): return '1'", {"fn_name": "f", "inputs": [[1]], "outputs": [1]}, "wrong output"),
    ("def f(x): return object()", {"fn_name": "f", "inputs": [[1]], "outputs": [1]}, "exit status 1"),
    ("def f(x): return x", "assert f(1) == 2", "AssertionError: "),
    ("def g(x): return x", "assert f(1) == 2", "NameError: name 'f' is not defined"),
    ("def f(x): return []", "for a in f(1):\n assert a == 1", "AssertionError: no assertion was reached"),
    ("def f(x): return object()", "assert f(1)", "NotPlain: a test compares"),
    (
        "def f(x): return x",
        "import unittest\nclass T(unittest.TestCase):\n def test(self): self.assertEqual(f(1), 2)",
        "1 != 2",
    ),
]


@needs_bubblewrap
@pytest.mark.parametrize(("program", "gold", "reason"), WRONG)
def test_wrong_programs(code: Code, program: str, gold: Any, reason: str) -> None:
    result = score(code, program, gold)
    assert (result.value, result.status, result.correct) == (0, "ok", False)
    assert reason in result.info["failed"]


@needs_bubblewrap
def test_partial_gives_the_share_and_stops_where_time_runs_out(partial: Code) -> None:
    gold = {"inputs": ["1", "2", "3", "4"], "outputs": ["1", "2", "3", "4"]}
    most = score(partial, "x = int(input())\nprint(x if x != 2 else 0)", gold)
    assert (most.value, most.correct, most.info["passed"]) == (0.75, False, 3)
    slow = score(partial, "x = int(input())\nwhile x == 2: pass\nprint(x)", gold)
    assert (slow.value, slow.correct) == (0.25, False)
    assert score(partial, "print(input())", gold).correct


@needs_bubblewrap
def test_no_answer_and_unusable_golds(code: Code) -> None:
    assert score(code, " \n", "assert f()").status == "no_answer"
    assert score(code, "```python\n\n```", "assert f()").status == "no_answer"
    assert (score(code, "x = 1", "").status, score(code, "x = 1", "").value) == ("bad_gold", None)
    callback = score(code, "def f(g): return g(1)", "assert f(lambda x: x) == 1")
    assert (callback.status, callback.value) == ("bad_gold", None)
    assert "passes a function" in callback.info["error"]


@pytest.mark.parametrize(
    "gold",
    [
        "",
        "no tests",
        "[]",
        "{}",
        "7",
        '{"inputs": ["1"], "outputs": []}',
        '{"inputs": [], "outputs": []}',
        '{"fn_name": "f", "inputs": ["x"], "outputs": ["1"]}',
        '{"fn_name": "f", "inputs": [1], "outputs": [1]}',
        '[{"input": "1", "output": "1", "testtype": "functional"}]',
        '{"test": "f(1)"}',
        '{"test": 3}',
        '{"test": "import numpy\\nassert f(1)"}',
        "def test_f(fixture):\n assert f(fixture)",
        "async def test_f():\n assert f(1)",
        "class TestF:\n def test(self):\n  assert f(1)",
        "def check(candidate):\n assert candidate(1)",
        "[" * 100_000,
    ],
)
def test_golds_that_cannot_be_used(gold: str) -> None:
    with pytest.raises(BadGold):
        read_tests(gold)


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1", "x = 1"),
        ("```python\na\n```\nbetter:\n```python\nb\n```", "b"),
        ("```python\na\n```\nIt prints\n```\n42\n```", "a"),
        ("```cpp\nint\n```\n```\na\n```", "a"),
        ("```py\na\n```\n```cpp\nint\n```", "a"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("```Python3\r\na\r\nb\r\n```", "a\nb"),
        ("```python\na\n```\n```python\ncut off", "a"),
        ("- item\n  ```python\n  a\n  ```", "  a"),
    ],
)
def test_the_program_of_a_response(response: str, program: str) -> None:
    assert program_of(response) == program


def test_without_bubblewrap_it_refuses_and_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="apt-get install bubblewrap"):
        registry.build("rewards", "code", {})


@pytest.mark.parametrize("option", [{"timeout_s": 0}, {"memory_mib": 1}, {"processes": 0}, {"output_kib": -1}])
def test_limits_that_are_none(option: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        registry.build("rewards", "code", option)


@needs_bubblewrap
@pytest.mark.parametrize(
    ("flag", "left_out", "fault"),
    [
        ("--unshare-all", "--unshare-pid", "reaches the network"),
        ("--ro-bind /usr/lib", "--ro-bind / /host --ro-bind /etc /etc --ro-bind /usr/lib", "sees /etc/passwd"),
        ("--remount-ro /dev", "", "can write in /dev"),
        ("--seccomp", "--sync-fd", "can call memfd_create"),
    ],
)
def test_the_self_test_sees_a_sandbox_that_leaks(
    flag: str, left_out: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bwrap that leaves out a part of what it is asked for."""
    script = f"""import os, sys
words = " ".join(sys.argv[1:sys.argv.index("--")]).replace({flag!r}, {left_out!r}, 1).split()
os.execv({shutil.which("bwrap")!r}, ["bwrap", *words, *sys.argv[sys.argv.index("--"):]])
"""
    limits = sandbox.Limits(timeout_s=2, memory_mib=128, processes=4, output_kib=64)
    with tempfile.TemporaryDirectory() as folder:  # pytest's are its user's alone
        weak = Path(folder, "bwrap")
        weak.write_text(f"#!/usr/bin/env python3\n{script}")
        for place in (weak.parent, weak):
            place.chmod(0o755)
        monkeypatch.setattr(sandbox, "bubblewrap", lambda: str(weak))
        with pytest.raises(ConfigError, match=fault):
            sandbox_probe.self_test(sandbox.Sandbox(limits))


@needs_bubblewrap
def test_it_can_be_sent_to_another_process(code: Code) -> None:
    again = pickle.loads(pickle.dumps(code))
    assert score(again, "print(1)", {"inputs": [""], "outputs": ["1"]}).value == 1
    assert score(code, "print(1)", {"inputs": [""], "outputs": ["1"]}).value == 1


def test_the_unsafe_mode_runs_programs_here() -> None:
    bare = Code(timeout_s=1.0, unsafe_run_without_sandbox=True)
    assert score(bare, "print(input())", {"inputs": ["7"], "outputs": ["7"]}).value == 1
    assert score(bare, "while True: pass", {"inputs": ["7"], "outputs": ["7"]}).value == 0
    assert score(bare, "def f(x): return x", "assert f(1) == 1").value == 1
