"""Errors for who calls rlkit from Python: they name arguments and methods where those of the shell name options."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from rlkit.errors import RlkitError

_SAID: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"`rlkit (?:run|sweep) --resume (\S+?)(?: --(?:jobs|nproc) \d+)?`", '`exist="resume"`'),
    (r"`rlkit report (\S+)`", r'`rlkit.Run("\1").report()`'),
    (r"--resume(?: (?!or |and )[\w./-]*/[\w./-]+)?", 'exist="resume"'),
    (r"-s '?steps=(\d+)'?", r"steps=\1"),
    (r"-s '?([\w.@]+)=\"?([^\s'\"`]+)\"?'?", r'settings={"\1": "\2"}'),
    (r"--tune ([\w.]+)=([\w.,-]+)", r'tune={"\1": [\2]}'),
    (r"--noise (\S+?)(:?)(?=\s|$)", r'noise="\1"\2'),
    (r"--suite\b", "suites="),
    (r"--metric\b", "metrics="),
    (r"--plugin\b", "plugins="),
    (r"--(?!nproc\b)([a-z]+(?:-[a-z]+)*)(?: ([A-Z]+|[\d.]+)\b)?", lambda m: f"{m[1].replace('-', '_')}={m[2] or ''}"),
]


def in_python(text: str) -> str:
    """A message that speaks of the command line's options, as it is said to who calls from Python."""
    for pattern, said in _SAID:
        text = re.sub(pattern, said, text)
    return text


@contextlib.contextmanager
def speaking_python() -> Iterator[None]:
    """What rlkit raises within on purpose keeps its type, and says what to do in Python."""
    try:
        yield
    except RlkitError as error:
        error.args = (in_python(str(error)), *error.args[1:])
        raise
