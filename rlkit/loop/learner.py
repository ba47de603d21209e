"""A rollout in, optimizer updates out. It knows no algorithm, no sampler and no file.

measure   the pass without gradient that the algorithm asks for
learn     for each optimizer batch: the advantage, the correction, forward, loss, backward, one step
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rlkit.config import RunConfig
from rlkit.engine import distributed, flops, profiling
from rlkit.engine.deepspeed import Engine
from rlkit.engine.flops import Kind
from rlkit.engine.passes import OWN, Passes, passes_of
from rlkit.engine.reference import COMPARED, Reference
from rlkit.errors import NotFiniteError
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, Rollout, Targets, TokenStats
from rlkit.interfaces.names import Stat
from rlkit.interfaces.progress import Progress, unseen
from rlkit.loop.calls import Calls
from rlkit.loop.state import RunState
from rlkit.ops.importance import importance_weights
from rlkit.ops.kl import LOG_RATIO_LIMIT, k3
from rlkit.ops.masked import masked_sum

NOT_FINITE_ALLOWED = 3
"""Updates in a row whose loss or gradient is not finite: the last of them ends the run."""

Keep = Callable[[int, int, Sequence[int], Batch, Targets, NotFiniteError], str]
"""Keeps the batch of an update that is not finite: step, number of the update in it, rows of the rollout, what the
losses saw of them, and the error. Returns where."""

Credited = list[tuple[list[int], Targets]]
"""Row numbers of a rollout, and the targets of these rows as the first epoch used them."""


@dataclass
class Learner:
    """What learns from rollouts. Every rank has one, and all are called alike."""

    config: RunConfig
    algorithm: Algorithm
    policy: Engine
    reference: Reference | None
    critic: Engine | None
    state: RunState
    progress: Progress = unseen
    keep: Keep | None = None
    timer: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Phase -> seconds since somebody cleared it."""
    passed: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    """(Model, kind of pass) -> tokens that have gone through it, since somebody cleared it."""

    def __post_init__(self) -> None:
        self.calls = Calls(self.algorithm, self.config)

    def passes(self, step: int) -> Passes:
        """What is computed in a step, and when."""
        ranks, width = distributed.world_size(), self.policy.width
        return passes_of(self.algorithm, self.config, ranks, width, learns=self._policy_learns(step))

    def measure(self, rollout: Rollout, step: int) -> TokenStats:
        """What is needed of the rollout at the weights with which learning from it begins: [B, T], on the CPU."""
        passes = self.passes(step)
        self.progress("measuring")
        with self.time("measure"):
            if passes.keeps and self.reference is not None:
                self.reference.keep(rollout)
                self.passed["policy", "measure"] += _tokens(rollout)
            return self._token_stats(rollout, passes.rollout, passes)

    def learn(self, rollout: Rollout, old: TokenStats, step: int) -> tuple[dict[str, float], Credited]:
        """All optimizer updates on one rollout; `old` is what `measure` said of it.

        Returns metrics, and what was credited. A batch with no token to learn from, or none that a correction has left,
        makes no update, and is counted.
        Raises NotFiniteError after several updates in a row that are not finite.
        """
        passes = self.passes(step)
        logged: dict[str, list[float]] = defaultdict(list)
        counts = Counter({"updates/skipped": 0, "updates/not_finite": 0})
        credited: Credited = []
        weights, kept, corrected = self._correction(rollout, old)
        for number, rows in enumerate(self._optimizer_batches(rollout, step)):
            self.progress("updating", number, self.config.updates_per_step)
            batch = self._batch(rollout, old, rows)
            if batch.n_tokens == 0:
                counts["updates/skipped"] += 1
                continue
            with self.time("measure"):
                batch.now = passes.now(batch.old, self._token_stats(batch.rollout, passes.update, passes))
            targets = self.calls.advantage(batch, self.state.algorithm)
            if number < self.config.batch.minibatches:
                credited.append((rows, targets))
            if weights is not None and kept is not None:
                own = targets.importance
                targets.importance = weights[rows] if own is None else weights[rows] * own
                batch = _within(batch, kept[rows])
                if batch.n_tokens == 0:
                    counts["updates/skipped"] += 1
                    continue
            with self.time("update"):
                metrics = self._update(batch, targets, passes, step, number, rows)
            if metrics is None:
                counts["updates/not_finite"] += 1
                continue
            for name, value in (metrics | targets.scalars | targets.coefs).items():
                logged[name].append(value)
            if self._policy_learns(step):
                self.calls.after_update(metrics, self.state.algorithm)
                if self.reference is not None:
                    self.reference.after_update()
        if self.reference is not None:
            self.reference.after_rollout()
        if (skipped := counts["updates/skipped"]) and distributed.main_rank():
            warnings.warn(
                f"step {step}: {skipped} of {self.config.updates_per_step} updates had no sample to learn from "
                "(samples/no_value, samples/invalid and correction/limited in the log), and were skipped",
                stacklevel=2,
            )
        return _summarised(logged) | corrected | dict(counts) | {"updates/made": self.policy.updates}, credited

    def make_room(self) -> None:
        """Leave the device to a sampler, as far as the config says."""
        self.policy.make_room()
        if self.critic is not None:
            self.critic.make_room()

    def _update(
        self, batch: Batch, targets: Targets, passes: Passes, step: int, number: int, rows: Sequence[int]
    ) -> dict[str, float] | None:
        """Update `number` of what learns in this step, on these rows of its rollout. None: it was not finite, and is
        left out; several in a row end the run."""
        metrics: dict[str, float] = {}

        def critic_loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
            return self.calls.value_loss(new.get("values"), batch, targets)

        def policy_loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
            if "ref_logprobs" in passes.known:
                new.ref_logprobs = batch.old.ref_logprobs
            loss, said = self.calls.policy_loss(new, batch, targets)
            began = batch.rollout.sampler_logprobs if self.config.schedule == "one_ahead" else batch.old.logprobs
            return loss, dict(said) | _movement(new, began, batch.rollout.mask)

        try:
            self.calls.check_finite(targets, batch)
            tokens = _tokens(batch.rollout)
            if self.critic is not None:
                metrics |= self.critic.update(batch, targets, critic_loss, frozenset({"values"}))
                self.passed["critic", "update"] += tokens
            if self._policy_learns(step):
                metrics |= self.policy.update(
                    batch, targets, policy_loss, passes.grad, self.reference, observe=passes.observe
                )
                self.passed["policy", "update"] += tokens
                if (passes.grad | passes.observe) & COMPARED and not passes.keeps:
                    self.passed["policy", "measure"] += tokens
        except NotFiniteError as error:
            self.state.not_finite += 1
            kept = self.keep(step, number, rows, batch, targets, error) if self.keep is not None else ""
            said = f"step {step}: {error}" + (f"\nThe batch is kept in {kept}" if kept else "")
            if self.state.not_finite >= NOT_FINITE_ALLOWED:
                raise NotFiniteError(
                    f"{said}\n{self.state.not_finite} updates in a row were not finite, so the run ends. Look at these "
                    "samples; begin anew, or resume its last checkpoint, with a lower optimizer.lr"
                ) from error
            if distributed.main_rank():
                warnings.warn(said, stacklevel=2)
            return None
        self.state.not_finite = 0
        return metrics

    def _policy_learns(self, step: int) -> bool:
        return step > self.algorithm.critic_warmup_steps

    def _token_stats(self, rollout: Rollout, want: frozenset[Stat], passes: Passes) -> TokenStats:
        tokens = _tokens(rollout)
        own, compares = bool(want & OWN), bool(want & COMPARED) and not passes.keeps
        # The reference has the policy's shape.
        self.passed["policy", "measure"] += tokens * (own + compares)
        self.passed["critic", "measure"] += tokens * ("values" in want)
        stats = self.policy.token_stats(rollout, want - {"values"}, self.reference)
        if "values" in want and self.critic is not None:
            stats.values = self.critic.token_stats(rollout, frozenset({"values"})).values
        return stats

    def _optimizer_batches(self, rollout: Rollout, step: int) -> Iterator[list[int]]:
        """Row numbers of each optimizer batch: whole groups, in an order that seed, step and epoch decide, and as many
        that can teach something in each as in the others."""
        shape = self.config.batch
        if shape.minibatches == 1:
            for _ in range(shape.epochs):
                yield list(range(len(rollout.keys)))
            return
        groups: dict[int, list[int]] = defaultdict(list)
        for row, number in enumerate(rollout.group.tolist()):
            groups[number].append(row)
        members = list(groups.values())
        counts = rollout.mask.any(1)
        for epoch in range(shape.epochs):
            order = np.random.default_rng([self.config.seed, step, epoch]).permutation(len(members))
            members = [members[at] for at in order]
            live = [rows for rows in members if counts[rows].any()]
            rest = [rows for rows in members if not counts[rows].any()]
            for part in range(shape.minibatches):
                mine = [*_share(live, part, shape.minibatches), *_share(rest, part, shape.minibatches)]
                yield [row for rows in mine for row in rows]

    def _batch(self, rollout: Rollout, old: TokenStats, rows: list[int]) -> Batch:
        if rows != list(range(len(rollout.keys))):
            rollout, old = rollout.rows(rows), old.rows(rows)
        return Batch(
            rollout=rollout,
            old=old,
            n_sequences=int(rollout.valid.sum()),
            n_tokens=int(rollout.mask.sum()),
            update=self.policy.updates,
            progress=self.policy.progress,
        )

    def _correction(self, rollout: Rollout, old: TokenStats) -> tuple[Tensor | None, Tensor | None, dict[str, float]]:
        """The weights of the rollout's tokens, those that are left, and what to log of them; nothing without one."""
        settings = self.config.corrects
        if settings is None or not rollout.mask.any():
            return None, None, {}
        weights, kept = importance_weights(
            old.get("logprobs"),
            rollout.sampler_logprobs,
            rollout.mask,
            level=settings.level,
            mode=settings.mode,
            limit=settings.limit,
        )
        counted = rollout.mask.sum()
        total, squares = masked_sum(weights, rollout.mask), masked_sum(weights**2, rollout.mask)
        limited = weights >= settings.limit if settings.mode == "truncate" else ~kept
        return (
            weights,
            kept,
            {
                "correction/weight_mean": float(total / counted),
                "correction/weight_max": float(weights.max()),
                "correction/limited": float((limited & rollout.mask).sum() / counted),
                # Kish's: of equal weights all tokens, of one that outweighs the others one.
                "correction/effective": float(total**2 / (squares * counted)) if squares else 0.0,
            },
        )

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Count what happens within to a phase of the step."""
        started = time.perf_counter()
        with profiling.phase(phase):
            yield
        distributed.look_at_memory()
        self.timer[phase] += time.perf_counter() - started

    def utilisation(self) -> dict[str, float]:
        """The share of the GPU's peak that what `timer` and `passed` hold has reached; nothing where the peak or the
        work is not known."""
        peak = flops.peak(self.config.model)
        if peak is None:
            return {}
        shapes = {engine.role: engine.identity["parameters"] for engine in (self.policy, self.critic) if engine}
        seconds = self.timer["measure"] + self.timer["update"]
        if any(map(flops.has_experts, shapes.values())) or not seconds:
            return {}
        done = sum(flops.flops(shapes[role], kind, n) for (role, kind), n in self.passed.items() if n)
        return {"throughput/mfu": done / seconds / peak / distributed.world_size()}


def _tokens(rollout: Rollout) -> int:
    """That a pass over it needs, each prompt once."""
    rows = rollout.mask.any(1)
    read = {tuple(rollout.prompt_tokens[row].tolist()) for row in rows.nonzero().flatten().tolist()}
    return sum(map(len, read)) + int(rollout.length[rows].sum())


def _share(groups: Sequence[list[int]], part: int, parts: int) -> Sequence[list[int]]:
    """Part number `part` of the groups, cut into parts as equal as can be, the first ones the larger."""
    size, more = divmod(len(groups), parts)
    start = part * size + min(part, more)
    return groups[start : start + size + (part < more)]


def _within(batch: Batch, kept: Tensor) -> Batch:
    """The batch as the losses see it: with the tokens alone that a correction has left, in sums as in counts."""
    mask = batch.rollout.mask & kept
    return replace(
        batch,
        kept=kept,
        n_tokens=int(mask.sum()),
        n_sequences=int(mask.any(1).sum()),
        n_valid=batch.n_valid,
    )


@torch.no_grad()
def _movement(new: TokenStats, began: Tensor | None, mask: Tensor) -> Metrics:
    """How far the policy is from the weights that sampled, whose log-probs `began` are: approx_kl is KL(began || new)
    by k3."""
    if new.logprobs is None or began is None:
        return {}
    log_ratio = torch.where(mask, new.logprobs - began, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    count = mask.sum()
    return {
        "policy/approx_kl": (masked_sum(k3(-log_ratio), mask), count),
        "policy/ratio_mean": (masked_sum(ratio, mask), count),
        "policy/ratio_max": (torch.where(mask, ratio, -math.inf).max(), count),
    }


def _summarised(logged: dict[str, list[float]]) -> dict[str, float]:
    """Of several updates the mean; of what is a largest value, the largest."""
    return {
        name: max(values) if name.endswith("_max") else sum(values) / len(values) for name, values in logged.items()
    }


def gap(logprobs: Tensor, rollout: Rollout) -> dict[str, float]:
    """How far the sampler's log-probs are from the trainer's, over the policy's tokens."""
    differences = (logprobs - rollout.sampler_logprobs).abs()[rollout.mask]
    if not len(differences):
        return {}
    return {"sampler/gap_mean": float(differences.mean()), "sampler/gap_max": float(differences.max())}
