"""Programs against tests, in bubblewrap."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rlkit import reward
from rlkit.interfaces.rewards import RewardResult, Sample

from .sandbox import Limits, Ran, Sandbox, SandboxError
from .sandbox_probe import tried_out
from .sandboxed import BAD_TEST, PASSED

_PYTHON = ("python", "python3", "py")

Verdict = tuple[bool, str]
"""Passed, and where it did not, why."""
Test = Callable[[Sandbox, str], tuple[Verdict, Ran]]


class BadGold(ValueError):
    """Tests that cannot be read, or that no program could pass or fail here."""


@reward("code")
class Code:
    """1 where the response's program passes all of the gold's tests, run in a sandbox; else 0.

    The program is the last closed code block that is marked as Python, else the last without a language, else the
    whole response; an empty one: status `no_answer`. The gold is JSON, or Python with assertions: docs/code-reward.md
    has the forms. Tests that cannot be read, or used: `bad_gold`. Whatever a program does, its own failure has the
    value 0; `error`, without a value, is a fault of the sandbox.

    timeout_s: seconds that each test may take.
    memory_mib: MiB of address space of one process; of all together where a control group can be made.
    processes: how many a test may start, threads included.
    output_kib: KiB that a test may print.
    partial: give the share of tests passed, instead of all or nothing; the first test that runs out of time is the
        last one tried.
    unsafe_run_without_sandbox: run the programs as they are, with all that you may do.

    Building it tries the sandbox out: ConfigError where bubblewrap is missing or does not hold.
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        *,
        timeout_s: float = 2.0,
        memory_mib: int = 512,
        processes: int = 8,
        output_kib: int = 1024,
        partial: bool = False,
        unsafe_run_without_sandbox: bool = False,
    ) -> None:
        limits = Limits(timeout_s=timeout_s, memory_mib=memory_mib, processes=processes, output_kib=output_kib)
        self.partial = partial
        self.sandbox = tried_out(limits, unsafe=unsafe_run_without_sandbox, where="reward 'code'")

    def __call__(self, samples: Sequence[Sample]) -> list[RewardResult]:
        return [self._result(sample) for sample in samples]

    def _result(self, sample: Sample) -> RewardResult:
        try:
            tests = read_tests(sample.answer)
        except BadGold as error:
            return RewardResult(value=None, status="bad_gold", info={"error": str(error)})
        program = program_of(sample.response)
        if not program.strip():
            return RewardResult(value=0.0, status="no_answer")
        passed, info = 0, dict[str, str]()
        for test in tests:
            try:
                (right, reason), ran = test(self.sandbox, program)
            except BadGold as error:
                return RewardResult(value=None, status="bad_gold", info={"error": str(error)})
            except SandboxError as error:
                return RewardResult(value=None, status="error", info={"error": str(error)})
            passed += right
            if not right:
                info = info or {"failed": reason, "stderr": ran.errors[-300:]}
                if not self.partial or ran.end == "time":
                    break
        return RewardResult(
            value=passed / len(tests) if self.partial else float(passed == len(tests)),
            correct=passed == len(tests),
            info={"passed": passed, "tests": len(tests), **info},
        )


def program_of(response: str) -> str:
    blocks: list[tuple[str, str]] = []
    language: str | None = None
    fence, lines = "", list[str]()
    for line in response.splitlines():
        bare = line.strip()
        if language is None and bare.startswith("```"):
            fence = bare[: len(bare) - len(bare.lstrip("`"))]
            language, lines = bare[len(fence) :].strip().lower(), []
        elif language is not None and bare == fence:
            blocks.append((language, "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
    for wanted in (_PYTHON, ("",)):
        found = [text for language, text in blocks if language in wanted]
        if found:
            return found[-1]
    return response


def read_tests(gold: str) -> list[Test]:
    """Raises BadGold."""
    if not gold.strip():
        raise BadGold("the gold is empty: there are no tests")
    try:
        data = json.loads(gold)
    except (ValueError, RecursionError):
        return [_assertions(gold, None)]
    if isinstance(data, dict) and "test" in data:
        texts = data["test"] if isinstance(data["test"], list) else [data["test"]]
        tests = [_assertions(text, data.get("entry_point")) for text in texts]
    elif isinstance(data, dict) and isinstance(data.get("inputs"), list) and isinstance(data.get("outputs"), list):
        if len(data["inputs"]) != len(data["outputs"]):
            raise BadGold(f"{len(data['inputs'])} inputs and {len(data['outputs'])} outputs")
        pairs = zip(data["inputs"], data["outputs"], strict=True)
        name = data.get("fn_name")
        tests = [_script(i, o) if name is None else _function(str(name), i, o) for i, o in pairs]
    elif isinstance(data, list) and all(isinstance(item, str) for item in data):
        tests = [_assertions(text, None) for text in data]
    elif isinstance(data, list) and all(isinstance(item, dict) and {"input", "output"} <= set(item) for item in data):
        if any(item.get("testtype", "stdin") != "stdin" for item in data):
            raise BadGold("tests of a testtype other than stdin: write them as inputs, outputs and fn_name")
        tests = [_script(item["input"], item["output"]) for item in data]
    else:
        raise BadGold(f"tests of no known form (docs/code-reward.md): {gold[:80]!r}")
    if not tests:
        raise BadGold("the list of tests is empty")
    return tests


def _script(given: Any, wanted: Any) -> Test:
    """Standard input and what the program is to print, each a text or a list of lines."""
    stdin, expected = ("\n".join(map(str, x)) if isinstance(x, list) else str(x) for x in (given, wanted))

    def test(sandbox: Sandbox, program: str) -> tuple[Verdict, Ran]:
        ran = sandbox.program(program, stdin)
        return _verdict(ran, lambda: ran.output.decode(errors="replace").split() == expected.split()), ran

    return test


def _function(name: str, given: Any, wanted: Any) -> Test:
    """The arguments as a list, or as a text with one of them as JSON a line; the value wanted likewise."""
    if isinstance(given, str):
        try:
            arguments = [json.loads(line) for line in given.splitlines()]
            wanted = json.loads(wanted) if isinstance(wanted, str) else wanted
        except ValueError as error:
            raise BadGold(f"arguments or value of {name} are not JSON: {error}") from error
    elif isinstance(given, list):
        arguments = given
    else:
        raise BadGold(f"the arguments of {name} are a {type(given).__name__}: expected a list")

    def right(output: bytes) -> bool:
        try:
            value = json.loads(output)
            # APPS wraps some of its values in a list of one.
            return bool(value == wanted or (isinstance(wanted, list) and [value] == wanted))
        except (ValueError, RecursionError):
            return False

    def test(sandbox: Sandbox, program: str) -> tuple[Verdict, Ran]:
        ran = sandbox.call(program, name, arguments)
        return _verdict(ran, lambda: right(ran.output)), ran

    return test


def _assertions(text: Any, entry_point: Any) -> Test:
    if not isinstance(text, str) or not isinstance(entry_point, str | None):
        raise BadGold("test and entry_point must be text")
    _readable(text, entry_point)

    def test(sandbox: Sandbox, program: str) -> tuple[Verdict, Ran]:
        ran = sandbox.check(program, text, entry_point)
        if ran.end == "exit" and ran.output.startswith(BAD_TEST):
            raise BadGold(ran.output.decode(errors="replace"))
        right, reason = _verdict(ran, lambda: ran.output == PASSED)
        said = ran.output.decode(errors="replace") if ran.end == "exit" else ""
        return (right, said or reason), ran

    return test


def _readable(text: str, entry_point: str | None) -> None:
    """BadGold for tests that would fail every program, or none."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadGold(f"neither JSON nor Python: {error}") from error
    asserted = False
    for node in ast.walk(tree):
        asserted |= isinstance(node, ast.Assert)
        asserted |= isinstance(node, ast.Attribute) and node.attr.startswith("assert")
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.partition(".")[0] not in sys.stdlib_module_names | {"solution"}:
                raise BadGold(f"the tests import {name!r}: the sandbox has Python's standard library alone")
    if not asserted:
        raise BadGold("the tests assert nothing")
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test") and not node.bases:
            raise BadGold(f"class {node.name}: write it as functions test_*, or as a unittest.TestCase")
        if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test"):
            raise BadGold(f"{node.name} is async: use asyncio.run inside a plain function")
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test") and node.args.args:
            raise BadGold(f"{node.name} takes arguments: there are no fixtures here")
        if isinstance(node, ast.FunctionDef) and node.name == "check" and entry_point is None and len(tree.body) == 1:
            raise BadGold("check(candidate) without an entry_point: name what it is to be called with")


def _verdict(ran: Ran, right: Callable[[], bool]) -> Verdict:
    """Exit status 0 proves nothing by itself; any other shows that the program failed."""
    if ran.end != "exit":
        return False, {"time": "out of time", "output": "too much output"}[ran.end]
    if ran.code != 0:
        return False, f"exit status {ran.code}"
    return (True, "") if right() else (False, "wrong output")
