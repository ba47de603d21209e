"""Noise on rewards, on purpose and reproducibly: what a kind of noise is, and the coins it flips.

A kind is registered by `@rlkit.noise(NAME)`; those that ship are in `rewards/noise.py`. Kinds stack: the second
disturbs what the first has left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

from rlkit import registry
from rlkit.blame import Blame, shown
from rlkit.errors import ConfigError, PluginLoadError, SettingsError
from rlkit.interfaces.rewards import RewardResult, SampleKey

if TYPE_CHECKING:
    from rlkit.config import PluginRef

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Coin:
    """Uniform numbers that depend on nothing but a run's seed, a layer of its noise, and a sample's key.

    So every algorithm meets the same noise, on any number of ranks and in any order of scoring, and a resumed run
    meets the noise it would have met.
    """

    seed: int
    layer: int
    """Index in the stack, so that two layers of one kind are independent."""

    def __call__(self, key: SampleKey, shared: bool) -> float:
        """A number in the open interval (0, 1). `shared`: the same for all samples of a prompt in a step."""
        index = "all" if shared else str(key.index)
        text = f"{self.seed}/noise/{self.layer}/{key.prompt_id}/{key.rollout_step}/{key.occurrence}/{index}"
        bits = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 12
        # Half a step off the ends: neither 0 nor 1 comes up, and 53 bits hold it exactly.
        return (bits + 0.5) / 2**52


class Noise(Protocol):
    """Disturbs one reward. It must follow from the arguments alone: chance comes from the coin."""

    @property
    def needs_range(self) -> bool:
        """Whether it can only disturb a reward that declares its lowest and highest value."""

    def __call__(self, value: float, key: SampleKey, coin: Coin, range: Range | None) -> float | None:
        """The noisy value; None takes the reward away."""


def build_noises(refs: Sequence[PluginRef]) -> list[Noise]:
    """The noises that `refs` name. What one raises, or gives that is no reward, is a PluginError that names it."""
    return [_Named(registry.build("noise", ref.kind, ref.options), ref.kind) for ref in refs]


def wrong_range(noise: object) -> str | None:
    """What is wrong with what a noise declares of the reward's range, as the rest of a sentence that names it; None:
    nothing."""
    needs = getattr(noise, "needs_range", None)
    if isinstance(needs, bool):
        return None
    has = "has no `needs_range`" if needs is None else f"has a `needs_range` that is {shown(needs)}"
    return (
        f"{has}: say needs_range = True where it can only disturb a reward that declares the lowest and the highest "
        "value that it gives, else False"
    )


class _Named:
    """A plugin's noise, whose faults carry its name."""

    def __init__(self, noise: Noise, kind: str) -> None:
        self._noise = noise
        self.kind = kind
        self._call = Blame(f"noise {kind!r}", "it", noise)
        if wrong := wrong_range(noise):
            raise dataclasses.replace(self._call, error=PluginLoadError).fault(wrong)
        self.needs_range = noise.needs_range

    def __call__(self, value: float, key: SampleKey, coin: Coin, range: Range | None) -> float | None:
        with self._call:
            noisy: object = self._noise(value, key, coin, range)
        if noisy is None or (isinstance(noisy, Real) and math.isfinite(noisy)):
            return noisy if noisy is None else float(noisy)
        raise self._call.fault(f"made {shown(noisy)} of the reward {value:g}; it must give a finite number, or None")


def apply_noise(
    noises: Sequence[Noise],
    seed: int,
    keys: Sequence[SampleKey],
    results: Sequence[RewardResult],
    range: Range | None,
) -> list[float | None]:
    """The value each result has after all noises in order; the results themselves stay as they are.

    A result without a value has none afterwards. `range` is what the reward declares, None where it does not.
    """
    coins = [Coin(seed, layer) for layer, _ in enumerate(noises)]
    noisy = []
    for key, result in zip(keys, results, strict=True):
        value = result.value
        for noise, coin in zip(noises, coins, strict=True):
            if value is not None:
                value = noise(value, key, coin, range)
        noisy.append(value)
    return noisy


def check_noise(noises: Sequence[Noise], range: Range | None, reward_name: str) -> None:
    """ConfigError where a noise needs the reward's range and the reward declares none."""
    for layer, noise in enumerate(noises):
        if noise.needs_range and range is None:
            kind = noise.kind if isinstance(noise, _Named) else type(noise).__name__
            raise ConfigError(
                f"noise, item {layer + 1} ({kind}) turns a reward r into lowest + highest - r, but "
                f"reward {reward_name!r} declares no range. Set its attribute: {reward_name}.range = (0.0, 1.0), "
                "its lowest and highest value; or use a noise that needs none (gaussian, drop)"
            )


def parse_noise(text: str) -> dict[str, Any]:
    """What the command line says of a noise, as the config has it: `group_flip:0.25` is
    `{"kind": "group_flip", "prob": 0.25}`. Several numbers, with commas between, are the options in their order.

    Raises ConfigError for an unknown kind and for numbers that are missing, too many, or not allowed. A kind of the
    user's own must be loaded before.
    """
    kind, colon, given = text.partition(":")
    plugin = registry.find("noise", kind.strip())
    names = list(plugin.options.model_fields)
    usage = f"{plugin.name}:{','.join(name.upper() for name in names)}" if names else plugin.name
    numbers = [part.strip() for part in given.split(",")] if colon else []
    if len(numbers) > len(names) or not all(_NUMBER.fullmatch(number) for number in numbers):
        raise ConfigError(f"--noise {text}: expected {usage}, with numbers")
    options = {
        name: float(number) if "." in number or "e" in number.lower() else int(number)
        for name, number in zip(names, numbers, strict=False)
    }
    missing = [name for name in names[len(options) :] if plugin.options.model_fields[name].is_required()]
    if missing:
        raise ConfigError(f"--noise {text}: {', '.join(missing)} is missing; expected {usage}")
    try:
        registry.validate_options(plugin, options, where="")
    except SettingsError as error:
        said = "; ".join(str(error).splitlines())
        raise ConfigError(f"--noise {text}: {said}; expected {usage}") from error
    return {"kind": plugin.name, **options}


def noise_label(noise: Sequence[Mapping[str, Any]]) -> str:
    """`[{kind: group_flip, prob: 0.25}]` -> `group_flip:0.25`; several with + between; `none` for none.

    The inverse of `parse_noise`; a noise of several options is written as that takes it, too: `asymmetric:0.1,0.2`.
    """
    parts = []
    for each in noise:
        options = [f"{value:g}" if isinstance(value, float) else str(value) for k, value in each.items() if k != "kind"]
        parts.append(":".join([str(each["kind"]), *([",".join(options)] if options else [])]))
    return "+".join(parts) or "none"


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
