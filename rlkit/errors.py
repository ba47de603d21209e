"""The errors rlkit raises on purpose. Each message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import functools
import inspect
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

EXIT_CODES = {
    0: "done",
    1: "something failed; an interrupt twice ends a run so too",
    2: "refused before it began: settings, data, the command itself; or there is nothing to do",
    3: "stopped by a health check of the config",
    4: "stalled: the stacks of all ranks are on disk",
    128 + signal.SIGHUP: "ended by SIGHUP, its terminal gone, with all saved",
    128 + signal.SIGINT: "ended by SIGINT, an interrupt, with all saved",
    128 + signal.SIGTERM: "ended by SIGTERM, as a cluster sends it, with all saved",
}
"""What the command line says of how it ended, and so what a script may go by: see docs/exit-codes.md."""
TOLD_TO_END = {code - 128 for code in EXIT_CODES if code > 128}
"""Numbers of the signals that ask for an end with all saved."""


class RlkitError(Exception):
    """Something a user can mend. The command line prints the message alone and exits with `exit_code`."""

    exit_code = 1


class ConfigError(RlkitError):
    """A setting that cannot be: found before a model is loaded."""

    exit_code = 2


class SettingsError(ConfigError):
    """Settings that cannot be: for each key, its path and the sentence on it."""

    def __init__(self, mistakes: Sequence[tuple[Sequence[str], str]]) -> None:
        super().__init__("\n".join(said for _, said in mistakes))
        self.mistakes = mistakes


class TokensUnknownError(ConfigError):
    """A reward reads the tokens of responses of which only the text is known."""


class StoppedError(RlkitError):
    """A signal has ended what was to go on, and all that was done is saved in `folder`. `by`: its number."""

    def __init__(self, said: str, folder: Path, by: int) -> None:
        super().__init__(said)
        self.folder = folder
        self.exit_code = 128 + by


class DroppedError(BaseException):
    """The step in hand is dropped, since the run must end sooner: what is saved is the step before. No Exception, since
    it passes through plugins' code."""


class NotFiniteError(RlkitError):
    """A loss or a gradient that is not finite. The step was not made. `samples`: the keys of those to blame, as far as
    they are known."""

    def __init__(self, message: str, samples: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.samples = samples


class UnhealthyError(RlkitError):
    """A health check of the config has ended the run, with all saved."""

    exit_code = 3


class DiskError(RlkitError):
    """A file of the run's that cannot be written."""


class StaleWeightsError(RlkitError):
    """The sampler does not compute what the trainer does with its weights. All ranks raise it alike."""


class LostRankError(RlkitError):
    """Another rank of the run has ended, or does not come."""


class StalledError(LostRankError):
    """No sign of life has come for longer than the run waits."""

    exit_code = 4


class PluginError(RlkitError):
    """A plugin's code raised, or did not give what its contract asks for. What it raised is the cause."""


class PluginLoadError(PluginError, ConfigError):
    """A plugin that cannot be imported or made: found before a model is loaded."""


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'a' or 'b'?" for the known names nearest to `word`, else a list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "; known: " + ", ".join(names) if names else ""


def origin(thing: Any) -> str:
    """Where a function, or the class of an object, was written: module:name and file, with the line of a function."""
    inner = inspect.unwrap(thing)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    inner = inner if hasattr(inner, "__qualname__") else type(inner)
    code = getattr(inner, "__code__", None)
    module = module_of(inner)
    file = code.co_filename if code else getattr(sys.modules.get(module), "__file__", "?")
    line = f":{code.co_firstlineno}" if code else ""
    return f"{module}:{inner.__qualname__} ({file}{line})"


def module_of(thing: Any) -> str:
    """The name of the module in which a function, or the class of an object, was written."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    # Methods of built-in types say None, or nothing.
    return getattr(thing, "__module__", None) or "builtins"
