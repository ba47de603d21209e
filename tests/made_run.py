"""A run's folder with what a test wants to have happened in it, made without training."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rlkit.config import load
from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.records.folder import RunFolder

HOSTILE = (
    '<script>document.title = "ran"</script>',
    '<img src="missing" onerror="document.title = \'ran\'"> & </script><!-- {{ 1 }}',
    "\x1b[31mred\x1b[0m \x07\x00 \u202egnihton \x9b2J",
)
"""Responses that are more than text to a page or a terminal that is careless."""


def make_run(
    path: Path,
    metrics: Sequence[Mapping[str, float]],
    responses: Sequence[str] = (),
    algo: str = "grpo",
    noise: Sequence[str] = (),
) -> RunFolder:
    """`metrics`: a dict a step, from step 1. With `responses`, each step has a rollout: one prompt for each of them."""
    config = load("embedded_xs", [f"steps={max(1, len(metrics))}"], algo)
    config = config.model_copy(update={"noise": load("embedded_xs", [f"noise={list(noise)}"]).noise})
    folder = RunFolder.create(path, config)
    for step, row in enumerate(metrics, 1):
        if responses:
            log_responses(folder, step, responses)
        folder.log_metrics(step, row)
    return folder


def log_responses(folder: RunFolder, step: int, responses: Sequence[str]) -> None:
    """A rollout of one sample a prompt: the first disturbed, the last without a value."""
    count = len(responses)
    ones = torch.ones(count)
    rollout = Rollout(
        keys=[SampleKey(f"prompt{row}", step, 0, 0) for row in range(count)],
        prompt_tokens=[torch.tensor([1, 2])] * count,
        tokens=torch.ones(count, 3, dtype=torch.long),
        length=torch.full((count,), 3),
        mask=torch.ones(count, 3, dtype=torch.bool),
        valid=torch.arange(count) < count - 1,
        group=torch.arange(count),
        reward=ones - (torch.arange(count) == 0).float(),
        clean_reward=ones,
        sampler_logprobs=torch.zeros(count, 3),
        version=torch.zeros(count, dtype=torch.long),
        truncated=torch.arange(count) == 1,
    )
    results = [RewardResult(value=1.0, correct=True)] * (count - 1) + [RewardResult(value=None, status="timeout")]
    folder.log_rollout(
        step,
        rollout,
        prompts=[f"prompt {row} of step {step}" for row in range(count)],
        answers=[f"gold {row}" for row in range(count)],
        texts=responses,
        results=results,
        rewards=[0.0, *[result.value for result in results[1:]]],
    )


def healthy(steps: int = 80, seed: int = 0) -> list[dict[str, float]]:
    """The metrics of a run that learns, as one of the small model looks."""
    coins = random.Random(seed)

    def about(value: float) -> float:
        return value * coins.uniform(0.85, 1.15)

    rows = []
    for step in range(steps):
        learnt = 1 - math.exp(-4 * step / steps)
        reward = 0.35 + 0.5 * learnt + coins.uniform(-0.05, 0.05)
        row = {
            "reward/mean": reward,
            "reward/clean": reward,
            "reward/pass_rate": reward,
            "response/length": about(14 + 7 * learnt),
            "response/length_max": 32.0,
            "response/truncated": coins.choice([0.0, 0.0, 0.01]),
            "groups/equal_rewards": about(0.05 + 0.25 * learnt),
            "samples/no_value": 0.0,
            "samples/invalid": 0.0,
            "samples/ok": 128.0,
            "policy/loss": coins.uniform(-0.1, 0.1),
            "policy/kl": about(0.06 * learnt),
            "policy/entropy": about(0.25 - 0.2 * learnt),
            "policy/clip_share": about(0.02),
            "policy/grad_norm": about(0.4),
            "policy/lr": 3e-4,
            "sampler/gap_mean": about(1e-7),
            "sampler/gap_max": about(5e-6),
            "updates/skipped": 0.0,
            "vimpo/actor_ratio": 0.0125,
            "time/sample_s": about(0.04),
            "time/score_s": about(0.001),
            "time/measure_s": about(0.03),
            "time/update_s": about(0.07),
            "time/sync_s": about(0.001),
            "time/step_s": 0.2,
            "throughput/tokens_per_s": about(18000),
            "memory/peak_gib": 0.6,
        }
        if step % 20 == 19:
            row |= {"eval/heldout/mean@1": reward, "eval/heldout/length": 20.0, "time/eval_s": about(0.1)}
        rows.append(row)
    return rows
