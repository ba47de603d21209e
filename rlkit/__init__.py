"""rlkit: reinforcement learning from verifiable rewards on language models, for comparing algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlkit.api.comparing import Comparison, compare
    from rlkit.api.run import Run
    from rlkit.api.sweeping import Sweep, sweep
    from rlkit.api.training import replay, train
    from rlkit.interfaces.declarations import Needs
    from rlkit.interfaces.environments import Environment, Observation, Task
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
    from rlkit.registry import advantage, algorithm, environment, loss, noise, reward, sampler, suite, tracker

_HOME = {
    **dict.fromkeys(
        ("advantage", "algorithm", "environment", "loss", "noise", "reward", "sampler", "suite", "tracker"),
        "rlkit.registry",
    ),
    "Needs": "rlkit.interfaces.declarations",
    **dict.fromkeys(("Environment", "Observation", "Task"), "rlkit.interfaces.environments"),
    **dict.fromkeys(("RewardFn", "RewardResult", "Sample"), "rlkit.interfaces.rewards"),
    **dict.fromkeys(("Comparison", "compare"), "rlkit.api.comparing"),
    "Run": "rlkit.api.run",
    **dict.fromkeys(("Sweep", "sweep"), "rlkit.api.sweeping"),
    **dict.fromkeys(("replay", "train"), "rlkit.api.training"),
}

__all__ = [
    "Advantage",
    "Algorithm",
    "Batch",
    "Comparison",
    "Environment",
    "Metrics",
    "Needs",
    "Observation",
    "PolicyLoss",
    "RewardFn",
    "RewardResult",
    "Rollout",
    "Run",
    "Sample",
    "State",
    "Sweep",
    "Targets",
    "Task",
    "TokenStats",
    "ValueLoss",
    "advantage",
    "algorithm",
    "compare",
    "environment",
    "loss",
    "noise",
    "replay",
    "reward",
    "sampler",
    "suite",
    "sweep",
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
