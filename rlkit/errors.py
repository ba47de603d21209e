"""The errors rlkit raises on purpose. Each message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Iterable, Sequence
from typing import Any


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


class LostRankError(RlkitError):
    """Another rank of the run has ended, or does not come."""


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
