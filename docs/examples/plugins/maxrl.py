"""MaxRL (arXiv 2602.02710): towards the likelihood of a right answer, log p, and not its probability p.

    A_i = (R_i - m) / m      with m the mean reward of the group; 0 where no response is right
    L   = -1/N sum_i A_i sum_t log pi(y_t|s_t)

For rewards of 0 and 1. The gradient of log p is that of p, over p: so what is rarely solved counts most. The more
samples a prompt has, the more terms of log p = -sum_k (1-p)^k / k the estimate holds; one sample alone is REINFORCE.
"""

from __future__ import annotations

import torch
from rlkit_algorithms.losses import Aggregation, ClipLoss, ClipLossConfig

from rlkit import Algorithm, Batch, State, Targets, algorithm
from rlkit.ops.masked import group_mean


class Config(ClipLossConfig):
    aggregation: Aggregation = "sequence_sum"
    """The whole response is one action: its log-prob is the sum over its tokens."""


@algorithm("maxrl")
def maxrl(config: Config) -> Algorithm:
    """MaxRL (2602.02710): the group's mean is baseline and divisor, so rarely solved prompts count most."""

    def advantage(batch: Batch, state: State) -> Targets:
        rollout = batch.rollout
        mean = group_mean(rollout.reward, rollout.group, rollout.valid)[:, None]
        solved = batch.mask & (mean > 0)
        return Targets(advantages=torch.where(solved, (rollout.reward[:, None] - mean) / mean, 0.0))

    advantage.compares_groups = True
    return Algorithm(advantage=advantage, policy_loss=ClipLoss(config))
