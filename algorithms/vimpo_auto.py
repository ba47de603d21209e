"""VIMPO without tuning: scale-free, against a slow reference. Ours, and not published.

With pi_bar the reference, a running mean of the policy's weights (`reference: average`, decay .8 a rollout), and
lr_t = log pi - log pi_bar of the token drawn, KL_t = KL(pi(.|s_t) || pi_bar(.|s_t)):

    T_i = R_i - mean_group R,   s^2 <- .9 s^2 + .1 mean(T^2 n / (n - 1))   over groups of n whose rewards differ
    L_i = sum_t (lr_t - sg KL_t)   in nats,   l = mean response length
    w_i = sg(T_i / s - b L_i)
    L   = -1/l mean_i sum_t min(r_t w_i, clip(r_t, 1 - clip_low, 1 + clip_high) w_i)

On policy its gradient is that of 1/(beta s l) mean_i 1/2 (beta L_i - T_i)^2 with beta = b s, VIMPO's value loss made
as large as GRPO's, so that learning rates mean the same; with reuse of data the tokens are clipped as in PPO. Rewards
enter through T / s alone: their scale does not matter, and there is no beta to set.

What to know of it: nothing ties the policy to the model it began as (as in GRPO without a KL). It is inert where the
learning rate moves the policy by much less than 1 / b nats a response between two steps of the mean. What helps is the
slow reference: GRPO with the exact KL to it does as well. There is no actor part, which would push the wrong way here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rlkit.config import Section
from rlkit.interfaces.declarations import Needs
from rlkit.interfaces.learning import Algorithm, Batch, State, Targets
from rlkit.ops.masked import group_mean, group_size, masked_mean, masked_sum
from rlkit.registry import algorithm

from .losses import ClipLoss, ClipLossConfig, NonNegative, Share

MEMORY = 0.9
"""Weight of the past in the rewards' spread, an update."""
ROUNDING = 1e-6
"""Rewards of a group that differ by a smaller share of their size are equal: sums of the same parts differ by it."""


class VimpoAutoConfig(Section):
    deviations_per_nat: Annotated[float, Field(gt=0)] = 1.0
    """b: deviations of the reward that a response gains with a nat of log pi / pi_bar."""
    clip_low: Share = 0.2
    """The ratio is clipped below at 1 - clip_low. With one minibatch and one epoch no clip acts."""
    clip_high: NonNegative = 0.28
    """The ratio is clipped above at 1 + clip_high."""


@dataclass(frozen=True)
class VimpoAutoAdvantage:
    """w_i / l, the same for all tokens of a response."""

    config: VimpoAutoConfig
    needs: ClassVar[Needs] = Needs(now=frozenset({"logprobs", "ref_logprobs", "token_kl"}))
    compares_groups: ClassVar[bool] = True

    def __call__(self, batch: Batch, state: State) -> Targets:
        rollout, mask = batch.rollout, batch.mask
        baseline = group_mean(rollout.reward, rollout.group, rollout.valid)
        target = torch.where(rollout.valid, rollout.reward - baseline, 0.0).double()
        spread = _spread(target, batch, state)
        kl = torch.where(mask, batch.now.get("token_kl"), 0.0)
        implied = torch.where(mask, batch.now.get("logprobs") - batch.now.get("ref_logprobs"), 0.0) - kl
        gain = (target / spread if spread else torch.zeros_like(target)).to(implied.dtype)
        residual = gain - self.config.deviations_per_nat * masked_sum(implied, mask, dim=1)
        length = batch.n_tokens / max(batch.n_sequences, 1)
        return Targets(
            advantages=torch.where(mask, residual.unsqueeze(1) / max(length, 1.0), 0.0),
            scalars={
                "policy/kl": float(masked_mean(kl, mask)),
                "vimpo_auto/reward_spread": spread,
                "vimpo_auto/residual": float(masked_mean(residual.abs(), rollout.valid)),
            },
            credit={"credit": self.config.deviations_per_nat * spread * implied},
        )


def _spread(target: Tensor, batch: Batch, state: State) -> float:
    """s, in units of reward, kept in `state`; 0 as long as no group's rewards have ever differed."""
    group, valid = batch.rollout.group, batch.rollout.valid
    size = group_size(group, valid, torch.float64)
    typical = group_mean(batch.rollout.reward.abs().double(), group, valid)
    differs = valid & (group_mean(target.abs(), group, valid) > ROUNDING * typical)
    if differs.any():
        square = float(masked_mean(target**2 * size / (size - 1).clamp(min=1), differs))
        state["spread"] = MEMORY * state.get("spread", square) + (1 - MEMORY) * square
    return math.sqrt(state.get("spread", 0.0))


@algorithm("vimpo_auto")
def vimpo_auto(config: VimpoAutoConfig) -> Algorithm:
    """VIMPO without tuning (ours): scale-free, against a running mean of the policy; no beta to set."""
    clip = ClipLossConfig(
        aggregation="sequence_sum", sequence_constant=1.0, clip_low=config.clip_low, clip_high=config.clip_high
    )
    return Algorithm(
        advantage=VimpoAutoAdvantage(config),
        policy_loss=ClipLoss(clip),
        reference={"kind": "average", "decay": 0.8, "by": "rollout"},
    )
