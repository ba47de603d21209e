"""Mirrors of what a run writes into its folder: the console, wandb, TensorBoard, a plugin's.

A tracker's factory gets its options and a RunInfo, and returns a Tracker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlkit import registry
from rlkit.tracking.mirror import Mirror

if TYPE_CHECKING:
    from rlkit.config import PluginRef


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a tracker's factory is told of the run."""

    name: str
    folder: Path
    config: dict[str, Any]
    """Resolved, as in config.yaml."""
    steps: int
    """Of the whole run."""

    @property
    def algo(self) -> str:
        return str(self.config["algo"]["kind"])

    @property
    def model(self) -> str:
        """The last part of the model's path: `Qwen3-4B-Base`, `embedded:s`."""
        return _last_part(self.config["model"]["path"])

    @property
    def data(self) -> str:
        """The last part of the data's path."""
        return _last_part(self.config["data"]["path"])


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


class Tracker(Protocol):
    """Mirrors what a run writes. Lives on rank 0 only. A run calls it from a thread of its own, one call after the
    other; what it raises is said, and ends nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A few responses of the step, before anything is learnt from it: dicts with the keys prompt, question (the
        prompt as the data hold it), response, answer (the gold), reward (what the loss sees; None: it is left out),
        clean_reward (before noise; None: it got none), status, found (the answer that the verifier saw, or None),
        length (in tokens) and truncated."""
        ...

    def close(self) -> None: ...


def build_tracker(ref: PluginRef, info: RunInfo) -> Tracker:
    """The tracker that `ref` names; what it raises later ends no run. RlkitError where it cannot begin."""
    name = f"tracker {ref.kind!r}"
    return Mirror(registry.build("trackers", ref.kind, ref.options, info), name)
