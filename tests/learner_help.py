"""A learner for the tests of its mathematics: real but for the engine, which computes nothing and remembers updates.

The stats of a `random_batches` case stand for what a model would say of its rows, in float64; the loss, its gradient,
the cut into micro-batches and the tally are real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlkit import config as configs
from rlkit.config import RunConfig
from rlkit.conformance.batches import Case
from rlkit.engine.tally import Tally
from rlkit.errors import NotFiniteError
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, Rollout, Targets, TokenStats
from rlkit.interfaces.names import Stat
from rlkit.loop.learner import Learner
from rlkit.loop.state import RunState

Loss = Callable[[TokenStats, Batch, Targets], tuple[Tensor, Metrics]]


@dataclass
class Update:
    """What an engine was asked to learn, and what came of it."""

    batch: Batch
    targets: Targets
    rows: list[int]
    """Of the case."""
    loss: Tensor
    gradients: dict[str, Tensor]
    """By statistic, [B, T] over the whole case."""


@dataclass
class StatsEngine:
    """What a learner asks of an engine."""

    case: Case
    role: str = "policy"
    parts: int = 3
    """Micro-batches."""
    planned: int = 100
    not_finite: set[int] = field(default_factory=set)
    """Calls of `update` that fail, from 0."""
    updates: int = 0
    calls: int = 0
    made: list[Update] = field(default_factory=list)
    measured: list[tuple[list[int], frozenset[Stat]]] = field(default_factory=list)

    @property
    def progress(self) -> float:
        return self.updates / self.planned

    width = 64

    def token_stats(self, rollout: Rollout, want: frozenset[Stat], reference: Any = None) -> TokenStats:
        rows = rows_of(rollout)
        if want:
            self.measured.append((rows, want))
        known = self.case.batch.now.rows(rows)
        return TokenStats(**{stat: getattr(known, stat) for stat in want})

    def update(
        self,
        batch: Batch,
        targets: Targets,
        loss: Loss,
        stats: frozenset[Stat],
        reference: Any = None,
        *,
        observe: frozenset[Stat] = frozenset(),
    ) -> dict[str, float]:
        self.calls += 1
        if self.calls - 1 in self.not_finite:
            raise NotFiniteError(f"{self.role}, update {self.updates}: the loss is not finite; no step was made")
        rows = rows_of(batch.rollout)
        owner = torch.randint(0, self.parts, (len(rows),)).tolist()
        tally, total = Tally(self.role), torch.zeros((), dtype=torch.float64)
        for part in range(self.parts):
            mine = [i for i, o in enumerate(owner) if o == part and batch.rollout.mask[i].any()]
            if mine:
                here = [rows[i] for i in mine]
                new, known = self.case.new.rows(here), self.case.batch.now.rows(here)
                new = TokenStats(
                    **{stat: getattr(new, stat) for stat in stats},
                    **{stat: getattr(known, stat) for stat in observe},
                )
                some = batch.rows(mine)
                if some.old.logprobs is None and new.logprobs is not None:
                    some.old.logprobs = new.logprobs.detach()
                value, metrics = loss(new, some, targets.rows(mine))
                tally.add(value, metrics, new, some)
                total = total + value
        leaves = {stat: getattr(self.case.new, stat) for stat in sorted(stats)}
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)
        gradients = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), found, strict=True)
        }
        self.made.append(Update(batch, targets, rows, total, gradients))
        self.updates += 1
        return tally.means()


def rows_of(rollout: Rollout) -> list[int]:
    """The rows of the case that these are: `make_case` numbers its keys so."""
    return [key.index for key in rollout.keys]


def settings(algo: str, *changes: str) -> RunConfig:
    return configs.load("embedded_xs", [*changes], algo)


def learner_of(
    case: Case, config: RunConfig, algorithm: Algorithm | None = None, *, engine: StatsEngine | None = None
) -> tuple[Learner, StatsEngine]:
    """A learner of the config's algorithm, or of another; and its policy's engine."""
    resolved, own = configs.resolve_with_algorithm(config)
    algorithm = algorithm or own
    policy: Any = engine or StatsEngine(case)
    critic: Any = StatsEngine(case, "critic") if algorithm.value_loss is not None else None
    return Learner(resolved, algorithm, policy, None, critic, RunState()), policy
