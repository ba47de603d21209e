"""rlkit: reinforcement learning from verifiable rewards on language models, for comparing algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlkit.assembly.run import train
    from rlkit.interfaces.declarations import Needs
    from rlkit.interfaces.learning import (
        Advantage,
        Algorithm,
        Batch,
        Metrics,
        PolicyLoss,
        Rollout,
        State,
        Targets,
        TokenStats,
        ValueLoss,
    )
    from rlkit.interfaces.rewards import RewardFn, RewardResult, Sample
    from rlkit.records.tables import load_run
    from rlkit.registry import advantage, algorithm, loss, noise, reward, sampler, suite, tracker

_HOME = {
    **dict.fromkeys(
        ("advantage", "algorithm", "loss", "noise", "reward", "sampler", "suite", "tracker"), "rlkit.registry"
    ),
    "Needs": "rlkit.interfaces.declarations",
    **dict.fromkeys(("RewardFn", "RewardResult", "Sample"), "rlkit.interfaces.rewards"),
    "load_run": "rlkit.records.tables",
    "train": "rlkit.assembly.run",
}

__all__ = [
    "Advantage",
    "Algorithm",
    "Batch",
    "Metrics",
    "Needs",
    "PolicyLoss",
    "RewardFn",
    "RewardResult",
    "Rollout",
    "Sample",
    "State",
    "Targets",
    "TokenStats",
    "ValueLoss",
    "advantage",
    "algorithm",
    "load_run",
    "loss",
    "noise",
    "reward",
    "sampler",
    "suite",
    "tracker",
    "train",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rlkit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME.get(name, "rlkit.interfaces.learning")), name)
