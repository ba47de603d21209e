"""Whatever is set beside what: two steps of the small model are made, or a sentence names the key. `tools/fuzz.py`
tries a thousand, this a few."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from fuzzed import BASE, configs
from hypothesis import Phase, given, settings
from outcomes import outcome

from rlkit.errors import ConfigError


@pytest.mark.slow
def test_any_config_runs_or_is_refused() -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=30, database=None, phases=[Phase.generate])
    @given(configs())
    def tried(config: dict[str, Any]) -> None:
        counts[outcome(config)] += 1

    tried()
    assert counts["ran"] > 0
    assert counts["refused"] > 0


def test_a_refusal_that_names_no_key_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigError("this cannot be")

    monkeypatch.setattr("rlkit.train", refuse)
    with pytest.raises(ConfigError, match="this cannot be"):
        outcome(BASE | {"seed": 7})
