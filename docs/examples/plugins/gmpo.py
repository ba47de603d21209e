"""GMPO (arXiv 2507.20673): GRPO that maximises the geometric mean of a response's ratios, not the arithmetic one.

    lr_t = log pi(y_t|s_t) - log pi_old(y_t|s_t)
    c_t  = min(lr_t, clip)  where A > 0,   max(lr_t, -clip)  where A < 0
    L    = -mean_i A_i exp( mean_t c_t )

with GRPO's A_i. A token of an extreme ratio moves a geometric mean little, so the clip may be wide: e^-0.4 to e^0.4.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from rlkit_algorithms.advantages import GroupAdvantage, GroupConfig
from rlkit_algorithms.losses import log_ratios, token_metric

from rlkit import Algorithm, Batch, Metrics, Targets, TokenStats, algorithm
from rlkit.ops.masked import masked_mean


class Config(GroupConfig):
    clip: Annotated[float, Field(gt=0)] = 0.4
    """A token's log-ratio counts at most this much in the direction of its advantage."""


@algorithm("gmpo")
def gmpo(config: Config) -> Algorithm:
    """GMPO (2507.20673): GRPO with the geometric mean of each response's clipped ratios."""

    def loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[torch.Tensor, Metrics]:
        advantages = targets.get("advantages")
        ratios = log_ratios(new, batch)
        bounded = torch.where(advantages > 0, ratios.clamp(max=config.clip), ratios.clamp(min=-config.clip))
        ratio = masked_mean(bounded, batch.mask, dim=1).exp()
        gain = masked_mean(advantages, batch.mask, dim=1) * ratio
        metrics = {"policy/clip_share": token_metric(bounded != ratios, batch)}
        return -gain.sum() / max(batch.n_sequences, 1), metrics

    return Algorithm(advantage=GroupAdvantage(config), policy_loss=loss)
