"""The kinds of noise that ship. Each disturbs one reward at a time; `rlkit.scoring.noise` stacks them."""

from __future__ import annotations

from statistics import NormalDist
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rlkit import noise
from rlkit.interfaces.rewards import SampleKey
from rlkit.scoring.noise import Coin, Range

Probability = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class OneProbability(Options):
    prob: Probability
    """How often."""


class ErrorRates(Options):
    false_positive: Probability
    """How often a reward in the lower half of the range, or in its middle, is flipped."""
    false_negative: Probability
    """How often one in the upper half is."""


class Spread(Options):
    std: Deviation
    """In units of the reward."""


@noise("group_flip")
class GroupFlip:
    """With probability prob flips the rewards of a whole group: one coin per prompt and step (arXiv 2606.20008)."""

    needs_range = True

    def __init__(self, config: OneProbability) -> None:
        self.prob = config.prob

    def __call__(self, value: float, key: SampleKey, coin: Coin, range: Range | None) -> float:
        return _flipped(value, range) if coin(key, shared=True) < self.prob else value


@noise("flip")
class Flip:
    """With probability prob flips a response's reward: one coin per response."""

    needs_range = True

    def __init__(self, config: OneProbability) -> None:
        self.prob = config.prob

    def __call__(self, value: float, key: SampleKey, coin: Coin, range: Range | None) -> float:
        return _flipped(value, range) if coin(key, shared=False) < self.prob else value


@noise("asymmetric")
class Asymmetric:
    """A verifier's two kinds of error, at rates of their own: one coin per response."""

    needs_range = True

    def __init__(self, config: ErrorRates) -> None:
        self.false_positive = config.false_positive
        self.false_negative = config.false_negative

    def __call__(self, value: float, key: SampleKey, coin: Coin, range: Range | None) -> float:
        flipped = _flipped(value, range)
        # A value above its own flip lies in the upper half of the range.
        prob = self.false_negative if value > flipped else self.false_positive
        return flipped if coin(key, shared=False) < prob else value


@noise("gaussian")
class Gaussian:
    """Adds a normal number of standard deviation std, another for each response. It may leave the range."""

    needs_range = False

    def __init__(self, config: Spread) -> None:
        self.std = config.std

    def __call__(self, value: float, key: SampleKey, coin: Coin, range: Range | None) -> float:
        return value + self.std * NormalDist().inv_cdf(coin(key, shared=False))


@noise("drop")
class Drop:
    """With probability prob takes a response's reward away: it is left out of loss and baseline."""

    needs_range = False

    def __init__(self, config: OneProbability) -> None:
        self.prob = config.prob

    def __call__(self, value: float, key: SampleKey, coin: Coin, range: Range | None) -> float | None:
        return None if coin(key, shared=False) < self.prob else value


def _flipped(value: float, range: Range | None) -> float:
    assert range is not None, "check_noise comes first"
    low, high = range
    return low + high - value
