"""How good a model is while it trains: on held-out problems of its task, and on benchmark suites."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlkit.config import EvalConfig
from rlkit.data import Problem
from rlkit.engine import distributed
from rlkit.generation.collector import PHASES, Collector
from rlkit.generation.sampled import Scored, draws
from rlkit.interfaces.generation import SamplingParams
from rlkit.interfaces.progress import Progress
from rlkit.scoring.checks import error_of, in_brief


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
    """`eval/NAME/mean@k`: the share of correct answers, over `eval/NAME/problems` and k samples of each.

    Every evaluation of a run draws with the same seeds, so two of them differ by the weights alone. An answer
    without a verdict counts as wrong, however many there are, and is counted in `eval/NAME/no_value`; why is said once
    an evaluation, as a warning.
    """
    collector = replace(collector, progress=_named(collector.progress, name))
    params = replace(sampling, temperature=config.temperature, top_p=config.top_p, top_k=0)
    scored, _ = collector.collect(draws(problems, config.samples, step=0), params, "eval", lenient=True)
    correct = sum(bool(s.result.correct) for s in scored)
    if distributed.main_rank():
        _say_what_has_no_value(name, scored)
    return {
        f"eval/{name}/mean@{config.samples}": correct / len(scored),
        f"eval/{name}/problems": float(len(problems)),
        f"eval/{name}/no_value": float(sum(s.result.value is None for s in scored)),
        f"eval/{name}/length": sum(len(s.completion.tokens) for s in scored) / len(scored),
    }


def _named(progress: Progress, name: str) -> Progress:
    """Which of several it is that takes so long."""

    def shown(phase: str, done: int = 0, total: int = 0) -> None:
        progress(f"{phase} {name}" if phase == PHASES["eval"] else phase, done, total)

    return shown


def _say_what_has_no_value(name: str, scored: Sequence[Scored]) -> None:
    lost = [s.result for s in scored if s.result.value is None]
    if lost:
        counts = ", ".join(f"{count} {status}" for status, count in Counter(r.status for r in lost).items())
        # Without its frames: where the reward fails in training too, the error that ends the run has them.
        error = next((in_brief(error) for r in lost if (error := error_of(r)) is not None), None)
        warnings.warn(
            f"evaluation, {name}: {len(lost)} of {len(scored)} answers have no value ({counts}) and count as wrong"
            + (f". The first error: {error}" if error else ""),
            stacklevel=3,
        )
