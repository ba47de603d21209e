"""How good a model is while it trains: on held-out problems of its task, and on benchmark suites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlkit.config import EvalConfig
from rlkit.data import Problem
from rlkit.generation.collector import Collector
from rlkit.interfaces.generation import SamplingParams


@dataclass(frozen=True)
class Benchmark:
    """What a run is measured on: problems, and what samples and scores them."""

    name: str
    collector: Collector
    problems: Sequence[Problem]


def evaluate(
    collector: Collector,
    problems: Sequence[Problem],
    config: EvalConfig,
    sampling: SamplingParams,
    name: str = "heldout",
) -> dict[str, float]:
    """`eval/NAME/mean@k`: the share of correct answers, over problems and k samples of each.

    Every evaluation of a run draws with the same seeds, so two of them differ by the weights alone. An answer
    without a verdict counts as wrong, and is counted in `eval/NAME/no_value`.
    """
    params = replace(sampling, temperature=config.temperature, top_p=config.top_p)
    scored, _ = collector.collect(problems, config.samples, 0, params, "eval")
    correct = sum(bool(s.result.correct) for s in scored)
    return {
        f"eval/{name}/mean@{config.samples}": correct / len(scored),
        f"eval/{name}/no_value": float(sum(s.result.value is None for s in scored)),
        f"eval/{name}/length": sum(len(s.completion.tokens) for s in scored) / len(scored),
    }
