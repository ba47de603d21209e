"""PPO (arXiv 1707.06347) with a learned critic.

    A_t = GAE of the rewards and the critic's old values (arXiv 1506.02438; lambda 1, and V = 0 after the last
          token, truncated or not), whitened over the optimizer batch's tokens
    L   = token-mean of max(-r_t A_t, -clip(r_t, 1 - clip_low, 1 + clip_high) A_t)
    L_V = token-mean of 1/2 max((V - G)^2, (clip(V, V_old - value_clip, V_old + value_clip) - G)^2)

with r_t = pi(y_t|s_t) / pi_old(y_t|s_t) and the return G_t = A_t + V_old, before whitening. The critic has its
own weights, learning rate and step. The advantage is `GaeAdvantage` in advantages.py, the policy's loss
`ClipLoss` in losses.py; all options of both are PPO's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rlkit.interfaces.declarations import Needs
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, Targets
from rlkit.registry import algorithm

from .advantages import GaeAdvantage, GaeConfig
from .losses import ClipLoss, ClipLossConfig, aggregate, token_metric


class PpoConfig(GaeConfig, ClipLossConfig):
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """The critic may move this far from its old value before its gain stops counting; None: as far as it likes."""
    critic_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the start in which the critic alone learns."""


@dataclass(frozen=True)
class ClippedValueLoss:
    value_clip: float | None
    needs: ClassVar[Needs] = Needs(old=frozenset({"values"}))
    reads: ClassVar[frozenset[str]] = frozenset({"returns"})

    def __call__(self, values: Tensor, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        values = torch.where(batch.mask, values, 0.0)
        returns = targets.get("returns")
        error = (values - returns) ** 2
        if self.value_clip is not None:
            old = batch.old.get("values")
            near = torch.clamp(values, old - self.value_clip, old + self.value_clip)
            error = torch.maximum(error, (near - returns) ** 2)
        return aggregate(error / 2, batch), {"critic/value_loss": token_metric(error / 2, batch)}


@algorithm("ppo")
def ppo(config: PpoConfig) -> Algorithm:
    """PPO (1707.06347): a learned critic's advantages under the clipped surrogate."""
    return Algorithm(
        advantage=GaeAdvantage(config),
        policy_loss=ClipLoss(config),
        value_loss=ClippedValueLoss(config.value_clip),
        critic_warmup_steps=config.critic_warmup_steps,
    )
