"""What an update adds up over micro-batches and ranks, for the log and for error messages.

A metric is a sum and a weight, and their quotient is logged; of one whose name ends in `_max` it is the largest value.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from rlkit.engine import distributed
from rlkit.interfaces.learning import Batch, Metrics, TokenStats
from rlkit.interfaces.names import STATS
from rlkit.interfaces.rewards import SampleKey
from rlkit.ops.masked import masked_sum


class Tally:
    """Sums over this rank's micro-batches. They stay where they were computed until somebody asks: reading a number
    would have a GPU wait for it."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._finite: list[Tensor] = []
        self._suspects: list[Callable[[], list[SampleKey]]] = []
        """Of each micro-batch, those to blame if its loss is not finite."""
        self._losses: list[Tensor] = []
        self._pairs: list[tuple[str, Tensor, Tensor]] = []

    def add(self, value: Tensor, metrics: Metrics, new: TokenStats, part: Batch) -> None:
        self._finite.append(torch.isfinite(value))
        new = TokenStats(**{name: new.get(name).detach() for name in STATS if getattr(new, name) is not None})
        self._suspects.append(partial(suspects_of, part, new))
        self._losses.append(value.detach())
        self._pairs += [(name, _kept(total), _kept(weight)) for name, (total, weight) in metrics.items()]
        mask = part.rollout.mask
        count = mask.sum()
        if new.entropy is not None:
            self._pairs.append(("policy/entropy", new.entropy.sum(), count))
        if new.logprobs is not None:
            gap = (new.logprobs - part.rollout.sampler_logprobs).abs()
            self._pairs.append(("sampler/gap_mean", masked_sum(gap, mask), count))
            self._pairs.append(("sampler/gap_max", gap.masked_fill(~mask, 0.0).max(), count))

    def bad(self) -> list[SampleKey]:
        """Samples of micro-batches whose loss was not finite."""
        named = zip(_read(self._finite), self._suspects, strict=True)
        return [key for finite, suspects in named if not finite for key in suspects()]

    def _summed(self) -> tuple[dict[str, list[float]], float, dict[str, float]]:
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        largest: dict[str, float] = {}
        names = [name for name, _, _ in self._pairs]
        totals = _read([total for _, total, _ in self._pairs])
        weights = _read([weight for _, _, weight in self._pairs])
        for name, total, weight in zip(names, totals, weights, strict=True):
            if name.endswith("_max"):
                largest[name] = _larger(largest.get(name, -math.inf), total)
            else:
                sums[name][0] += total
                sums[name][1] += weight
        return dict(sums), sum(_read(self._losses)), largest

    def means(self) -> dict[str, float]:
        """Over all ranks."""
        everyone = distributed.gather_objects(self._summed())
        names = sorted({name for sums, _, _ in everyone for name in sums})
        means = {}
        for name in names:
            pairs = [sums[name] for sums, _, _ in everyone if name in sums]
            weight = sum(pair[1] for pair in pairs)
            means[name] = sum(pair[0] for pair in pairs) / weight if weight else 0.0
        means[f"{self.role}/loss"] = sum(loss for _, loss, _ in everyone)
        for _, _, largest in everyone:
            for name, value in largest.items():
                means[name] = _larger(means.get(name, -math.inf), value)
        return means


def _kept(scalar: Tensor) -> Tensor:
    """Without the graph that it came from, which would live on; an algorithm may give a plain number."""
    return torch.as_tensor(scalar, device=distributed.device()).detach().reshape(())


def _read(scalars: Sequence[Tensor]) -> list[float]:
    """In one go."""
    if not scalars:
        return []
    numbers: list[float] = torch.stack([scalar.double() for scalar in scalars]).tolist()
    return numbers


def _larger(a: float, b: float) -> float:
    """NaN where one is."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def suspects_of(part: Batch, new: TokenStats) -> list[SampleKey]:
    """The samples with a statistic or sampler log-prob that is not finite; all of the part where there is none."""
    kinds = [new.logprobs, new.token_kl, new.entropy, new.values, part.rollout.sampler_logprobs]
    fine = torch.stack([torch.isfinite(kind).all(1) for kind in kinds if kind is not None]).all(0)
    named = [key for key, ok in zip(part.rollout.keys, fine.tolist(), strict=True) if not ok]
    return named or list(part.rollout.keys)
