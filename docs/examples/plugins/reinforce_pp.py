"""REINFORCE++ (arXiv 2501.03262): no critic and no groups; rewards are normalised over the whole batch.

    A_t = sum_{l >= t} ( r_l - beta log pi_old(y_l|s_l) / pi_ref(y_l|s_l) )
    A_t <- (A_t - mean) / std                over all tokens of the optimizer batch
    L   = mean over tokens of PPO's clipped surrogate with A_t

The reward stands at the last token, unless it comes on the way. With `baseline: group` (REINFORCE++-baseline) each
group's mean reward is taken off first; there the paper has its KL in the loss, as `kl_coef` with `kl_estimator: k2`.
"""

from __future__ import annotations

from typing import Literal

import torch
from rlkit_algorithms.losses import Aggregation, ClipLoss, ClipLossConfig, NonNegative

from rlkit import Algorithm, Batch, Needs, State, Targets, algorithm
from rlkit.ops.gae import gae, token_rewards
from rlkit.ops.masked import group_mean, whiten

FLOOR = 1e-4  # of the deviation: equal returns differ by rounding


class Config(ClipLossConfig):
    reward_kl_coef: NonNegative = 0.01
    """Beta: weight of the KL (k1) taken off the reward of each token; 0: no reference is kept for it."""
    baseline: Literal["none", "group"] = "none"
    """group: less the mean reward of the group."""
    aggregation: Aggregation = "token_mean"


@algorithm("reinforce_pp")
def reinforce_pp(config: Config) -> Algorithm:
    """REINFORCE++ (2501.03262): PPO without a critic, advantages normalised over the batch."""

    def advantage(batch: Batch, state: State) -> Targets:
        rollout, mask = batch.rollout, batch.mask
        rewards = token_rewards(rollout)
        if config.reward_kl_coef:
            k1 = batch.old.get("logprobs") - batch.old.get("ref_logprobs")
            rewards = rewards - config.reward_kl_coef * torch.where(mask, k1, 0.0)
        returns = gae(rewards, torch.zeros_like(rewards), mask)
        if config.baseline == "group":
            returns = returns - group_mean(rollout.reward, rollout.group, rollout.valid)[:, None]
        return Targets(advantages=whiten(returns, mask, FLOOR))

    advantage.compares_groups = config.baseline == "group"
    if config.reward_kl_coef:
        advantage.needs = Needs(old=frozenset({"logprobs", "ref_logprobs"}))
    return Algorithm(advantage=advantage, policy_loss=ClipLoss(config))
