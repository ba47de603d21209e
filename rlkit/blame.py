"""Whose fault it is: a plugin's code that raises, or gives what it must not, is named in one sentence."""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from rlkit.errors import PluginError, PluginLoadError, RlkitError
from rlkit.secrets import hide

DEBUG = "RLKIT_DEBUG"
"""Set in the environment, so that workers, ranks and a sweep's runs have it too: nothing is left out of a traceback."""

_HERE = str(Path(__file__).parent)


def debugging() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")


@dataclass(frozen=True, slots=True)
class Blame:
    """A part of a plugin that is about to be called: `with blame: ...` makes a sentence of what it raises."""

    plugin: str
    """What opens the sentence: `algorithm 'mine'`."""
    part: str
    """What of it is called: `its advantage`."""
    code: object
    """The function, or an object with `__call__`."""
    error: type[PluginError] = PluginError

    def fault(self, said: str, line: int | None = None) -> PluginError:
        """The error that says it; `line` of the part's file, else the one where the part begins."""
        code = code_of(self.code)
        where = place(code.co_filename, line or code.co_firstlineno) if code else ""
        return self.error(f"{self.plugin}{where and f', {where}'}: {self.part} {said}")

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        """RlkitErrors pass: they are sentences. So does what is none of the plugin's doing: memory that is out."""
        if not isinstance(raised, Exception) or isinstance(raised, RlkitError) or _out_of_memory(raised):
            return
        code = code_of(self.code)
        frame = _last_frame(raised, code.co_filename if code else None)
        if frame is None:
            raise self.fault(f"raised {named(raised)}") from raised
        raise self.error(
            f"{self.plugin}, {place(frame.filename, frame.lineno)}: {self.part} raised {named(raised)}{source(frame)}"
        ) from raised


@contextmanager
def importing_plugin(what: str, file: str | None) -> Iterator[None]:
    """`what` is being imported, from `file` where that is known. Raises PluginLoadError; RlkitErrors pass."""
    try:
        yield
    except RlkitError:
        raise
    except Exception as raised:
        if isinstance(raised, SyntaxError) and raised.filename:
            where = place(raised.filename, raised.lineno)
            raise PluginLoadError(
                f"{what} failed to import: {where}: {type(raised).__name__}: {raised.msg}"
                + (f"\n    {raised.text.strip()}" if raised.text else "")
            ) from raised
        frame = _last_frame(raised, file)
        where = f"{place(frame.filename, frame.lineno)}: " if frame else ""
        raise PluginLoadError(
            f"{what} failed to import: {where}{named(raised)}{source(frame) if frame else ''}"
        ) from raised


def named(error: BaseException) -> str:
    """Its type and its text, whole."""
    # A KeyError shows its text in quotes.
    text = error.args[0] if isinstance(error, KeyError) and " " in str(error) else error
    return f"{type(error).__name__}: {text}" if str(text) else type(error).__name__


def tail(error: BaseException) -> str:
    """The exception with its last frames, without this package's own; with all of them where one debugs."""
    if debugging():
        return hide("".join(traceback.format_exception(error)).rstrip())
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None and frame.tb_frame.f_code.co_filename.startswith(_HERE):
        frame = frame.tb_next
    return hide("".join(traceback.format_exception(type(error), error, frame, limit=-3)).rstrip())


def shown(value: object) -> str:
    """What it is, for "returned ...": None, or its type and how it begins."""
    if value is None:
        return "None"
    text = " ".join(str(value).split())
    return f"{type(value).__name__} ({text[:60]}{'...' if len(text) > 60 else ''})"


def place(file: str, line: int | None = None) -> str:
    """`mine.py:14`, seen from the working directory where the file lies in it."""
    path = Path(file)
    with_folder = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{with_folder}:{line}" if line else str(with_folder)


def source(frame: traceback.FrameSummary) -> str:
    """The frame's line of code, on a line of its own."""
    text = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"\n    {text}" if text else ""


def code_of(thing: object) -> CodeType | None:
    """The code that runs where `thing` is called; None for built-in functions."""
    inner: Any = inspect.unwrap(thing)  # type: ignore[arg-type]
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    called = inner.__init__ if inspect.isclass(inner) else vars(type(inner)).get("__call__")
    for each in (inner, called):
        if isinstance(code := getattr(each, "__code__", None), CodeType):
            return code
    return None


def _last_frame(error: BaseException, file: str | None) -> traceback.FrameSummary | None:
    """The last one in `file`; where none is, or no file is known, the last one that is not this package's or Python's
    own machinery of imports."""
    frames = traceback.extract_tb(error.__traceback__)
    within = [frame for frame in frames if file is not None and frame.filename == file]
    foreign = [frame for frame in frames if not frame.filename.startswith(_HERE) and "importlib" not in frame.filename]
    found = within or foreign
    return found[-1] if found else None


def _out_of_memory(error: BaseException) -> bool:
    # torch's is an error of its own on a GPU, and a RuntimeError that names the allocator on a CPU.
    return type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "DefaultCPUAllocator" in str(error)
