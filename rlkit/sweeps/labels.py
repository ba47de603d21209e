"""What runs that are compared are called: the algorithm's side, and the condition it was tried under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN = ("algo", "advantage", "loss", "critic", "optimizer", "reference", "schedule", "correction", "batch.refill")
"""Keys and sections that are an algorithm's own affair; all others are the condition's."""


def is_own(key: str) -> bool:
    """Whether a setting (`optimizer.lr`) belongs to the algorithm and not to the condition."""
    return any(f"{key}.".startswith(f"{section}.") for section in OWN)


def settings_label(settings: Mapping[str, Any]) -> list[str]:
    """`{algo.beta: 0.1, optimizer.lr: 1e-4}` -> `["beta=0.1", "lr=0.0001"]`."""
    return [f"{short_key(key)}={_said(value)}" for key, value in settings.items()]


def short_key(key: str) -> str:
    return key.removeprefix("algo.").removeprefix("optimizer.")


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
