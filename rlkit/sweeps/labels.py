"""What runs that are compared are called: the algorithm's side, and the condition it was tried under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.config.sections import as_ref

OWN = ("algo", "advantage", "loss", "critic", "optimizer", "reference", "schedule", "correction", "batch.refill")
"""Keys and sections that are an algorithm's own affair; all others are the condition's."""


def is_own(key: str) -> bool:
    """Whether a setting (`optimizer.lr`) belongs to the algorithm and not to the condition."""
    return any(f"{key}.".startswith(f"{section}.") for section in OWN)


def settings_label(settings: Mapping[str, Any], among: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """`{algo.beta: 0.1, optimizer.lr: 1e-4}` -> `["beta=0.1", "lr=0.0001"]`; plugins by name, as in
    `reward=math+length`, each with those of its options alone that are not the same in all of `among`."""
    return [
        f"{short_key(key)}={_said(value, [each[key] for each in among if key in each])}"
        for key, value in settings.items()
    ]


def short_key(key: str) -> str:
    return key.removeprefix("algo.").removeprefix("optimizer.")


def _said(value: Any, among: Sequence[Any] = ()) -> str:
    if any(isinstance(each, Mapping) and "kind" in each for each in (value if isinstance(value, list) else [value])):
        others = [_plugins(each) for each in among]
        return "+".join(_named(which, options, others) for which, options in _plugins(value).items())
    return f"{value:g}" if isinstance(value, float) else str(value)


Plugins = dict[tuple[str, int], dict[str, Any]]
"""(A plugin's name, how often that came before) -> its options."""


def _plugins(value: Any) -> Plugins:
    """Of one plugin or a list of them, sections or bare names."""
    found: Plugins = {}
    for each in map(as_ref, value if isinstance(value, list) else [value]):
        if isinstance(each, Mapping) and (kind := each.get("kind")):
            # Of a function in a file its own name says more than that it is one.
            name = str(each.get("name", kind) if kind == "function" else kind)
            before = sum(name == other for other, _ in found)
            found[name, before] = {key: option for key, option in each.items() if key != "kind"}
    return found


def _named(which: tuple[str, int], options: Mapping[str, Any], others: Sequence[Plugins]) -> str:
    alike = [other[which] for other in others if which in other]
    shared = {key for key in options if alike and all(key in each and each[key] == options[key] for each in alike)}
    differ = [f"{key}={_said(option)}" for key, option in options.items() if key not in shared]
    return ":".join([which[0], *([",".join(differ)] if differ else [])])
