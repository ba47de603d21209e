"""GRPO with process supervision (arXiv 2402.03300, section 4.1.3): rewards of single steps, not of whole responses.

    r~_ij = (r_ij - mean) / (std + 1e-6)     with mean and deviation of all steps of all responses of the group
    A_it  = sum_{steps j that end at or after token t} r~_ij
    L     = GRPO's

Step rewards come with the reward function's `token_values`: a step ends where one is not 0, and at a response's last
token. Without them there is one step, the response, and this is GRPO.
"""

from __future__ import annotations

import torch
from rlkit_algorithms.advantages import STD_EPS
from rlkit_algorithms.losses import Aggregation, ClipLoss, ClipLossConfig

from rlkit import Algorithm, Batch, State, Targets, algorithm
from rlkit.ops.gae import gae, token_rewards
from rlkit.ops.masked import group_mean, group_std


class Config(ClipLossConfig):
    aggregation: Aggregation = "sequence_mean"


@algorithm("process_grpo")
def process_grpo(config: Config) -> Algorithm:
    """GRPO with process supervision (2402.03300): the sum of the group-normalised rewards of later steps."""

    def advantage(batch: Batch, state: State) -> Targets:
        rollout, rewards = batch.rollout, token_rewards(batch.rollout)
        columns = torch.arange(rewards.shape[1], device=rewards.device)
        last = columns == torch.where(batch.mask, columns, -1).amax(1, keepdim=True)
        steps = rollout.valid[:, None] & ((rewards != 0) | last)
        # One entry for each step: its reward, and the group that it is of.
        reward, group = rewards[steps], rollout.group[:, None].expand_as(steps)[steps]
        every = torch.ones_like(reward, dtype=torch.bool)
        score = (reward - group_mean(reward, group, every)) / (group_std(reward, group, every) + STD_EPS)
        normed = torch.zeros_like(rewards).masked_scatter(steps, score)
        return Targets(advantages=gae(normed, torch.zeros_like(normed), batch.mask))

    advantage.compares_groups = True
    return Algorithm(advantage=advantage, policy_loss=ClipLoss(config))
