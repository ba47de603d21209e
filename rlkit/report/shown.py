"""A few of a run's responses, as they stand in its rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlkit.errors import RlkitError
from rlkit.interfaces.rewards import VALUELESS
from rlkit.records.folder import RunFolder
from rlkit.records.samples import read, step_files

SHOWN = 3
"""Of a step: the first responses to its first prompts."""
LONGEST = 3000
"""Characters of a text that the page shows; of a longer one, the beginning and, since the answer is there, the end."""
COLUMNS = ["group", "prompt", "answer", "response", "reward", "clean_reward", "status", "valid", "truncated", "parts"]


@dataclass(frozen=True, kw_only=True)
class Shown:
    prompt: str
    gold: str
    response: str
    clean: float | None
    """None: it got no value."""
    reward: float | None
    """What the loss saw; None: it was left out."""
    status: str
    truncated: bool
    parts: dict[str, float]


def of_three_steps(run: RunFolder) -> tuple[dict[int, list[Shown]], list[str]]:
    """Step -> samples, of the first, the middle and the last step of which there are rollouts; and what is wrong with
    those of their files that cannot be read."""
    files = list(step_files(run.rollouts).items())
    shown, damaged = {}, []
    for at in sorted({0, len(files) // 2, len(files) - 1}) if files else []:
        step, file = files[at]
        try:
            shown[step] = _shown(file)
        except RlkitError as error:
            damaged.append(str(error))
    return shown, damaged


def _shown(file: Path) -> list[Shown]:
    rows = read(file, COLUMNS).to_pylist()
    first = {row["group"]: row for row in reversed(rows)}
    return [
        Shown(
            prompt=_cut(row["prompt"]),
            gold=_cut(row["answer"]),
            response=_cut(row["response"]),
            clean=None if row["status"] in VALUELESS else row["clean_reward"],
            reward=row["reward"] if row["valid"] else None,
            status=row["status"],
            truncated=row["truncated"],
            parts=dict(row["parts"] or []),
        )
        for row in (first[group] for group in sorted(first)[:SHOWN])
    ]


def _cut(text: str) -> str:
    left_out = len(text) - LONGEST
    if left_out <= 0:
        return text
    return f"{text[: LONGEST * 2 // 3]}\n[... {left_out:,} characters left out ...]\n{text[-(LONGEST // 3) :]}"
