"""What is written of a run while it goes: metrics, rollouts and credit in its folder, and what trackers mirror."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlkit.config import RunConfig
from rlkit.engine import distributed
from rlkit.errors import nearest
from rlkit.generation.collector import Scored
from rlkit.interfaces.learning import Rollout, TokenStats
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
    goes_on_from: int | None = None
    """The step that a resumed run goes on from, until what was written of later ones is cut off."""

    def rollout(self, step: int, rollout: Rollout, gathered: Gathered, old: TokenStats) -> None:
        """Write the rollout before anything is learnt from it: where that fails, it is the evidence."""
        if self.folder is None:
            return
        if self.goes_on_from is not None:
            # Not before: a resume that fails leaves the run as it was.
            self.folder.cut_after(self.goes_on_from, self.config, self.digests)
            self.goes_on_from = None
        scored = gathered.scored
        self.folder.log_rollout(
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
        each = self.config.batch.samples_per_prompt
        shown = [_shown(scored[row], rollout, row) for row in range(0, min(len(scored), 8 * each), each)]
        for tracker in self.trackers:
            tracker.log_samples(step, shown)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.folder is not None:
            self.folder.log_metrics(step, metrics)

    def credit(self, step: int, rollout: Rollout, credited: Credited) -> None:
        if self.folder is not None:
            self.folder.log_credit(step, rollout, credited)

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
