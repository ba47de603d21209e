"""The keys of a config, as a person writes them. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORT = {
    "model": "model.path",
    "data": "data.path",
    "reward": "reward",
    "steps": "steps",
    "lr": "optimizer.lr",
    "batch": "batch.prompts_per_step",
}
"""Short name -> key: options of the commands that take settings, arguments in Python, and keys of sweeps."""


def full_name(key: str, value: Any) -> str:
    """The key that a short name stands for, with this value. A section that is given whole keeps its name."""
    values = value if isinstance(value, list) else [value]
    return key if any(isinstance(each, Mapping) for each in values) else SHORT.get(key, key)
