"""What an update adds up over micro-batches and ranks, for the log and for error messages.

A metric is a sum and a weight, and their quotient is logged; of one whose name ends in `_max` it is the largest value.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from rlkit.engine import distributed
from rlkit.interfaces.learning import Batch, Metrics, TokenStats
from rlkit.interfaces.rewards import SampleKey


class Tally:
    """Sums over this rank's micro-batches."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.bad: list[SampleKey] = []
        """Samples of micro-batches whose loss was not finite."""
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._largest: dict[str, float] = {}
        self._loss = 0.0

    def add(self, value: Tensor, metrics: Metrics, new: TokenStats, part: Batch) -> None:
        if not torch.isfinite(value):
            self.bad += suspects_of(part, new)
        self._loss += float(value.detach())
        for name, (total, weight) in metrics.items():
            self._sum(name, total, weight)
        mask = part.rollout.mask
        if new.entropy is not None:
            self._sum("policy/entropy", new.entropy.detach().sum(), mask.sum())
        if new.logprobs is not None:
            gap = (new.logprobs.detach() - part.rollout.sampler_logprobs).abs()[mask]
            self._sum("sampler/gap_mean", gap.sum(), torch.tensor(gap.numel()))
            self._sum("sampler/gap_max", gap.max(), torch.tensor(1))

    def _sum(self, name: str, total: Tensor, weight: Tensor) -> None:
        if name.endswith("_max"):
            self._largest[name] = _larger(self._largest.get(name, -math.inf), float(total))
            return
        sums = self._sums[name]
        sums[0] += float(total)
        sums[1] += float(weight)

    def means(self) -> dict[str, float]:
        """Over all ranks."""
        everyone = distributed.gather_objects((dict(self._sums), self._loss, self._largest))
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


def _larger(a: float, b: float) -> float:
    """NaN where one is."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def suspects_of(part: Batch, new: TokenStats) -> list[SampleKey]:
    """The samples with a statistic or sampler log-prob that is not finite; all of the part where there is none."""
    kinds = [new.logprobs, new.token_kl, new.entropy, new.values, part.rollout.sampler_logprobs]
    fine = torch.stack([torch.isfinite(kind).all(1) for kind in kinds if kind is not None]).all(0)
    named = [key for key, ok in zip(part.rollout.keys, fine.tolist(), strict=True) if not ok]
    return named or list(part.rollout.keys)
