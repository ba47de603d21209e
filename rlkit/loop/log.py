"""What is written of a run while it goes: metrics, rollouts and credit in its folder, and what trackers mirror.

Whatever rank 0 cannot write is a DiskError on every rank, so that all end alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlkit.config import RunConfig
from rlkit.engine import distributed
from rlkit.errors import DiskError, NotFiniteError, RlkitError, nearest
from rlkit.files import cannot_write
from rlkit.generation.sampled import Scored
from rlkit.interfaces.learning import Batch, Rollout, Targets, TokenStats
from rlkit.loop.dynamic_sampling import Gathered
from rlkit.loop.learner import Credited
from rlkit.records import checkpoints
from rlkit.records.folder import RunFolder
from rlkit.tracking import Tracker


@dataclass
class Log:
    """Every rank has one; `folder` and `trackers` are rank 0's alone, and on the others nothing is written."""

    config: RunConfig
    folder: RunFolder | None
    trackers: Sequence[Tracker]
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of the data, for the run's provenance."""
    unhealthy: Callable[[], tuple[str, str] | None] | None = None
    """The health check of the config's that has failed by now, and what it says; on rank 0."""
    goes_on_from: int | None = None
    """The step that a resumed run goes on from, until what was written of later ones is cut off."""

    def rollout(self, step: int, rollout: Rollout, gathered: Gathered, old: TokenStats) -> None:
        """Write the rollout before anything is learnt from it: where that fails, it is the evidence."""
        scored = gathered.scored
        self._write(
            lambda folder: folder.log_rollout(
                step,
                rollout,
                prompts=[s.problem.text for s in scored],
                answers=[s.problem.answer for s in scored],
                texts=[s.text for s in scored],
                results=[s.result for s in scored],
                rewards=gathered.rewards,
                replaced=gathered.replaced,
                stats=old,
            )
        )
        each = self.config.batch.samples_per_prompt
        shown = [_shown(scored[row], rollout, row) for row in range(0, min(len(scored), 8 * each), each)]
        for tracker in self.trackers:
            tracker.log_samples(step, shown)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write(lambda folder: folder.log_metrics(step, metrics))

    def credit(self, step: int, rollout: Rollout, credited: Credited) -> None:
        self._write(lambda folder: folder.log_credit(step, rollout, credited))

    def not_finite(
        self, step: int, number: int, rows: Sequence[int], batch: Batch, targets: Targets, error: NotFiniteError
    ) -> str:
        """Keep the batch of an update that is not finite. Returns the file."""
        file = RunFolder(self.config.folder).not_finite_file(step, number)
        self._write(lambda folder: folder.log_not_finite(file, rows, batch, targets, error.samples))
        return str(file)

    def _write(self, write: Callable[[RunFolder], None]) -> None:
        failure: RlkitError | None = None
        if self.folder is not None:
            try:
                if self.goes_on_from is not None:
                    # Not before: a resume that fails leaves the run as it was.
                    self.folder.cut_after(self.goes_on_from, self.config, self.digests)
                    self.goes_on_from = None
                write(self.folder)
            except OSError as error:
                failure = DiskError(cannot_write(self.folder.path, error))
            except RlkitError as error:
                failure = error
        distributed.raise_everywhere(failure)

    def mirror(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def best_checkpoint(self) -> int | None:
        """The step of the checkpoint that is best so far by `checkpoint.best`, on the main rank."""
        by = self.config.checkpoint.best
        if by is None or self.folder is None:
            return None
        rows = self.folder.read_metrics()
        names = {name for row in rows for name in row} - {"step"}
        if by.removeprefix("-") not in names:
            warnings.warn(
                f"checkpoint.best: {by}: no step so far has this metric{nearest(by.removeprefix('-'), names)}. Until "
                "one has it, the newest checkpoints alone are kept",
                stacklevel=2,
            )
        path = checkpoints.best(self.folder.checkpoints, rows, by)
        return checkpoints.step_of(path) if path else None

    def failed_check(self) -> tuple[str, str] | None:
        """The health check that ends the run, and what it says, on every rank; None: it goes on."""
        if not self.config.health.limits:
            return None
        return distributed.gather_objects(self.unhealthy() if self.unhealthy is not None else None)[0]

    def stop(self, step: int, check: str, said: str) -> None:
        """Note that a health check ends the run after this step."""
        self._write(lambda folder: folder.note_stop(step, check, said))

    def has_evaluation(self, step: int) -> bool:
        """Whether one is in the log at this step: on every rank, if it is on rank 0."""
        there = False
        if self.folder is not None:
            rows = [row for row in self.folder.read_metrics() if row["step"] == step]
            there = any(name.startswith("eval/") for row in rows for name in row)
        return distributed.any_rank(there)


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
