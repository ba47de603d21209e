"""Responses of the arms to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.comparison.runs import Run
from rlkit.interfaces.rewards import VALUELESS
from rlkit.records.samples import read

PROMPTS = 3
"""Shown of each condition."""
CHARACTERS = 4000
"""Shown of a response."""


@dataclass(frozen=True)
class Answered:
    arm: str
    response: str
    left_out: int
    """Characters after those shown."""
    clean_reward: float | None
    """None: the reward function gave none."""
    reward: float | None
    """What the loss saw; None: nothing, since noise took it away or the function gave none."""
    status: str
    truncated: bool


@dataclass(frozen=True)
class SideBySide:
    prompt: str
    answer: str
    responses: Sequence[Answered]
    """One an arm: the first of its group."""


@dataclass(frozen=True)
class Samples:
    condition: str
    seed: int
    step: int
    prompts: Sequence[SideBySide]


def samples(runs: Sequence[Run], condition: str) -> Samples | None:
    """The first prompts of the last step that all arms have, under the first seed they have in common. None where
    there is none, or no prompt in common."""
    under = [run for run in runs if run.condition == condition]
    arms = list(dict.fromkeys(run.arm for run in under))
    for seed in sorted({run.seed for run in under}):
        group = [run for run in under if run.seed == seed]
        if len(group) < len(arms):
            continue
        steps = set.intersection(*({*run.rollouts} for run in group))
        if not steps:
            continue
        firsts = [_firsts(run, max(steps)) for run in group]
        common = [prompt for prompt in firsts[0] if all(prompt in each for each in firsts)][:PROMPTS]
        if common:
            shown = [_side_by_side([each[prompt] for each in firsts], group) for prompt in common]
            return Samples(condition, seed, max(steps), shown)
    return None


def _firsts(run: Run, step: int) -> dict[str, dict[str, Any]]:
    """Prompt id -> its first sample."""
    columns = ["prompt_id", "index", "prompt", "answer", "response", "reward", "clean_reward", "status", "truncated"]
    rows = read(run.rollouts[step], columns).to_pylist()
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["index"] == 0:
            found.setdefault(row["prompt_id"], row)
    return found


def _side_by_side(rows: Sequence[dict[str, Any]], runs: Sequence[Run]) -> SideBySide:
    return SideBySide(
        prompt=rows[0]["prompt"],
        answer=rows[0]["answer"],
        responses=[
            Answered(
                arm=run.arm,
                response=row["response"][:CHARACTERS],
                left_out=max(0, len(row["response"]) - CHARACTERS),
                clean_reward=None if row["status"] in VALUELESS else row["clean_reward"],
                reward=row["reward"],
                status=row["status"],
                truncated=row["truncated"],
            )
            for row, run in zip(rows, runs, strict=True)
        ],
    )
