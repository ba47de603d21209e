"""A reward that a random model meets in part, for tests in which something must be learnt from."""

from __future__ import annotations

from collections.abc import Sequence

from rlkit import Sample, reward


@reward("evens")
def evens(samples: Sequence[Sample]) -> list[float]:
    """Share of even digits in the response"""
    return [sum(c in "02468" for c in s.response) / max(1, len(s.response)) for s in samples]
