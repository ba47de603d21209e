"""The loop: sample, score, measure, update, sync, log, save. It knows no algorithm."""

from __future__ import annotations

import signal
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from rlkit.config import RunConfig
from rlkit.data import Cursor, Problem
from rlkit.engine import checkpoint, distributed
from rlkit.engine.deepspeed import LOGPROBS, Engine
from rlkit.errors import NotFiniteError, RlkitError
from rlkit.evaluation.in_training import Benchmark, evaluate
from rlkit.generation.collector import Collector, Scored, assemble, describe, disturbed
from rlkit.interfaces.generation import SamplingParams
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, Needs, Rollout, State, Targets, TokenStats
from rlkit.interfaces.stats import Stat
from rlkit.records.folder import RunFolder
from rlkit.scoring.noise import Noise, apply_noise
from rlkit.tracking import Tracker

GAP_ALLOWED = {"float32": 1e-3, "bfloat16": 0.1}
"""Mean |sampler's - trainer's log-prob| past which the weights in the sampler are not the trainer's."""
NOT_FINITE_ALLOWED = 3
"""Updates in a row whose loss or gradient is not finite: the last of them ends the run."""


@dataclass
class Trainer:
    """One run. Every rank has one; `folder` and `trackers` are rank 0's alone."""

    config: RunConfig
    algorithm: Algorithm
    policy: Engine
    reference: Engine | None
    critic: Engine | None
    collector: Collector
    noises: Sequence[Noise]
    problems: Sequence[Problem]
    benchmarks: Sequence[Benchmark]
    """Measured before, during and after training, on clean rewards."""
    sampling: SamplingParams
    folder: RunFolder | None
    trackers: Sequence[Tracker]
    step: int = 0
    """Steps done."""
    update: int = 0
    """Optimizer updates done."""
    state: State = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cursor = Cursor(len(self.problems), self.config.seed)
        self._timer: dict[str, float] = defaultdict(float)
        self._resumed = False
        self._not_finite = 0
        """Updates in a row."""

    def train(self) -> None:
        """Run the steps that are left. An interrupt ends it after the step in hand, with all of it saved."""
        with _interruptible() as interrupt:
            self._prove_sync()
            if self.step == 0:
                self._evaluate()
            while self.step < self.config.steps and not distributed.any_rank(interrupt.asked):
                self._one_step()
                last = self.step == self.config.steps
                if last or _due(self.step, self.config.checkpoint.every):
                    self.save()
            if 0 < self.step < self.config.steps:
                self.save()

    def _one_step(self) -> None:
        started = time.perf_counter()
        self._timer.clear()
        shape, algorithm = self.config.batch, self.algorithm
        step = self.step + 1

        scored, seconds = self._collect(step)
        keys, results = [s.key for s in scored], [s.result for s in scored]
        rewards = apply_noise(self.noises, self.config.seed, keys, results, self.collector.scorer.range)
        rollout = assemble(
            scored, shape.samples_per_prompt, algorithm.compares_groups, algorithm.leaves_out_truncated, rewards
        )
        with self._time("measure"):
            old = self._token_stats(rollout, self._wanted(step))
        self._keep(step, rollout, scored, old)
        metrics = describe(scored, rollout)
        if self.noises:
            metrics["reward/disturbed"] = disturbed(results, rewards)
        metrics |= {f"time/{phase}_s": s for phase, s in seconds.items()}
        metrics |= self._learn(rollout, old, step)
        self.step = step
        with self._time("sync"):
            self._sync()
        metrics["time/step_s"] = time.perf_counter() - started
        metrics["throughput/tokens_per_s"] = float(rollout.length.sum()) / metrics["time/step_s"]
        if _due(step, self.config.eval.every) or step == self.config.steps:
            metrics |= self._measure_pass_rate()
        metrics |= {f"time/{phase}_s": seconds for phase, seconds in self._timer.items()}
        metrics["memory/peak_gib"] = distributed.peak_memory_gib()
        self._log(metrics)

    def _collect(self, step: int) -> tuple[list[Scored], dict[str, float]]:
        before = self.cursor.position
        problems = [self.problems[i] for i in self.cursor.take(self.config.batch.prompts_per_step)]
        try:
            return self.collector.collect(problems, self.config.batch.samples_per_prompt, step, self.sampling, "train")
        except RlkitError:
            # Nothing was learnt from this step: when what failed is mended, the run can go on from here.
            self.cursor.position = before
            if self.step > 0:
                self.save()
            raise

    def _keep(self, step: int, rollout: Rollout, scored: Sequence[Scored], old: TokenStats) -> None:
        """Write the rollout before anything is learnt from it: where that fails, it is the evidence."""
        if self.folder is None:
            return
        if self._resumed:
            # Not before: a resume that fails leaves the run as it was.
            self.folder.cut_after(self.step, self.config)
            self._resumed = False
        self.folder.log_rollout(
            step,
            rollout,
            prompts=[s.problem.text for s in scored],
            answers=[s.problem.answer for s in scored],
            texts=[s.text for s in scored],
            results=[s.result for s in scored],
            stats=old,
        )
        each = self.config.batch.samples_per_prompt
        shown = [
            {"prompt": s.problem.text, "response": s.text, "reward": s.result.value, "answer": s.problem.answer}
            for s in scored[: 8 * each : each]
        ]
        for tracker in self.trackers:
            tracker.log_samples(step, shown)

    def _wanted(self, step: int) -> frozenset[Stat]:
        """What is computed without gradient once per rollout."""
        wanted = self.algorithm.needs.per_rollout(self.config.updates_per_step)
        # A policy that does not learn yet makes no forward of its own, which would show the sampler's log-prob gap.
        return wanted if self._policy_learns(step) else wanted | LOGPROBS

    def _policy_learns(self, step: int) -> bool:
        return step > self.algorithm.critic_warmup_steps

    def _learn(self, rollout: Rollout, old: TokenStats, step: int) -> dict[str, float]:
        """All optimizer updates on one rollout."""
        needs, once = self.algorithm.needs, self.config.updates_per_step == 1
        logged: dict[str, list[float]] = defaultdict(list)
        skipped = 0
        credited: list[tuple[list[int], Targets]] = []
        for number, rows in enumerate(self._minibatches(rollout, step)):
            batch = _optimizer_batch(rollout, old, rows, self.update, self.config)
            if batch.n_tokens == 0:
                skipped += 1
                continue
            with self._time("measure"):
                batch.now = batch.old if once else self._token_stats(batch.rollout, needs.now)
            targets = self.algorithm.advantage(batch, self.state)
            if number < self.config.batch.minibatches:
                credited.append((rows, targets))
            with self._time("update"):
                metrics = self._guarded_update(batch, targets, needs, step)
            for name, value in (metrics | targets.scalars).items():
                logged[name].append(value)
            self.update += 1
        if self.folder is not None:
            self.folder.log_credit(step, rollout, credited)
        if skipped and distributed.main_rank():
            warnings.warn(
                f"step {step}: {skipped} of {self.config.updates_per_step} updates had no sample to learn from "
                "(samples/no_value and samples/invalid in the log), and were skipped",
                stacklevel=2,
            )
        means = {name: sum(values) / len(values) for name, values in logged.items()}
        if old.logprobs is not None:
            # Of the whole rollout, at the weights that sampled it; later updates move away from them.
            means |= _gap(old.logprobs, rollout)
        return means | {"updates/skipped": float(skipped)}

    def _guarded_update(self, batch: Batch, targets: Targets, needs: Needs, step: int) -> dict[str, float]:
        """An update that is not finite is left out; several in a row end the run."""
        try:
            metrics = self._update(batch, targets, needs, step)
        except NotFiniteError as error:
            self._not_finite += 1
            if self._not_finite == NOT_FINITE_ALLOWED:
                raise
            if distributed.main_rank():
                warnings.warn(f"step {step}: {error}", stacklevel=2)
            return {"updates/not_finite": 1.0}
        self._not_finite = 0
        return metrics

    def _update(self, batch: Batch, targets: Targets, needs: Needs, step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        value_loss = self.algorithm.value_loss
        if self.critic is not None and value_loss is not None:

            def critic_loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
                return value_loss(new.get("values"), batch, targets)

            metrics |= self.critic.update(batch, targets, critic_loss, frozenset({"values"}))
        if self._policy_learns(step):
            metrics |= self.policy.update(batch, targets, self.algorithm.policy_loss, needs.grad, self.reference)
        return metrics

    def _token_stats(self, rollout: Rollout, want: frozenset[Stat]) -> TokenStats:
        stats = self.policy.token_stats(rollout, want - {"values"}, self.reference)
        if "values" in want and self.critic is not None:
            stats.values = self.critic.token_stats(rollout, frozenset({"values"})).values
        return stats

    def _minibatches(self, rollout: Rollout, step: int) -> Iterator[list[int]]:
        """Row numbers of each optimizer batch: whole groups, in an order that seed, step and epoch decide."""
        shape = self.config.batch
        groups = np.arange(len(rollout.keys)).reshape(-1, shape.samples_per_prompt)
        for epoch in range(shape.epochs):
            if shape.minibatches > 1:
                order = np.random.default_rng([self.config.seed, step, epoch]).permutation(len(groups))
                groups = groups[order]
            for part in np.array_split(groups, shape.minibatches):
                yield part.flatten().tolist()

    def _prove_sync(self) -> None:
        """Before anything is learnt: send weights that differ in every tensor, then the true ones. After one update
        at a small learning rate a sampler that took nothing over would agree as well as one that took all."""
        sampler = self.collector.sampler
        with self.policy.perturbed():
            sampler.sync(self.policy.weights(), self.step)
            self._check_sampler()
        sampler.sync(self.policy.weights(), self.step)
        self._check_sampler()

    def _sync(self) -> None:
        self.collector.sampler.sync(self.policy.weights(), self.step)
        if self.step == 1 or _due(self.step, self.config.sampling.check_every):
            self._check_sampler()

    def _check_sampler(self) -> None:
        """Hold the sampler's log-probs against the trainer's: stale or partial weights are silent otherwise."""
        params = replace(self.sampling, max_tokens=min(16, self.sampling.max_tokens))
        rollout = self.collector.sample_unscored(self.problems[:8], self.step, params)
        gap = _gap(self.policy.token_stats(rollout, LOGPROBS).get("logprobs"), rollout)["sampler/gap_mean"]
        allowed = GAP_ALLOWED[self.config.model.dtype]
        if not gap <= allowed:
            raise RlkitError(
                f"step {self.step}: after the sync the sampler's log-probs are {gap:.3g} nats from the trainer's on "
                f"average (at most {allowed} is allowed): it does not hold the trainer's weights. Training on would be "
                "off-policy unseen. Try `-s sampler=transformers`, and report it with the output of `rlkit doctor`"
            )

    def _evaluate(self) -> None:
        self._timer.clear()
        if metrics := self._measure_pass_rate():
            self._log(metrics | {f"time/{phase}_s": seconds for phase, seconds in self._timer.items()})

    def _measure_pass_rate(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for benchmark in self.benchmarks:
            with self._time("eval"):
                metrics |= evaluate(
                    benchmark.collector, benchmark.problems, self.config.eval, self.sampling, benchmark.name
                )
        return metrics

    def _log(self, metrics: dict[str, float]) -> None:
        if self.folder is not None:
            self.folder.log_metrics(self.step, metrics)
        for tracker in self.trackers:
            tracker.log(self.step, metrics)

    def save(self) -> None:
        """A checkpoint of everything the next step depends on."""
        checkpoint.save(
            self.config.folder / "checkpoints",
            self.step,
            self._engines(),
            {"step": self.step, "update": self.update, "cursor": self.cursor.position, "state": self.state},
            keep=self.config.checkpoint.keep,
        )

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run's folder. RlkitError where there is none."""
        newest = checkpoint.latest(self.config.folder / "checkpoints")
        if newest is None:
            raise RlkitError(
                f"{self.config.folder} holds no checkpoint to resume from: delete the folder and start the run anew"
            )
        saved: dict[str, Any] = checkpoint.load(newest, self._engines())
        self.step, self.update, self.state = saved["step"], saved["update"], saved["state"]
        self.cursor.position = saved["cursor"]
        self._resumed = True

    def _engines(self) -> dict[str, Engine]:
        return {"policy": self.policy} | ({"critic": self.critic} if self.critic is not None else {})

    @contextmanager
    def _time(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._timer[phase] += time.perf_counter() - started


def _optimizer_batch(rollout: Rollout, old: TokenStats, rows: list[int], update: int, config: RunConfig) -> Batch:
    if len(rows) != len(rollout.keys):
        rollout, old = rollout.rows(rows), old.rows(rows)
    return Batch(
        rollout=rollout,
        old=old,
        n_sequences=int(rollout.valid.sum()),
        n_tokens=int(rollout.mask.sum()),
        update=update,
        progress=update / (config.steps * config.updates_per_step),
    )


def _gap(logprobs: Tensor, rollout: Rollout) -> dict[str, float]:
    """How far the sampler's log-probs are from the trainer's, over the policy's tokens."""
    gap = (logprobs - rollout.sampler_logprobs).abs()[rollout.mask]
    return {"sampler/gap_mean": float(gap.mean()), "sampler/gap_max": float(gap.max())} if len(gap) else {}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@dataclass
class _Interrupt:
    asked: bool = False


@contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    """The first interrupt or termination asks for an end; the second is what it is elsewhere: an end at once."""
    interrupt = _Interrupt()
    before: dict[signal.Signals, Any] = {}

    def ask(signum: int, frame: Any) -> None:
        interrupt.asked = True
        for number, handler in before.items():
            signal.signal(number, handler)
        if distributed.main_rank():
            print("\nending after this step; once more to end at once", flush=True)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: whoever called from there handles interrupts
        before.clear()
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
