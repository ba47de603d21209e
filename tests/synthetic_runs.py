"""Runs' folders as rlkit writes them, with made-up numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Metrics = Mapping[str, float | None]

PROVENANCE = {
    "versions": {"python": "3.12.1", "rlkit": "0.1.0", "torch": "2.13.0"},
    "plugins": {"rewards/final_answer": "rlkit-rlvr 0.1.0"},
    "git": {"commit": "0123456789abcdef", "changed": False},
    "platform": "Linux-6.1",
    "cores": 2,
    "resumed": [],
}


def rising(level: float) -> Callable[[int], Metrics]:
    """A step's metrics: a reward that climbs from 0.2 to `level` over 20 steps, half a second and 100 tokens a step."""

    def at(step: int) -> Metrics:
        reward = 0.2 + (level - 0.2) * min(step, 20) / 20
        row: dict[str, float | None] = {
            "reward/mean": reward,
            "reward/clean": reward,
            "time/step_s": 0.5,
            "throughput/tokens_per_s": 200.0,
            "policy/kl": 0.001 * step,
        }
        if step % 10 == 0:
            row["eval/heldout/mean@1"] = reward
        return row

    return at


def write_run(
    folder: Path,
    algo: str = "grpo",
    seed: int = 0,
    level: float = 0.8,
    *,
    steps: int = 20,
    done: int | None = None,
    noise: Sequence[Mapping[str, Any]] = (),
    metrics: Callable[[int], Metrics] | None = None,
    settings: Mapping[str, Any] | None = None,
    algo_settings: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """`done`: steps that it has made. `settings` and `provenance` replace whole entries of config and provenance."""
    folder.mkdir(parents=True)
    config = {
        "name": folder.name,
        "out": str(folder.parent),
        "seed": seed,
        "steps": steps,
        "algo": {"kind": algo, **(algo_settings or {})},
        "data": {"path": "embedded:arithmetic", "split": "train"},
        "noise": [*map(dict, noise)],
        "batch": {"prompts_per_step": 4, "samples_per_prompt": 2},
        "optimizer": {"lr": 3e-4, "weight_decay": 0.0},
        "plugins": [],
        "trackers": [],
        "checkpoint": {"every": 0},
        **(settings or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "provenance.json").write_text(json.dumps({**PROVENANCE, "seed": seed, **(provenance or {})}))
    at = metrics or rising(level)
    rows = [{"step": step, **at(step)} for step in range(1, (steps if done is None else done) + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_rollout(run: Path, step: int, prompts: Sequence[str], responses: Sequence[str] | None = None) -> None:
    """Two samples of each prompt."""
    responses = responses or [f"{prompt}4" for prompt in prompts]
    pairs = [(prompt, response, index) for prompt, response in zip(prompts, responses, strict=True) for index in (0, 1)]
    columns = {
        "prompt_id": [f"id of {prompt}" for prompt, _, _ in pairs],
        "index": [index for _, _, index in pairs],
        "prompt": [prompt for prompt, _, _ in pairs],
        "answer": ["4" for _ in pairs],
        "response": [response for _, response, _ in pairs],
        "reward": [0.0 for _ in pairs],
        "clean_reward": [1.0 for _ in pairs],
        "status": ["ok" for _ in pairs],
        "truncated": [False for _ in pairs],
    }
    (run / "rollouts").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), run / "rollouts" / f"step-{step:06d}.parquet")
