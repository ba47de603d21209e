"""my_plugin: a reward for rlkit. What stands here is 1 for a response that ends with the gold: make it yours."""

from __future__ import annotations

from collections.abc import Sequence

from rlkit import RewardResult, Sample, reward


@reward("my_plugin")
def my_plugin(samples: Sequence[Sample], *, marker: str = "") -> list[RewardResult]:
    """1 for a response whose text after the last `marker` is the gold, 0 for another."""
    return [judge(sample, marker) for sample in samples]


# The lowest and the highest value that it gives.
my_plugin.range = (0.0, 1.0)


def judge(sample: Sample, marker: str) -> RewardResult:
    """One sample, by itself: which others are in the call is chance."""
    if not sample.answer:
        # Nothing could be right: the sample is left out and counted, and costs the model nothing.
        return RewardResult(value=None, status="bad_gold")
    answer = sample.response.rpartition(marker)[2] if marker else sample.response
    if not answer.strip():
        return RewardResult(value=0.0, status="no_answer")
    right = answer.strip() == sample.answer.strip() if marker else answer.endswith(sample.answer)
    # `info` is kept with the sample in the run's rollouts/.
    return RewardResult(value=float(right), correct=right, info={"answer": answer[-100:]})
