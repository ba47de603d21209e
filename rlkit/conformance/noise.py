"""Kinds of noise held against their contract: what they make of a reward follows from their arguments alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

from rlkit import registry
from rlkit.conformance.findings import Broken, Check
from rlkit.interfaces.rewards import SampleKey
from rlkit.registry import Plugin
from rlkit.scoring.noise import Coin, Noise, Range, wrong_range

RANGES: list[Range] = [(0.0, 1.0), (-1.0, 2.0)]
KEYS = [SampleKey(f"{prompt:x}", step, 0, index) for step in (1, 2) for prompt in range(8) for index in range(4)]

Call = tuple[float, SampleKey, Range | None]


def checks(plugin: Plugin, options: dict[str, Any]) -> Iterator[Check]:
    def build() -> Noise:
        made: Noise = registry.build("noise", plugin.name, options)
        return made

    yield Check("it says whether it needs the reward's range", lambda: _declares(build()), first=True)
    yield Check("it gives a finite number, or None", lambda: _values(build()))
    yield Check("the same sample meets the same noise, in any order", lambda: _order(build(), build()))
    yield Check("chance comes from the coin alone", lambda: _coin(build(), build()))


def _calls(noise: Noise) -> list[Call]:
    ranges: Sequence[Range | None] = RANGES if noise.needs_range else [None, *RANGES]
    return [
        (value, key, known)
        for known in ranges
        for key in KEYS
        for low, high in [known or RANGES[0]]
        for value in (low, (low + high) / 2, high)
    ]


def _declares(noise: Noise) -> None:
    if wrong := wrong_range(noise):
        raise Broken(f"it {wrong}")


def _values(noise: Noise) -> None:
    for value, key, known in _calls(noise):
        noisy = noise(value, key, Coin(0, 0), known)
        if noisy is not None and not (isinstance(noisy, Real) and math.isfinite(noisy)):
            raise Broken(
                f"it made {noisy!r} of the reward {value:g}, {_named(key)}: it must give a finite number, or None"
            )


def _order(one: Noise, other: Noise) -> None:
    calls = _calls(one)
    forth = [one(value, key, Coin(0, 0), known) for value, key, known in calls]
    back = [other(value, key, Coin(0, 0), known) for value, key, known in reversed(calls)][::-1]
    again = [one(value, key, Coin(0, 0), known) for value, key, known in calls]
    for (value, key, _), first, *others in zip(calls, forth, back, again, strict=True):
        for found, how in zip(others, ("with the samples in reverse order", "when asked again"), strict=True):
            if found != first and not (found != found and first != first):  # NaN is the others' affair
                raise Broken(
                    f"of the reward {value:g}, {_named(key)}, it made {_said(first)}, and {how} {_said(found)}: so "
                    "algorithms, ranks and resumed runs would not meet the same noise. Draw from coin(key, shared) "
                    "alone, and remember nothing"
                )


def _coin(one: Noise, other: Noise) -> None:
    """With a coin that always falls the same way, nothing is left to chance."""

    class Fixed(Coin):
        def __call__(self, key: SampleKey, shared: bool) -> float:
            return 0.5

    for value, key, known in _calls(one):
        made = [noise(value, key, Fixed(seed, layer), known) for noise, seed, layer in ((one, 0, 0), (other, 1, 1))]
        if made[0] != made[1]:
            raise Broken(
                f"with a coin that always says 0.5 it makes {_said(made[0])} of the reward {value:g}, {_named(key)}, "
                f"and then {_said(made[1])}: chance comes from elsewhere. Draw from coin(key, shared) alone"
            )


def _said(value: float | None) -> str:
    return "no reward" if value is None else f"{value:g}"


def _named(key: SampleKey) -> str:
    return f"prompt {key.prompt_id}, step {key.rollout_step}, index {key.index}"
