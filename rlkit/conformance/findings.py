"""What a check is, and what it finds of a plugin: sentences for people."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rlkit.registry import Plugin


class ConformanceError(AssertionError):
    """A plugin does not keep its contract. The text is a sentence for each check that failed."""


class Broken(Exception):
    """A check has failed: what was found, and on which input."""


class LeftOut(Exception):
    """A check cannot be made, and why."""


@dataclass(frozen=True, slots=True)
class Check:
    says: str
    """What holds where it passes."""
    run: Callable[[], str | None]
    """Raises Broken or LeftOut; what it returns is said behind the sentence."""
    first: bool = False
    """Where it fails, the others cannot be made."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found. Neither `wrong` nor `left_out`: it passed."""

    says: str
    note: str = ""
    wrong: str = ""
    left_out: str = ""
    ends: bool = False
    """The checks that would come after it were not made."""


def made(checks: Iterable[Check], plugin: Plugin, begins: Callable[[str], object] = str) -> Iterator[Finding]:
    """Make the checks one after the other. What the plugin raises is a finding, with the line of the plugin's file.

    `begins` is told of each before it is made.
    """
    for check in checks:
        begins(check.says)
        finding = _made(check, plugin)
        if check.first and (finding.wrong or finding.left_out):
            yield replace(finding, ends=True)
            return
        yield finding


def _made(check: Check, plugin: Plugin) -> Finding:
    try:
        with warnings.catch_warnings(action="ignore"):  # they are of made batches
            return Finding(check.says, note=check.run() or "")
    except Broken as error:
        return Finding(check.says, wrong=str(error))
    except LeftOut as error:
        return Finding(check.says, left_out=str(error))
    except Exception as error:
        return Finding(check.says, wrong=raised(error, plugin))


def raised(error: BaseException, plugin: Plugin) -> str:
    """ "it raised KeyError: 'x' (mine.py:12: ...)": with the last line of the plugin's own file on the way there."""
    said = f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) and error.args else error}"
    file = plugin.place[0] if plugin.place else None
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f"it raised {said}" + (f" ({_short(file)}:{lines[-1].lineno}: {lines[-1].line})" if file and lines else "")


def title(plugin: Plugin) -> str:
    """ "reward 'brief', mine.py:7"."""
    where = f"{_short(plugin.place[0])}:{plugin.place[1]}" if plugin.place else plugin.origin
    return f"{plugin.noun} {plugin.name!r}, {where}"


def _short(file: Path) -> str:
    """As seen from the working directory, where it lies there."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def shown(value: object, most: int = 60) -> str:
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
