"""Errors and warnings for who calls rlkit from Python: they name arguments and methods where those of the shell name
options."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from rlkit.errors import RlkitError

_HERE = str(Path(__file__).parents[1])


def _setting(match: re.Match[str]) -> str:
    """`-s key=value` as an entry of `settings`."""
    key, text = match["quoted"] or match["bare"], match["text"] or match["word"]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:  # what a person typed
        value = text
    said = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value).replace("'", '"')
    return f'settings={{"{key}": {said}}}'


_SAID: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"`rlkit (?:run|sweep) --resume (\S+?)(?: --(?:jobs|nproc) \d+)?`", '`exist="resume"`'),
    (r"`rlkit report (\S+)`", r'`rlkit.Run("\1").report()`'),
    (r"--resume(?: (?!or |and )[\w./-]*/[\w./-]+)?", 'exist="resume"'),
    (r"-s '?steps=(\d+)'?", r"steps=\1"),
    (r"-s '(?P<quoted>[\w.@]+)=(?P<text>[^']+)'|-s (?P<bare>[\w.@]+)=(?P<word>[^\s'`]*[^\s'`,.;:)])", _setting),
    (r"--tune ([\w.]+)=([\w.,-]+)", r'tune={"\1": [\2]}'),
    (r"--steps (\d+)-(\d+)", r"steps=(\1, \2)"),
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
    """What rlkit raises or warns of within on purpose keeps its type, and says what to do in Python."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *more: Any, **named: Any) -> None:
        if category is UserWarning and filename.startswith(_HERE):
            message = category(in_python(str(message)))
        shown(message, category, filename, *more, **named)

    warnings.showwarning = show
    try:
        yield
    except RlkitError as error:
        error.args = (in_python(str(error)), *error.args[1:])
        raise
    finally:
        warnings.showwarning = shown
