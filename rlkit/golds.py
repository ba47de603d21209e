"""Golds as data hold them, and as text. Needs no torch and no numpy: verifiers read them in worker processes."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from rlkit.errors import ConfigError


def gold_cell(value: Any) -> Any:
    """A gold cell as functions see it; None for what is no gold: NaN, as tables have it for an empty cell, is none."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(value, (float, Decimal)) and value != value else value


def gold_text(value: Any, where: str) -> str:
    """A gold cell as text: text, numbers and dates as they are written, a list of one as that one, other lists and
    dicts as JSON, and nothing as "". ConfigError for anything else."""
    value = gold_cell(value)
    if isinstance(value, (list, tuple)):
        value = [each for each in map(gold_cell, value) if each is not None]
        if len(value) <= 1:
            return gold_text(value[0], where) if value else ""
    if isinstance(value, (list, Mapping)):
        try:
            return json.dumps(value, ensure_ascii=False, default=_json_of)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: a gold of which some part is neither text nor number: {error}") from error
    if value is None:
        return ""
    if isinstance(value, (str, int, float)):
        return str(value)
    try:
        return str(_json_of(value))
    except TypeError as error:
        raise ConfigError(f"{where}: {error}: {str(value)[:60]}. Set another column") from error


def _json_of(value: Any) -> Any:
    """What JSON does not know and tables hold: decimals in full, dates, arrays. TypeError for anything else."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"expected text, a number, or a list or dict of them, got {type(value).__name__}")
