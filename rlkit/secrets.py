"""Keys, tokens and passwords: settings that hold one are refused, and what is said or noted shows none.

Settings are written to a run's folder, shown on its pages, and mirrored to trackers: what is secret stays in the
environment, and settings name the variable. Needs no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlkit.errors import SettingsError

HIDDEN = "***"

_NAME = (
    r"(?:api|access|private|secret|account)[_-]?key|(?:api|auth|access|bearer|refresh|hf|session)[_-]?token"
    r"|passw(?:or)?d|passphrase|secret|credentials?|authorization"
)
_NAMED = re.compile(rf"(?i)(?:^|.*[_.-])(?:{_NAME})")
"""Of a setting, whole: `api_key` is one, `api_key_env` and `max_tokens` are none."""
_BY_ITSELF = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16})"
)
"""Keys of known services, by how they begin."""
_IN_URL = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/@?#'\"]+@")
_IN_QUERY = re.compile(rf"(?i)([?&](?:key|token|sig|{_NAME})=)[^\s&#'\"]+")
_ASSIGNED = re.compile(rf"(?i)(\b[\w.-]*(?:{_NAME})[\"']?\s*[=:]\s*[\"']?)(?:(?:bearer|basic)\s+)?[^\s\"',;}}\]]{{4,}}")
_VARIABLE = re.compile(r"(?i).*(?:key|token|passw(?:or)?d|secret|credentials?)")
_SHORTEST = 8
"""Characters of a variable's value that is looked for in texts: a shorter one may be any word."""


def check(settings: Mapping[str, Any]) -> None:
    """SettingsError, with a sentence for each key, where settings, as plain data of any depth, hold a secret."""
    found = [
        (path, _said(".".join(path))) for path, value, named in _texts(settings) if value and _is_one(value, named)
    ]
    if found:
        raise SettingsError(found)


def hide(text: str) -> str:
    """The text without the secrets that can be told: the environment's, those in URLs, and what is said to be one."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _VARIABLE.fullmatch(name) and not value.startswith(("/", "~")):
            text = text.replace(value, HIDDEN)
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(rf"\1{HIDDEN}@", text))
    return _ASSIGNED.sub(rf"\1{HIDDEN}", _BY_ITSELF.sub(HIDDEN, text))


def _texts(value: Any, path: tuple[str, ...] = (), named: bool = False) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """Each text with its path, and whether what it stands under is called a secret."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)), named or _NAMED.fullmatch(str(key)) is not None)
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            yield from _texts(inner, (*path, str(at)), named)
    elif isinstance(value, str):
        yield path, value, named


def _is_one(text: str, named: bool) -> bool:
    return named or any(pattern.search(text) for pattern in (_BY_ITSELF, _IN_URL, _IN_QUERY))


def _said(key: str) -> str:
    return (
        f"{key!r} holds a key or a password, which would stand in the run's folder and on its pages: put it into an "
        "environment variable, and name the variable in its place (api_key_env of rlkit's own rewards and samplers; a "
        "plugin of yours can do the same)"
    )
