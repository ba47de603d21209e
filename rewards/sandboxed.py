"""What runs inside the sandbox, standard library only: `python -c SOURCE FD` with the task as JSON in FD.

`program` runs an answer as a script. `call` runs it as a module and reports what one of its functions returns.
`cells` runs what comes through a socket, one piece after another, in one module, as a notebook does.
`serve` runs it as a module and lets the other end of a socket use it. `check` is that other end: it runs the
gold's tests, in a sandbox of its own, so that an answer shares no process with the code that judges it. Only plain
data crosses. An object of any other type stays where it is, stands behind a `Remote`, and cannot be compared: else
an answer could return something that equals everything.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import io
import json
import os
import resource
import socket
import sys
import types
from typing import Any

STARTED = b"s"
PASSED = b"passed"
BAD_TEST = b"bad test: "


def limit(spec: dict[str, Any]) -> None:
    size = spec["memory_bytes"]
    for what, value in (
        (resource.RLIMIT_AS, size),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NPROC, spec["processes"]),
        (resource.RLIMIT_CPU, spec["cpu_s"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        if value is not None:
            resource.setrlimit(what, (value, value))
    sys.set_int_max_str_digits(0)


def run(text: str, name: str) -> dict[str, Any]:
    """The names that a program defines."""
    module = sys.modules[name] = types.ModuleType(name)
    sys.argv = ["program.py"]
    exec(compile(text, "program.py", "exec"), module.__dict__)
    return module.__dict__


def private_output() -> int:
    """The descriptor of standard output, which from now on goes nowhere."""
    private, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return private


def call(spec: dict[str, Any]) -> None:
    out = private_output()
    names = run(spec["program"], "solution")
    name = spec["function"]
    function = names[name] if name in names else getattr(names["Solution"](), name)
    text = json.dumps(function(*spec["arguments"])).encode()
    while text:
        text = text[os.write(out, text) :]
    os._exit(0)


class Gone(BaseException):
    """The answer's process ended. No Exception: a test that expects one must not take it for it."""


class NotPlain(BaseException):
    """A test compared or computed with an object of the answer's own making."""


class BadTest(BaseException):
    """A test asks for what cannot be done here, whatever the answer."""


class Peer:
    """One JSON document a line, both ways."""

    def __init__(self, fd: int, longest: int) -> None:
        self.lines = socket.socket(fileno=fd).makefile("rwb", buffering=io.DEFAULT_BUFFER_SIZE)
        self.longest = longest

    def send(self, message: Any) -> None:
        self.lines.write(json.dumps(message).encode() + b"\n")
        self.lines.flush()

    def receive(self) -> Any:
        line = self.lines.readline(self.longest)
        if not line.endswith(b"\n"):
            raise Gone("the program ended, or sent too much")
        return json.loads(line)


def pack(value: Any, other: Any) -> Any:
    """Plain data as JSON that keeps the type; `other` is asked about everything else."""
    if value is None or value is True or value is False:
        return value
    scalars: Any = ((int, int.__int__), (float, float.__float__), (str, str.__str__))
    for kind, exact in scalars:
        if isinstance(value, kind):
            return exact(value)
    for many in (list, tuple, set, frozenset):
        if isinstance(value, many):
            return {many.__name__: [pack(item, other) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(k, other), pack(v, other)] for k, v in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"object": other(value)}


def unpack(value: Any, other: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "object":
        return other(inner)
    if kind == "dict":
        return {unpack(k, other): unpack(v, other) for k, v in inner}
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "complex":
        return complex(*inner)
    kinds: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return kinds[kind](unpack(item, other) for item in inner)


def serve(spec: dict[str, Any]) -> None:
    private_output()
    peer = Peer(spec["socket"], spec["longest"])
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    names = run(spec["program"], "solution")
    shown = {name: pack(value, keep) for name, value in names.items() if not isinstance(value, types.ModuleType)}
    modules = [name for name, value in names.items() if isinstance(value, types.ModuleType)]
    peer.send({"names": shown, "modules": modules})
    while True:
        try:
            wanted = peer.receive()
        except Gone:  # the tests are done
            os._exit(0)
        given = unpack(wanted["args"], objects.__getitem__)
        options = unpack(wanted["kwargs"], objects.__getitem__)
        target = objects[wanted["object"]]
        try:
            if wanted["name"] is not None:
                target = getattr(target, wanted["name"])
            value = target(*given, **options) if wanted["call"] else target
            peer.send({"value": pack(value, keep), "args": pack(given, keep)})
        except Exception as error:
            peer.send({"raised": [kind.__name__ for kind in type(error).__mro__], "text": str(error)[:1000]})


def refuse(self: Any, *_: Any) -> Any:
    raise NotPlain("a test compares an object of the program's own type: only plain data can be compared")


class Remote:
    """An object of the answer's: it can be called, read, indexed and gone through; what it gives is plain data."""

    __slots__ = ("_ask", "_object")
    _ask: Any
    _object: int

    def __init__(self, ask: Any, number: int) -> None:
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_object", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask(self, None, True, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask(self, name, False, (), {})

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask(self, "__setattr__", True, (name, value), {})

    __hash__ = object.__hash__


def _asking(name: str) -> Any:
    def method(self: Remote, *args: Any) -> Any:
        try:
            return self._ask(self, name, True, args, {})
        except AttributeError as error:
            raise TypeError(str(error)) from error

    return method


for _name in ("len", "getitem", "setitem", "delitem", "iter", "next", "str", "repr"):
    setattr(Remote, f"__{_name}__", _asking(f"__{_name}__"))
for _name in ("bool", "eq", "ne", "lt", "le", "gt", "ge", "contains"):
    setattr(Remote, f"__{_name}__", refuse)


def asker(peer: Peer) -> Any:
    def number(value: Any) -> int:
        if type(value) is not Remote:
            raise BadTest(f"a test passes a {type(value).__name__} to the program: only plain data can be passed")
        return value._object

    def remote(at: int) -> Remote:
        return Remote(ask, at)

    def ask(target: Remote, name: str | None, is_call: bool, args: Any, kwargs: Any) -> Any:
        given = pack(args, number)
        message = {"object": target._object, "name": name, "call": is_call, "args": given}
        peer.send({**message, "kwargs": pack(kwargs, number)})
        reply = peer.receive()
        if "raised" in reply:
            raise exception(reply["raised"], reply["text"])
        if reply["args"] != given:
            for mine, changed in zip(args, unpack(reply["args"], remote), strict=True):
                if type(mine) is type(changed) is list:
                    mine[:] = changed
                elif type(mine) is type(changed) and type(mine) in (dict, set):
                    mine.clear()
                    mine.update(changed)
        return unpack(reply["value"], remote)

    return ask


def exception(kinds: list[str], text: str) -> Exception:
    """The nearest of Python's own kinds, since the answer's are not known here."""
    for name in kinds:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError and its like want more
                continue
    return Exception(text)


def check(spec: dict[str, Any]) -> None:
    out = private_output()
    os.write(out, judge(spec))
    os._exit(0)


def judge(spec: dict[str, Any]) -> bytes:
    try:
        peer = Peer(spec["socket"], spec["longest"])
        offered = peer.receive()
        ask = asker(peer)
        names = {
            name: unpack(value, lambda at: Remote(ask, at))
            for name, value in offered["names"].items()
            if not name.startswith("__") and not hasattr(builtins, name)
        }
        for name in offered["modules"]:
            if name in sys.stdlib_module_names:
                names[name] = importlib.import_module(name)
        run_tests(spec["test"], spec["entry_point"], names)
    except BadTest as error:
        return BAD_TEST + str(error).encode()
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}".encode(errors="replace")
    return PASSED


class Counted(ast.NodeTransformer):
    """Notes each assertion that holds: tests that reach none prove nothing."""

    NAME = "__held__"

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        return [node, *ast.parse(f"globals()['{self.NAME}'].append(None)").body]


def run_tests(test: str, entry_point: str | None, names: dict[str, Any]) -> None:
    """Statements, then pytest's `test_*` functions, unittest's classes, and HumanEval's `check(candidate)`."""
    solution: Any = types.ModuleType("solution")
    solution.__dict__.update(names)
    sys.modules["solution"] = solution
    module = types.ModuleType("tests")
    module.__dict__.update(names)
    held: list[None] = []
    module.__dict__[Counted.NAME] = held
    exec(compile(ast.fix_missing_locations(Counted().visit(ast.parse(test))), "tests.py", "exec"), module.__dict__)
    own = {k: v for k, v in module.__dict__.items() if k not in names or v is not names[k]}
    for name, value in own.items():
        if name.startswith("test") and isinstance(value, types.FunctionType):
            value()
    if entry_point is not None and "check" in own:
        own["check"](eval(entry_point, module.__dict__))
    import unittest

    for value in own.values():
        if isinstance(value, type) and issubclass(value, unittest.TestCase):
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(value).run(result)
            if not result.wasSuccessful() or not result.testsRun or result.skipped:
                faults = [text for _, text in result.failures + result.errors]
                raise AssertionError(faults[0][-250:] if faults else "a test was skipped, or the class has none")
            held.append(None)
    if not held:
        raise AssertionError("no assertion was reached")


def cells(spec: dict[str, Any]) -> None:
    os.dup2(1, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    peer, here = Peer(spec["socket"], spec["longest"]), os.getpid()
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    while True:
        try:
            cell = peer.receive()
        except Gone:  # no more come
            os._exit(0)
        # Of each cell alone, and for what one leaves running as well.
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + spec["cell_cpu_s"]
        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (seconds if most < 0 else min(seconds, most), most))
        fault = run_cell(cell, module.__dict__)
        if os.getpid() != here:  # a process that the cell has started, and not ended
            os._exit(0)
        peer.send({"fault": fault})


def run_cell(cell: str, names: dict[str, Any]) -> str | None:
    """Run it and print the value of its last expression. What was raised, and in which line; None: nothing."""
    try:
        tree = ast.parse(cell, "<cell>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
            if value is not None:
                print(repr(value))
        sys.stdout.flush()
    except SyntaxError as error:
        return raised(error, error.msg, error.lineno)
    except SystemExit as error:
        return f"SystemExit: {error.code}" if error.code else None
    except BaseException as error:
        line, step = None, error.__traceback__
        while step is not None:
            line = step.tb_lineno if step.tb_frame.f_code.co_filename == "<cell>" else line
            step = step.tb_next
        try:
            sys.stdout.flush()
            return raised(error, str(error), line)
        except BaseException:
            return raised(error, "", line)
    return None


def raised(error: BaseException, text: str, line: int | None) -> str:
    said = f"{type(error).__name__}: {text[:1000]}" if text else type(error).__name__
    return said if line is None else f"{said} (line {line})"


def main() -> None:
    with open(int(sys.argv[1])) as file:
        spec = json.load(file)
    limit(spec)
    os.write(1, STARTED)
    if spec["kind"] == "program":
        run(spec["program"], "__main__")
    else:
        {"call": call, "cells": cells, "serve": serve, "check": check}[spec["kind"]](spec)


if __name__ == "__main__":
    main()
