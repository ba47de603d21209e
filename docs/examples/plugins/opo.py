"""OPO (arXiv 2505.23585): exactly on-policy REINFORCE, with the baseline of the least variance.

    b   = sum_i l_i R_i / sum_i l_i          over the group, with l_i the tokens of response i
    A_i = R_i - b
    L   = -1/N sum_i A_i sum_t log pi(y_t|s_t)

The baseline of the least variance weighs each reward by the squared norm of its response's gradient, which grows as its
length. No deviation, no clip, no KL, no entropy: what is left is the expected reward. Keep `batch.minibatches` and
`batch.epochs` at 1; with more, samples are no longer the policy's.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from rlkit_algorithms.losses import aggregate

from rlkit import Algorithm, Batch, Metrics, State, Targets, TokenStats, algorithm
from rlkit.config import Section
from rlkit.ops.masked import group_sum


class Config(Section):
    scale: Annotated[float, Field(gt=0)] = 1024.0
    """What the loss is divided by, as GRPO's `sequence_constant`: it scales the gradient, no more."""


@algorithm("opo")
def opo(config: Config) -> Algorithm:
    """OPO (2505.23585): on-policy REINFORCE against the group's length-weighted mean reward."""

    def advantage(batch: Batch, state: State) -> Targets:
        rollout = batch.rollout
        length = rollout.action_counts.to(rollout.reward.dtype)
        weighted = group_sum(length * rollout.reward, rollout.group, rollout.valid)
        baseline = weighted / group_sum(length, rollout.group, rollout.valid).clamp(min=1)
        return Targets(advantages=torch.where(batch.mask, (rollout.reward - baseline)[:, None], 0.0))

    advantage.compares_groups = True

    def loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[torch.Tensor, Metrics]:
        gain = targets.get("advantages") * new.get("logprobs")
        return aggregate(-gain, batch, "sequence_sum", config.scale), {}

    return Algorithm(advantage=advantage, policy_loss=loss)
