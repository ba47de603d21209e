"""What a run writes and shows: its folder, the console, and mirrors of both (wandb, TensorBoard, a plugin's).

A tracker's factory gets its options and a RunInfo, and returns an `rlkit.interfaces.Tracker`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
