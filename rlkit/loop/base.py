"""What the loop does at every step, whenever its samples are made; and before and after the steps. It knows no
algorithm.

    samples -> measure -> learn -> record -> save -> show, evaluate

What a step has learnt is in metrics.jsonl, and saved where a checkpoint is due, before anything else is tried: nothing
that fails later (a tracker, an evaluation, a sync) loses it.
"""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rlkit.config import RunConfig
from rlkit.data import Problem
from rlkit.engine import checkpoint, distributed
from rlkit.engine.deepspeed import Engine
from rlkit.engine.profiling import Profiler
from rlkit.errors import DiskError, DroppedError, NotFiniteError, RlkitError, StaleWeightsError, UnhealthyError
from rlkit.evaluation.in_training import Benchmark, evaluate
from rlkit.generation import make_room
from rlkit.generation.assemble import assemble
from rlkit.generation.sampled import Scored
from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.progress import Progress, unseen
from rlkit.loop.describe import describe, disturbed
from rlkit.loop.dynamic_sampling import Gathered, Gatherer
from rlkit.loop.interrupts import Interrupt
from rlkit.loop.learner import Credited, Learner, gap
from rlkit.loop.log import Log
from rlkit.loop.rollouts import Taken
from rlkit.loop.state import RunState
from rlkit.loop.sync import Sync, due
from rlkit.records.folder import RunFolder
from rlkit.records.provenance import digest_of

T = TypeVar("T")


@dataclass(kw_only=True)
class Loop(ABC):
    """One run. Every rank has one, and all are called alike."""

    config: RunConfig
    learner: Learner
    sync: Sync | None
    """None: nothing is sampled, for training or for evaluation."""
    benchmarks: Sequence[Benchmark]
    """Measured before, during and after training, on clean rewards."""
    log: Log
    profiler: Profiler
    interrupt: Interrupt = field(default_factory=Interrupt)
    progress: Progress = unseen

    def __post_init__(self) -> None:
        self.learner.keep = self.log.not_finite
        self._saved: int | None = None
        self._logged = 0
        """The last step whose metrics are written: a checkpoint of a later one would leave a line out."""

    @abstractmethod
    def _taken(self, step: int) -> Taken:
        """The samples that the step learns from."""

    @abstractmethod
    def _scheduled(self, taken: Taken, rollout: Rollout) -> dict[str, float]:
        """What is logged of when and how these samples were made."""

    @abstractmethod
    def _settle(self) -> None:
        """Have the sampler at rest, as a sync and an evaluation must find it."""

    @abstractmethod
    def _ahead(self) -> dict[str, Any] | None:
        """What a checkpoint must hold of the next step's samples; None: nothing, since they are yet to be made."""

    @property
    def state(self) -> RunState:
        return self.learner.state

    @property
    def finished(self) -> bool:
        return self.state.step >= self.config.steps

    def train(self) -> int:
        """Run the steps that are left. A signal ends it after the step in hand, or without it where that would take too
        long, with all of it saved; so does a health check that fails, with UnhealthyError. DiskError where a file
        cannot be written: of what is whole a checkpoint is tried before.

        Returns the signal's number; 0: nothing is left to do.
        """
        with self.interrupt.listening():
            try:
                self._steps()
            except DroppedError:
                self.interrupt.settle()
                # Of the step in hand nothing was learnt: all is as it was after the one before.
                if self.sync is not None:
                    make_room(self.sync.collector.sampler, until_sync=True)
            except DiskError:
                self._save_what_is_logged()
                raise
            by = max(distributed.gather_objects(self.interrupt.by))
            if by and self._saved != self.state.step:
                self.save()
            return by if not (self.finished and self._evaluated()) else 0

    def _steps(self) -> None:
        self._prove()
        if not self._evaluated():
            self._evaluate()
        while not self.finished and not self._asked_to_end():
            with self.profiler.watch(self.state.step + 1):
                rollout, credited, metrics = self._one_step()
            step = self.state.step
            self.log.metrics(step, metrics)
            self._logged = step
            try:
                self.log.credit(step, rollout, credited)
            finally:
                # Whatever became of that, and after it: a resume makes only later steps.
                if self.finished or due(step, self.config.checkpoint_every):
                    self.save()
            self.log.mirror(step, metrics)
            # A resume makes an evaluation that is missing.
            if (self.finished or due(step, self.config.eval.every)) and not self._asked_to_end():
                self._evaluate()
            if not self.finished:
                self._end_if_unhealthy(step)

    def _asked_to_end(self) -> bool:
        """On every rank, if one was asked. Collective."""
        return distributed.any_rank(bool(self.interrupt.by))

    def _save_what_is_logged(self) -> None:
        if self._logged == self.state.step:
            try:
                self._save_what_is_done()
            except RlkitError as error:
                warnings.warn(f"step {self.state.step} could not be saved: {error}", stacklevel=2)

    def _end_if_unhealthy(self, step: int) -> None:
        failed = self.log.failed_check()
        if failed is None:
            return
        self._save_what_is_done()
        check, said = failed
        self.log.stop(step, check, said)
        raise UnhealthyError(f"stopped after step {step} of {self.config.steps} by health.{check}. {said}")

    @property
    def learnt(self) -> bool:
        """Whether an update was ever made."""
        return any(engine.updates > 0 for engine in self._engines().values())

    def complete(self) -> bool:
        """The last evaluation of a finished run, where it was ended before it was made. False: it is there."""
        if self._evaluated():
            return False
        self._prove()
        self._evaluate()
        return True

    def _prove(self) -> None:
        if self.sync is not None:
            self.sync.prove()

    def _one_step(self) -> tuple[Rollout, Credited, dict[str, float]]:
        """Learn from the step's samples. What it returns is all there is to write of it."""
        started = time.perf_counter()
        learner = self.learner
        learner.timer.clear()
        learner.passed.clear()
        step = self.state.step + 1

        taken = self._taken(step)
        gathered = taken.gathered
        rollout = self._assembled(gathered.scored, gathered.rewards, gathered.replaced)
        old = learner.measure(rollout, step)
        self.log.rollout(step, rollout, gathered, old)
        metrics = self._described(gathered, rollout)
        if distributed.any_rank(self.interrupt.late):
            raise DroppedError
        try:
            learnt, credited = learner.learn(rollout, old, step)
        except NotFiniteError:
            # The weights are sound, since such updates are left out: a resume takes up this step anew.
            self._save_what_is_done()
            raise
        metrics |= learnt
        self.state.step, self.state.place = step, taken.after
        if old.logprobs is not None:
            # Of the whole rollout, at the weights that it began with; later updates move away from them.
            metrics |= gap(old.logprobs, rollout)
        metrics = self._without_gap(metrics, rollout, step)
        metrics |= self._scheduled(taken, rollout)
        metrics |= {f"time/{phase}_s": spent for phase, spent in learner.timer.items()}
        metrics["time/step_s"] = time.perf_counter() - started
        metrics["throughput/tokens_per_s"] = float(rollout.length.sum()) / metrics["time/step_s"]
        metrics |= learner.utilisation()
        metrics["memory/peak_gib"] = distributed.peak_memory_gib()
        return rollout, credited, metrics

    def _without_gap(self, metrics: dict[str, float], rollout: Rollout, step: int) -> dict[str, float]:
        """The metrics without the sampler's gap, where it is of two distributions that are meant to differ: it would
        say nothing of the sampler."""
        if not self.config.sampling.truncated and not bool((rollout.version < step - 1).any()):
            return metrics
        return {name: value for name, value in metrics.items() if not name.startswith("sampler/gap_")}

    def _kept(self, take: Callable[[], T]) -> T:
        """What `take` gives. Where that fails nothing was learnt from it: when what failed is mended, the run can go on
        from here."""
        try:
            return take()
        except RlkitError:
            self._save_what_is_done()
            raise

    def _sync(self) -> None:
        """Give the sampler the newest weights. Where it turns out not to hold them, the trainer's are sound: they are
        kept, and nothing is learnt from its samples."""
        try:
            if self.sync is not None:
                self.sync.newest()
        except StaleWeightsError:
            self._save_what_is_done()
            raise

    def _described(self, gathered: Gathered, rollout: Rollout) -> dict[str, float]:
        """Rewards and lengths are of the first draw, replaced groups and all: it is a fair one, and of the same prompts
        for all algorithms."""
        scored, rewards = gathered.scored[: gathered.first], gathered.rewards[: gathered.first]
        if any(gathered.replaced):
            rollout = self._assembled(scored, rewards)
        metrics = describe(scored, rollout) | gathered.metrics
        if self.config.noise:
            metrics["reward/disturbed"] = disturbed([s.result for s in scored], rewards)
        return metrics

    def _assembled(
        self, scored: Sequence[Scored], rewards: Sequence[float | None], replaced: Sequence[bool] | None = None
    ) -> Rollout:
        algorithm = self.learner.algorithm
        return assemble(
            scored,
            rewards,
            compares_groups=algorithm.compares_groups,
            leaves_out_truncated=algorithm.leaves_out_truncated,
            replaced=replaced,
        )

    def _evaluated(self) -> bool:
        """Whether the evaluation that is due at this step is in the log; True where none is."""
        step = self.state.step
        if not self.benchmarks or not (step == 0 or self.finished or due(step, self.config.eval.every)):
            return True
        return self.log.has_evaluation(step)

    def _evaluate(self) -> None:
        if self.sync is None or not self.benchmarks:
            return
        self._settle()
        started = time.perf_counter()
        self._sync()
        metrics: dict[str, float] = {}
        for benchmark in self.benchmarks:
            metrics |= evaluate(
                benchmark.collector, benchmark.problems, self.config.eval, self.sync.params, benchmark.name
            )
        metrics["time/eval_s"] = time.perf_counter() - started
        self.log.metrics(self.state.step, metrics)
        self.log.mirror(self.state.step, metrics)

    def save(self) -> None:
        """A checkpoint of everything the next step depends on."""
        state = replace(self.state, ahead=self._ahead())
        self.progress("saving")
        started = time.monotonic()
        checkpoint.save(
            RunFolder(self.config.folder).checkpoints,
            state.step,
            self._engines(),
            state.saved(),
            keep=self.config.checkpoint.keep,
            reference=self.learner.reference,
            config=digest_of(self.config),
            best=self.log.best_checkpoint(),
        )
        self.interrupt.save_s = time.monotonic() - started
        self._saved = state.step

    def _save_what_is_done(self) -> None:
        """A checkpoint, where a step has been made since the last one."""
        if 0 < self.state.step != self._saved:
            self.save()

    def add_model(self) -> bool:
        """The newest checkpoint's model, where it could not be written with it. False: it is there."""
        newest = checkpoint.latest(RunFolder(self.config.folder).checkpoints)
        return newest is not None and checkpoint.add_model(newest, self.learner.policy)

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run's folder that is whole. A run that was ended before it saved one
        begins anew, with the same samples. RlkitError where that is not where it began."""
        run = RunFolder(self.config.folder)
        newest = checkpoint.newest_sound(run.checkpoints)
        if newest is not None:
            self._go_on_with(self._loaded(newest))
        elif "from" in run.read_provenance():
            raise RlkitError(
                f"{run.path} holds no checkpoint to resume from, and began with another run's: delete the folder and "
                "type again what began it"
            )
        self.log.goes_on_from = self._saved = self._logged = self.state.step

    def begin_from(self, path: Path, *, same_algorithm: bool, same_samples: bool) -> None:
        """Begin a new run where another was at a checkpoint. Of what is not the same the state is left out: what the
        algorithm remembers, and samples that are there already."""
        state = self._loaded(path, fork=True)
        if not same_algorithm:
            state.algorithm = {}
        if not same_samples:
            state.ahead = None
        self._go_on_with(state)

    def _loaded(self, path: Path, fork: bool = False) -> RunState:
        saved = checkpoint.load(path, self._engines(), self.learner.reference, fork=fork)
        return RunState.restored(saved, str(path))

    def _go_on_with(self, state: RunState) -> None:
        self.learner.state = state

    def _engines(self) -> dict[str, Engine]:
        critic = self.learner.critic
        return {"policy": self.learner.policy} | ({"critic": critic} if critic is not None else {})


@dataclass(kw_only=True)
class SamplingLoop(Loop):
    """A run that samples what it learns from."""

    sync: Sync
    gatherer: Gatherer
    problems: Sequence[Problem]
