"""The synchronous loop: each rollout is sampled with the weights that learn from it. It knows no algorithm.

    sync (the sampler gets the newest weights) -> sample, score -> measure -> learn -> record -> save -> show, evaluate

What a step has learnt is in metrics.jsonl, and saved where a checkpoint is due, before anything else is tried: nothing
that fails later (a tracker, an evaluation, a sync) loses it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from rlkit.config import RunConfig
from rlkit.data import Cursor, Problem
from rlkit.engine import checkpoint, distributed
from rlkit.engine.deepspeed import Engine
from rlkit.engine.passes import LOGPROBS
from rlkit.engine.profiling import Profiler
from rlkit.errors import NotFiniteError, RlkitError
from rlkit.evaluation.in_training import Benchmark, evaluate
from rlkit.generation import make_room
from rlkit.generation.assemble import assemble, unscored
from rlkit.generation.collector import Scored, draws
from rlkit.interfaces.learning import Rollout, TokenStats
from rlkit.interfaces.progress import Progress, unseen
from rlkit.loop.describe import describe, disturbed
from rlkit.loop.dynamic_sampling import Gathered, Gatherer
from rlkit.loop.learner import Credited, Learner, gap
from rlkit.loop.state import RunState
from rlkit.records.folder import RunFolder
from rlkit.tracking import Tracker

GAP_ALLOWED = {"float32": 1e-3, "bfloat16": 0.1}
"""Mean |sampler's - trainer's log-prob| past which the weights in the sampler are not the trainer's."""


@dataclass
class SynchronousLoop:
    """One run. Every rank has one; `folder` and `trackers` are rank 0's alone."""

    config: RunConfig
    learner: Learner
    gatherer: Gatherer
    problems: Sequence[Problem]
    benchmarks: Sequence[Benchmark]
    """Measured before, during and after training, on clean rewards."""
    folder: RunFolder | None
    trackers: Sequence[Tracker]
    profiler: Profiler
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of the data, for the run's provenance."""
    progress: Progress = unseen

    def __post_init__(self) -> None:
        self._sampler_has: int | None = None
        """The step whose weights the sampler has."""
        self._resumed = False
        self._saved: int | None = None

    @property
    def state(self) -> RunState:
        return self.learner.state

    @property
    def finished(self) -> bool:
        return self.state.step >= self.config.steps

    def train(self) -> None:
        """Run the steps that are left. An interrupt ends it after the step in hand, with all of it saved."""
        with _interruptible() as interrupt:
            self._prove_sync()
            if not self._evaluated():
                self._evaluate()
            while not self.finished and not distributed.any_rank(interrupt.asked):
                with self.profiler.watch(self.state.step + 1):
                    rollout, credited, metrics = self._one_step()
                step = self.state.step
                self._record(metrics)
                if self.finished or _due(step, self.config.checkpoint_every):
                    self.save()
                if self.folder is not None:
                    self.folder.log_credit(step, rollout, credited)
                self._mirror(metrics)
                if self.finished or _due(step, self.config.eval.every):
                    self._evaluate()
            self._save_what_is_done()

    def complete(self) -> bool:
        """The last evaluation of a finished run, where it was ended before it was made. False: it is there."""
        if self._evaluated():
            return False
        self._prove_sync()
        self._evaluate()
        return True

    def _one_step(self) -> tuple[Rollout, Credited, dict[str, float]]:
        """Sample, and learn from it. What it returns is all there is to write of it."""
        started = time.perf_counter()
        learner = self.learner
        learner.timer.clear()
        learner.passed.clear()
        step = self.state.step + 1

        self._sync()
        began = self.state.problems, self.state.replacements
        gathered = self._gather(step)
        rollout = self._assembled(gathered.scored, gathered.rewards, gathered.replaced)
        old = learner.measure(rollout, step)
        self._keep(step, rollout, gathered.scored, old)
        metrics = self._described(gathered, rollout)
        try:
            learnt, credited = learner.learn(rollout, old, step)
        except NotFiniteError:
            # The weights are sound, since such updates are left out: a resume takes up this step anew.
            self.state.problems, self.state.replacements = began
            self._save_what_is_done()
            raise
        metrics |= learnt
        self.state.step = step
        if old.logprobs is not None:
            # Of the whole rollout, at the weights that sampled it; later updates move away from them.
            metrics |= gap(old.logprobs, rollout)
        if self.config.sampling.truncated:
            # Of two distributions that are meant to differ: it would say nothing of the sampler.
            metrics = {name: value for name, value in metrics.items() if not name.startswith("sampler/gap_")}
        seconds = gathered.seconds | learner.timer
        metrics |= {f"time/{phase}_s": spent for phase, spent in seconds.items()}
        metrics["time/step_s"] = time.perf_counter() - started
        metrics["throughput/tokens_per_s"] = float(rollout.length.sum()) / metrics["time/step_s"]
        metrics |= learner.utilisation()
        metrics["memory/peak_gib"] = distributed.peak_memory_gib()
        return rollout, credited, metrics

    def _gather(self, step: int) -> Gathered:
        """The step's samples. Where that fails nothing was learnt from it: when what failed is mended, the run can go
        on from here."""
        state, seed = self.state, self.config.seed
        cursor = Cursor(len(self.problems), seed, state.problems)
        others = Cursor(len(self.problems), seed + 1, state.replacements)
        problems = [self.problems[i] for i in cursor.take(self.config.batch.prompts_per_step)]
        try:
            gathered = self.gatherer.gather(problems, step, lambda n: [self.problems[i] for i in others.take(n)])
            self._check_versions(gathered)
        except RlkitError:
            self._save_what_is_done()
            raise
        state.problems, state.replacements = cursor.position, others.position
        return gathered

    def _check_versions(self, gathered: Gathered) -> None:
        found = {s.completion.version for s in gathered.scored} - {self.state.step}
        if found:
            raise RlkitError(
                f"step {self.state.step + 1}: the sampler gave samples of policy version {min(found)}, and the policy "
                f"is at {self.state.step}: it did not take the newest weights over"
            )

    def _described(self, gathered: Gathered, rollout: Rollout) -> dict[str, float]:
        """Rewards and lengths are of the first draw, replaced groups and all: it is a fair one, and of the same prompts
        for all algorithms."""
        scored, rewards = gathered.scored[: gathered.first], gathered.rewards[: gathered.first]
        if any(gathered.replaced):
            rollout = self._assembled(scored, rewards)
        metrics = describe(scored, rollout) | gathered.metrics
        if self.gatherer.noises:
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

    def _keep(self, step: int, rollout: Rollout, scored: Sequence[Scored], old: TokenStats) -> None:
        """Write the rollout before anything is learnt from it: where that fails, it is the evidence."""
        if self.folder is None:
            return
        if self._resumed:
            # Not before: a resume that fails leaves the run as it was.
            self.folder.cut_after(self.state.step, self.config, self.digests)
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
        shown = [_shown(scored[row], rollout, row) for row in range(0, min(len(scored), 8 * each), each)]
        for tracker in self.trackers:
            tracker.log_samples(step, shown)

    def _prove_sync(self) -> None:
        """Before anything is learnt: send weights that differ in every tensor, then the true ones. After one update
        at a small learning rate a sampler that took nothing over would agree as well as one that took all."""
        policy, sampler, step = self.learner.policy, self.gatherer.collector.sampler, self.state.step
        self.progress("checking the sampler")
        self._make_room()
        with policy.perturbed():
            sampler.sync(policy.weights(), step)
            self._check_sampler()
        sampler.sync(policy.weights(), step)
        self._check_sampler()
        self._sampler_has = step

    def _sync(self) -> None:
        """Give the sampler the newest weights, where it has not got them."""
        step = self.state.step
        with self.learner.time("sync"):
            if self._sampler_has != step:
                self.progress("syncing weights")
                self._make_room()
                self.gatherer.collector.sampler.sync(self.learner.policy.weights(), step)
                self._sampler_has = step
                if step == 1 or _due(step, self.config.sampling.check_every):
                    self._check_sampler()

    def _make_room(self) -> None:
        """The learner's device is the sampler's next, where they share one."""
        if not getattr(self.gatherer.collector.sampler, "beside_training", False):
            self.learner.make_room()

    def _check_sampler(self) -> None:
        """Hold the sampler's log-probs against the trainer's: stale or partial weights are silent otherwise."""
        step, params = self.state.step, self.gatherer.params
        # The trainer's log-probs are of the whole distribution.
        params = replace(params, max_tokens=min(16, params.max_tokens), top_p=1.0, top_k=0)
        collector = self.gatherer.collector
        rollout = unscored(collector.sample(draws(self.problems[:8], 1, step), params, "check"))
        make_room(collector.sampler, until_sync=False)
        found = gap(self.learner.policy.token_stats(rollout, LOGPROBS).get("logprobs"), rollout)["sampler/gap_mean"]
        allowed = GAP_ALLOWED[self.config.model.dtype]
        if not found <= allowed:
            raise RlkitError(
                f"step {step}: after the sync the sampler's log-probs are {found:.3g} nats from the trainer's on "
                f"average (at most {allowed} is allowed): it does not hold the trainer's weights, or does not compute "
                "with them what the trainer does. Training on would be off-policy unseen. Try "
                "`-s sampler=transformers`, and report it with the output of `rlkit doctor`"
            )

    def _evaluated(self) -> bool:
        """Whether the evaluation that is due at this step is in the log; True where none is."""
        step = self.state.step
        if not self.benchmarks or not (step == 0 or self.finished or _due(step, self.config.eval.every)):
            return True
        there = False
        if self.folder is not None:
            rows = [row for row in self.folder.read_metrics() if row["step"] == step]
            there = any(name.startswith("eval/") for row in rows for name in row)
        return distributed.any_rank(there)

    def _evaluate(self) -> None:
        if not self.benchmarks:
            return
        started = time.perf_counter()
        self._sync()
        metrics: dict[str, float] = {}
        for benchmark in self.benchmarks:
            metrics |= evaluate(
                benchmark.collector, benchmark.problems, self.config.eval, self.gatherer.params, benchmark.name
            )
        metrics["time/eval_s"] = time.perf_counter() - started
        self._record(metrics)
        self._mirror(metrics)

    def _record(self, metrics: dict[str, float]) -> None:
        if self.folder is not None:
            self.folder.log_metrics(self.state.step, metrics)

    def _mirror(self, metrics: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(self.state.step, metrics)

    def save(self) -> None:
        """A checkpoint of everything the next step depends on."""
        self.progress("saving")
        checkpoint.save(
            RunFolder(self.config.folder).checkpoints,
            self.state.step,
            self._engines(),
            self.state.saved(),
            keep=self.config.checkpoint.keep,
            reference=self.learner.reference,
        )
        self._saved = self.state.step

    def _save_what_is_done(self) -> None:
        """A checkpoint, where a step has been made since the last one."""
        if 0 < self.state.step != self._saved:
            self.save()

    def add_model(self) -> bool:
        """The newest checkpoint's model, where it could not be written with it. False: it is there."""
        newest = checkpoint.latest(RunFolder(self.config.folder).checkpoints)
        return newest is not None and checkpoint.add_model(newest, self.learner.policy)

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run's folder. RlkitError where there is none."""
        newest = checkpoint.latest(RunFolder(self.config.folder).checkpoints)
        if newest is None:
            raise RlkitError(
                f"{self.config.folder} holds no checkpoint to resume from: delete the folder and start the run anew"
            )
        saved: dict[str, Any] = checkpoint.load(newest, self._engines(), self.learner.reference)
        self.learner.state = RunState.restored(saved, str(newest))
        self._resumed = True
        self._saved = self.state.step

    def _engines(self) -> dict[str, Engine]:
        critic = self.learner.critic
        return {"policy": self.learner.policy} | ({"critic": critic} if critic is not None else {})


def _shown(one: Scored, rollout: Rollout, row: int) -> dict[str, Any]:
    """A response as trackers get it; see Tracker.log_samples."""
    return {
        "prompt": one.problem.text,
        "question": one.problem.question,
        "response": one.text,
        "answer": one.problem.answer,
        "reward": float(rollout.reward[row]) if rollout.valid[row] else None,
        "clean_reward": one.result.value,
        "status": one.result.status,
        "found": _found(one.result.info),
        "length": len(one.completion.tokens),
        "truncated": one.completion.truncated,
    }


def _found(info: Mapping[str, Any]) -> str | None:
    """The answer that a verifier saw; of several rewards the first one's that names it."""
    named = (each["answer"] for each in (info, *info.values()) if isinstance(each, Mapping) and "answer" in each)
    return next((str(answer) for answer in named if not isinstance(answer, Mapping)), None)


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
            # What a shell starts in its background may have been told to ignore interrupts.
            signal.signal(number, signal.SIG_DFL if handler is signal.SIG_IGN else handler)
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
