"""An algorithm under examination: built afresh, given random batches, and what is computed of one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rlkit.conformance.batches import Case, cast, growing, make_case, table
from rlkit.conformance.findings import Broken
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, State, Targets, TokenStats


@dataclass(frozen=True, slots=True)
class Rigour:
    """How strictly the mathematics is held."""

    seed: int = 0
    tolerance: float = 1e-4
    """Relative. A broken law is off by a share of the batch; what a plugin computes in float32 may round."""
    outside: float = 0.0
    """What stands in padding, invalid samples and at environment tokens. The engine has 0 there; with NaN nothing may
    even touch it."""


@dataclass(frozen=True)
class Subject:
    """What is checked."""

    build: Callable[[], Algorithm]
    """Afresh: it remembers nothing yet."""
    rigour: Rigour

    @cached_property
    def cases(self) -> list[Case]:
        """Random batches, the smallest first, in the precision that it can be given."""
        algorithm = self.build()
        found = growing(self.rigour.seed, outside=self.rigour.outside, alone=not algorithm.compares_groups)
        cases = [cast(case, self.dtype) for case in found]
        if algorithm.leaves_out_truncated:
            for case in cases:
                case.batch.rollout.truncated &= ~case.batch.rollout.valid
        return cases

    def alike(self, count: int) -> list[Case]:
        """Optimizer batches of a run."""
        seeds = random.Random(self.rigour.seed)
        made = [cast(make_case(seeds.randrange(2**31), outside=self.rigour.outside), self.dtype) for _ in range(count)]
        for update, case in enumerate(made):
            case.batch.update, case.batch.progress = update, update / count
        return made

    @cached_property
    def dtype(self) -> torch.dtype:
        """float64, in which a fault is told from rounding; float32, as the engine has it, where the plugin mixes."""
        case = make_case(0, outside=self.rigour.outside)
        algorithm = self.build()
        try:
            loss, _ = losses(algorithm, case.new, case.batch, algorithm.advantage(case.batch, {}))
            torch.autograd.grad(loss, case.leaves(), allow_unused=True)
        except Exception:
            return torch.float32
        return torch.float64

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Equal but for rounding, element by element; in float32, whose sums round more, relative to the largest."""
        a, b = a.detach().double(), b.detach().double()
        if not a.numel():
            return a.shape == b.shape
        each = torch.maximum(a.abs(), b.abs())
        least = (each.max() + 1e-3) * (0.01 if self.dtype == torch.float64 else 1.0)
        return bool(((a - b).abs() <= self.rigour.tolerance * (each + least)).all())

    def same_numbers(self, a: float, b: float) -> bool:
        return self.same(torch.tensor([float(a)]), torch.tensor([float(b)])) or (math.isnan(a) and math.isnan(b))


# What is computed of a batch


def losses(algorithm: Algorithm, new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
    """The policy's loss and the critic's, added up, and the metrics of both."""
    loss, metrics = algorithm.policy_loss(new, batch, targets)
    if algorithm.value_loss is not None:
        value, more = algorithm.value_loss(new.get("values"), batch, targets)
        loss, metrics = loss + value, metrics | more
    return loss, metrics


def gradients(loss: Tensor, case: Case) -> list[Tensor]:
    if not loss.requires_grad:
        raise Broken(f"its loss has no gradient: it was not computed from the stats in `new`.\n{table(case)}")
    grads = torch.autograd.grad(loss, case.leaves(), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, case.leaves(), strict=True)]


def numbers(metrics: Metrics) -> dict[str, list[float]]:
    """Name -> sum and weight."""
    return {name: [float(x) for x in pair] for name, pair in metrics.items()}


def remember(algorithm: Algorithm, sums: dict[str, list[float]], state: State) -> State:
    """The state after an update that found these sums and weights."""
    algorithm.after_update({name: total / weight for name, (total, weight) in sums.items() if weight}, state)
    return state


def known(algorithm: Algorithm, case: Case) -> State:
    """What the algorithm knows once it has made an update on the case."""
    state: State = {}
    _, metrics = losses(algorithm, case.new, case.batch, algorithm.advantage(case.batch, state))
    return remember(algorithm, numbers(metrics), state)


def flat(targets: Targets) -> dict[str, Tensor]:
    """All that is in them, by name."""
    found = {name: getattr(targets, name) for name in ("advantages", "scores", "returns", "importance")}
    numbers = {**targets.coefs, **targets.scalars}
    return {name: value for name, value in found.items() if value is not None} | {
        name: torch.tensor(float(value)) for name, value in numbers.items()
    }


def state_differs(subject: Subject, a: State, b: State) -> str | None:
    """The key in which two states differ; None: in none."""
    for key in sorted(a.keys() | b.keys(), key=str):
        if key not in a or key not in b:
            return str(key)
        if not _same_cells(subject, a[key], b[key]):
            return str(key)
    return None


def _same_cells(subject: Subject, a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and subject.same(a, b)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return subject.same_numbers(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same_cells(subject, x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return state_differs(subject, a, b) is None
    return bool(a == b)
