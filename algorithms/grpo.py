"""GRPO (arXiv 2402.03300) and its descendants, which are GRPO with other defaults.

    A_i = (R_i - mean_group R) / (std_group R + 1e-6), the same for every token of response i
    L   = mean_i 1/|y_i| sum_t max(-r_t A_i, -clip(r_t, 1 - clip_low, 1 + clip_high) A_i)

with r_t = pi(y_t|s_t) / pi_old(y_t|s_t). Means and deviations are over the valid members of a group. The KL to
the reference is a loss of its own (`kl_coef`), and off by default. The advantage is `GroupAdvantage` in
advantages.py, the loss `ClipLoss` in losses.py; all options of both are GRPO's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from rlkit.interfaces.learning import Algorithm
from rlkit.registry import algorithm

from .advantages import GroupAdvantage, GroupConfig
from .losses import Aggregation, ClipLoss, ClipLossConfig, NonNegative, Share


class GrpoConfig(GroupConfig, ClipLossConfig):
    aggregation: Aggregation = "sequence_mean"
    """token_mean: over all tokens. sequence_mean: over each sequence's tokens, then over sequences. sequence_sum:
    sums over tokens divided by `sequence_constant`, then a mean over sequences."""


@algorithm("grpo")
def grpo(config: GrpoConfig) -> Algorithm:
    """GRPO (2402.03300): group-normalised rewards as advantages under PPO's clipped surrogate."""
    return Algorithm(advantage=GroupAdvantage(config), policy_loss=ClipLoss(config))


class DrGrpoConfig(GrpoConfig):
    divide_by_std: bool = False
    """A division by the deviation would give prompts that are nearly always or never solved more weight."""
    aggregation: Aggregation = "sequence_sum"
    """A division by each response's own length would be lenient to long wrong answers."""


@algorithm("dr_grpo")
def dr_grpo(config: DrGrpoConfig) -> Algorithm:
    """Dr. GRPO (2503.20783): GRPO without its divisions by the deviation and by each response's length."""
    return grpo(config)


class DapoConfig(GrpoConfig):
    clip_high: NonNegative = 0.28
    """Above clip_low, so that rare tokens can gain probability."""
    aggregation: Aggregation = "token_mean"
    """Every token weighs the same, so long responses weigh more."""


@algorithm("dapo")
def dapo(config: DapoConfig) -> Algorithm:
    """DAPO (2503.14476): GRPO with a higher upper clip, a token mean, dynamic sampling; see `overlong_penalty`."""
    return replace(grpo(config), refill=3)


class GspoConfig(GrpoConfig):
    ratio: Literal["token", "sequence"] = "sequence"
    """One ratio a sequence: the geometric mean of its tokens'."""
    clip_low: Share = 3e-4
    """Sequence ratios stay much closer to 1 than those of tokens."""
    clip_high: NonNegative = 4e-4
    """Sequence ratios stay much closer to 1 than those of tokens."""


@algorithm("gspo")
def gspo(config: GspoConfig) -> Algorithm:
    """GSPO (2507.18071): GRPO with one ratio, and one clip, a sequence."""
    return grpo(config)


class CispoConfig(GrpoConfig):
    surrogate: Literal["clip", "cispo"] = "cispo"
    """The ratio is a clipped weight without gradient on A log pi."""
    clip_low: Share = 1.0
    """1: no bound from below, as in the paper."""
    clip_high: NonNegative = 4.0
    """A token's weight is at most 1 + clip_high."""
    aggregation: Aggregation = "token_mean"
    """Every token weighs the same."""


@algorithm("cispo")
def cispo(config: CispoConfig) -> Algorithm:
    """CISPO (2506.13585): GRPO's advantages, with clipped importance weights on A log pi."""
    return grpo(config)


class RlooConfig(GrpoConfig):
    baseline: Literal["mean", "leave_one_out"] = "leave_one_out"
    """The mean reward of the group's other members."""
    divide_by_std: bool = False
    """REINFORCE with a baseline has no such division."""
    aggregation: Aggregation = "sequence_sum"
    """The whole response is one action: its log-prob is the sum over its tokens."""


@algorithm("rloo")
def rloo(config: RlooConfig) -> Algorithm:
    """RLOO (2402.14740): REINFORCE with the mean of the group's other members as baseline."""
    return grpo(config)
