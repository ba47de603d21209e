"""What is logged of a rollout: rewards, verdicts, lengths, groups, statuses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from rlkit.generation.sampled import Scored
from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.names import ENVIRONMENT
from rlkit.interfaces.rewards import RewardResult


def describe(scored: Sequence[Scored], rollout: Rollout) -> dict[str, float]:
    """Of the samples that were scored, in the rollout's rows."""
    valued = [s.result for s in scored if s.result.value is not None]
    clean = rollout.clean_reward[[s.result.value is not None for s in scored]]
    rewarded = rollout.reward[rollout.valid]
    metrics = {
        "reward/mean": float(rewarded.mean()) if len(rewarded) else math.nan,
        "reward/clean": float(clean.mean()) if len(clean) else math.nan,
        "reward/std": float(clean.std(unbiased=False)) if len(clean) else math.nan,
        "reward/pass_rate": sum(bool(r.correct) for r in valued) / len(valued) if valued else math.nan,
        "response/length": float(rollout.length.float().mean()),
        "response/length_max": float(rollout.length.max()),
        "response/truncated": float(rollout.truncated.float().mean()),
        "samples/no_value": float(len(scored) - len(valued)),
        "samples/invalid": float((~rollout.valid).sum()),
    }
    equal = _equal(rollout)
    if len(equal) < len(scored):
        metrics["groups/equal_rewards"] = float(equal.float().mean())
    for status, count in Counter(s.result.status for s in scored).items():
        metrics[f"samples/{status}"] = float(count)
    for name in sorted({name for r in valued for name in r.parts}):
        metrics[f"reward/part/{name}"] = sum(r.parts.get(name, 0.0) for r in valued) / len(valued)
    return metrics | _turns([s for s in scored if s.turns is not None])


def _turns(scored: Sequence[Scored]) -> dict[str, float]:
    """Of trajectories, as means over them; the numbers that environments give are known on the main rank."""
    said = [s.result.info.get(ENVIRONMENT) or {} for s in scored]
    if not any(said):
        return {}
    counts: Counter[str] = Counter()
    for one in said:
        counts.update(one.get("counts", {}))  # adding Counters would lose what is 0
    return {
        "environment/turns": sum(len(s.turns or ()) for s in scored) / len(scored),
        "environment/cut": sum(one.get("ended") in ("max_turns", "tokens") for one in said) / len(said),
        "environment/cut_turns": sum(one.get("ended") == "max_turns" for one in said) / len(said),
        **{f"environment/{name}": count / len(scored) for name, count in sorted(counts.items())},
    }


def _equal(rollout: Rollout) -> Tensor:
    """For each group, whether all its valid rewards are equal. One without any teaches nothing, too."""
    numbers, slot = torch.unique(rollout.group, return_inverse=True)
    lowest = torch.full((len(numbers),), math.inf, dtype=rollout.reward.dtype)
    highest = -lowest
    at, rewards = slot[rollout.valid], rollout.reward[rollout.valid]
    return lowest.scatter_reduce(0, at, rewards, "amin") >= highest.scatter_reduce(0, at, rewards, "amax")


def disturbed(results: Sequence[RewardResult], rewards: Sequence[float | None]) -> float:
    """The share of rewards that noise has changed or taken away, among those that had a value."""
    pairs = [(r.value, noisy) for r, noisy in zip(results, rewards, strict=True) if r.value is not None]
    return sum(clean != noisy for clean, noisy in pairs) / max(len(pairs), 1)
