"""The reward of step.py, for both sides."""

from __future__ import annotations

from collections.abc import Sequence

from rlkit import Sample, reward


def share(text: str) -> float:
    """Of digits among the text's characters: a random model meets it in part, and learns to meet it."""
    return sum(character.isdigit() for character in text) / max(1, len(text))


@reward("digits")
def digits(samples: Sequence[Sample]) -> list[float]:
    """Share of digits in the response"""
    return [share(sample.response) for sample in samples]
