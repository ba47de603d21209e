"""What an environment answers, checked: a fault in it is named, and cannot pass."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit import blame
from rlkit.errors import PluginError
from rlkit.interfaces.environments import Observation, Said
from rlkit.scoring.checks import finite, plain, shown

ALLOWED = "text or an rlkit.Observation"
LARGEST = 2**20
"""Bytes of an answer."""
COUNTED = ("turns", "cut", "cut_turns")
"""Of all trajectories: metrics that no environment counts."""


def observed(returned: object, where: str) -> Observation:
    """What an environment returned as an Observation of plain data.

    Raises PluginError, opening with `where`, for anything else.
    """
    if isinstance(returned, str):
        returned = Observation(text=returned)
    if not isinstance(returned, Observation):
        forgot = ": does it end with `return ...`?" if returned is None else ""
        raise PluginError(f"{where} returned {blame.shown(returned)}; it must return {ALLOWED}{forgot}")
    reward = plain(returned.reward)
    if reward is not None and (isinstance(reward, bool) or not finite(reward)):
        raise PluginError(f"{where}: its reward is {shown(reward)}; it must be a finite number, or None for no reward")
    done, correct = plain(returned.done), plain(returned.correct)
    if not isinstance(done, bool):
        raise PluginError(f"{where}: done is {shown(done)}; it must be True or False")
    if correct is not None and not isinstance(correct, bool):
        raise PluginError(f"{where}: correct is {shown(correct)}; it must be True, False, or None where it is not said")
    found = Observation(
        text=_said(returned.text, where),
        reward=None if reward is None else float(reward),
        done=done,
        correct=correct,
        counts=_counts(returned.counts, where),
        info=_data(returned.info, f"{where}: info"),
    )
    if not isinstance(found.info, dict):
        raise PluginError(f"{where}: info is {shown(returned.info)}; it must be a dict")
    if (size := len(pickle.dumps(found))) > LARGEST:
        raise PluginError(
            f"{where}: an answer of {size:,} bytes, of which {LARGEST:,} are allowed; cut its text, and keep less in "
            "info"
        )
    return found


def within(total: float, declared: tuple[float, float] | None, where: str) -> None:
    """PluginError where the rewards of a whole trajectory add up to what the environment declares impossible."""
    if declared is None:
        return
    low, high = declared
    if not (low <= total <= high or any(math.isclose(total, end, rel_tol=1e-6, abs_tol=1e-6) for end in declared)):
        raise PluginError(
            f"{where}: its rewards add up to {total:g}, outside the range {declared} that it declares for their sum"
        )


def _said(text: object, where: str) -> Said:
    if isinstance(text, str):
        return _readable(text, where)
    messages = _data(text, f"{where}: text")
    if not isinstance(messages, list):
        raise PluginError(f"{where}: its text is {shown(text)}; it must be text, or a list of chat messages")
    for message in messages:
        sound = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not sound or not isinstance(message.get("content"), str | list):
            raise PluginError(
                f"{where}: its text holds {shown(message)}, which is no chat message; each is a dict with `role` and "
                '`content`, as {"role": "user", "content": "Go on."}'
            )
    return messages


def _readable(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PluginError(
            f"{where}: what it says holds half a character ({text[error.start]!a}), which no model can read; replace "
            'it, as text.encode(errors="replace").decode() does'
        ) from error
    return str.__str__(text)


def _counts(counts: object, where: str) -> dict[str, float]:
    if not isinstance(counts, Mapping):
        raise PluginError(f'{where}: counts are {shown(counts)}; they must be a dict, as {{"tool_calls": 1}}')
    found: dict[str, float] = {}
    for name, value in counts.items():
        if not isinstance(name, str) or not name:
            raise PluginError(f"{where}: counts hold the name {shown(name)}; names must be text")
        if name in COUNTED:
            raise PluginError(
                f"{where}: counts hold {name!r}, which rlkit counts itself and logs as environment/{name}: give yours "
                "another name"
            )
        if not finite(number := plain(value)):
            raise PluginError(f"{where}: count {name!r} is {shown(number)}; counts must be finite numbers")
        found[name] = float(number)
    return found


def _data(value: object, where: str) -> Any:
    """As plain data, whatever stood for it; PluginError, opening with `where`, for what cannot."""
    try:
        return _plain(value, where)
    except RecursionError as error:
        raise PluginError(f"{where} holds itself, or is nested too deep; keep plain data") from error


def _plain(value: object, where: str) -> Any:
    value = plain(value)
    # Of a class of the user's, such as an enumeration's, the trainer may know nothing.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, str):
        return _readable(value, where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise PluginError(f"{where} holds the key {shown(wrong[0])}; keys must be text")
        return {key: _plain(inner, where) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(inner, where) for inner in value]
    raise PluginError(
        f"{where} holds {shown(value)}, which is no plain data; keep text, numbers, True, False, None, and lists and "
        "dicts of these"
    )
