"""my_plugin: noise on rewards for rlkit. What stands here turns some rewards into the lowest one: make it yours."""

from __future__ import annotations

from rlkit import noise
from rlkit.interfaces.rewards import SampleKey
from rlkit.scoring.noise import Coin, Range


@noise("my_plugin")
class MyPlugin:
    """With probability prob makes a response's reward the lowest of its range: a verifier that misses right answers."""

    # The reward must declare its range: there is no lowest value otherwise.
    needs_range = True

    def __init__(self, *, prob: float = 0.1) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob is a probability, between 0 and 1, and not {prob}")
        self.prob = prob

    def __call__(self, value: float, key: SampleKey, coin: Coin, range: Range | None) -> float | None:
        # All chance comes from the coin: so every algorithm meets the same noise, and so does a run that is resumed.
        # shared=True is one coin for all responses to a prompt. None would take the reward away.
        assert range is not None
        lowest, _ = range
        return lowest if coin(key, shared=False) < self.prob else value
