"""my_plugin: an algorithm for rlkit. What stands here is REINFORCE against the mean of each group: make it yours.

    A_i = R_i - mean_group R, the same for every token of response i
    L   = -1/N sum_i sum_t A_i log pi(y_t|s_t)

with N the tokens of the optimizer batch.
"""

from __future__ import annotations

import torch

from rlkit import Algorithm, Batch, Metrics, State, Targets, TokenStats, algorithm
from rlkit.ops.masked import group_mean, masked_sum


@algorithm("my_plugin")
def my_plugin(*, scale: float = 1.0) -> Algorithm:
    """REINFORCE against the mean reward of each group."""

    def advantage(batch: Batch, state: State) -> Targets:
        # Sees the whole optimizer batch: rewards are [B], advantages [B, T], 0 outside batch.mask.
        # What must outlast this update goes into `state`, and nowhere else.
        rollout = batch.rollout
        score = scale * (rollout.reward - group_mean(rollout.reward, rollout.group, rollout.valid))
        return Targets(advantages=torch.where(batch.mask, score[:, None], 0.0))

    # Samples are judged against the others of their group, so one that is left alone in it is left out.
    advantage.compares_groups = True

    def loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[torch.Tensor, Metrics]:
        # Sees some rows of it: a sum over tokens, divided by a count of the whole batch (n_tokens or n_sequences).
        logprobs = new.get("logprobs")
        per_token = -targets.get("advantages") * logprobs
        # Metrics are (sum, weight); the log shows sum / weight.
        metrics = {"my_plugin/logprob": (masked_sum(logprobs.detach(), batch.mask), batch.mask.sum())}
        return masked_sum(per_token, batch.mask) / max(batch.n_tokens, 1), metrics

    return Algorithm(advantage=advantage, policy_loss=loss)
