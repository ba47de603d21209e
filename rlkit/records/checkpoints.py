"""The names of checkpoints in a run's folder. What is in one, and how it gets there, is rlkit/engine/checkpoint.py's.

One is complete or invisible: it is written under a hidden name, and gets its own when it is whole. So whatever has such
a name is complete.
"""

from __future__ import annotations

import re
from pathlib import Path

MODEL = "hf"
"""In a checkpoint: the policy as a Hugging Face folder."""
ADAPTER = "adapter"
"""Likewise: its LoRA adapters alone, as peft has them."""


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint after `step`, whether it is there or not. `folder` holds a run's checkpoints."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint is of, by its name."""
    return int(path.name.removeprefix("step-"))


def complete(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; none where there is no such folder."""
    if not folder.is_dir():
        return []
    found = {int(name[1]): child for child in folder.iterdir() if (name := re.fullmatch(r"step-(\d{8,})", child.name))}
    return [found[step] for step in sorted(found)]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder; None where there is none."""
    return next(reversed(complete(folder)), None)
