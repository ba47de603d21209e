"""The pass rate on held-out problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlkit.config import EvalConfig
from rlkit.data import Problem
from rlkit.interfaces import SamplingParams
from rlkit.rollouts import Collector


def evaluate(
    collector: Collector, problems: Sequence[Problem], config: EvalConfig, sampling: SamplingParams
) -> dict[str, float]:
    """`eval/heldout/mean@k`: the share of correct answers, over problems and k samples of each.

    Every evaluation of a run draws with the same seeds, so two of them differ by the weights alone. An answer
    without a verdict counts as wrong, and is counted in `eval/heldout/no_value`.
    """
    params = replace(sampling, temperature=config.temperature, top_p=config.top_p)
    scored, _ = collector.collect(problems, config.samples, 0, params, "eval")
    correct = sum(bool(s.result.correct) for s in scored)
    return {
        f"eval/heldout/mean@{config.samples}": correct / len(scored),
        "eval/heldout/no_value": float(sum(s.result.value is None for s in scored)),
        "eval/heldout/length": sum(len(s.completion.tokens) for s in scored) / len(scored),
    }
