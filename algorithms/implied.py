"""What a policy says of itself: the rewards and values that its log-probs imply, against a reference.

    rho_t = beta (log pi - log pi_ref)(y_t|s_t),   kappa_t = beta KL(pi(.|s_t) || pi_ref(.|s_t))

rho_t - sg[kappa_t] is the advantage of y_t, as the policy sees it, so its sum over a response is what the reward
should be above the group's mean (`value: mean`). With `value: soft` sum_t rho_t is held against
R_i - mean_group[R - beta sum_t KL_old] instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from rlkit.config import Section
from rlkit.interfaces.declarations import Needs
from rlkit.interfaces.learning import Rollout, TokenStats
from rlkit.interfaces.names import Stat
from rlkit.ops.gae import token_rewards

from .losses import reference_kl

Measured = Literal["old", "now", "new"]
"""Where KL and reference come from: a pass at the weights that sampled; one at those about to be updated; or, at the
same weights, the update's own forward, which spares a pass."""


class ImpliedConfig(Section):
    beta: Annotated[float, Field(gt=0)] = 5e-4
    """Weight of the KL to the reference against the reward."""
    estimator: Literal["exact", "k3"] = "exact"
    """Of the KL in kappa: exact over the whole vocabulary, or k3 from the token that was drawn."""
    value: Literal["mean", "soft"] = "mean"
    """mean: as above. soft: sum rho against R_i - mean_group[R - beta sum KL_old]; the actor part is off."""

    @property
    def measured(self) -> Measured:
        return "old" if self.value == "soft" else "now"

    @field_validator("estimator", mode="before")
    @classmethod
    def _k1_says_nothing(cls, value: object) -> object:
        if value == "k1":
            raise ValueError(
                "k1 cannot be VIMPO's estimator: it sets KL_t to log pi - log pi_ref of the token drawn, so that "
                "rho - kappa is 0 whatever the policy, and neither A_t nor L_V says anything. Set exact or k3"
            )
        return value


C = TypeVar("C", bound=ImpliedConfig)


@dataclass
class Implied(Generic[C]):
    """What the advantage and the loss both take from the policy."""

    config: C

    @property
    def needs(self) -> Needs:
        wanted: set[Stat] = {"logprobs", "ref_logprobs"}
        if self.config.estimator == "exact":
            wanted.add("token_kl")
        match self.config.measured:
            case "old":
                return Needs(old=frozenset(wanted))
            case "now":
                return Needs(now=frozenset(wanted))
            case "new":
                return Needs(observe=frozenset(wanted - {"logprobs"}))

    def kl(self, stats: TokenStats, mask: Tensor) -> Tensor:
        """KL_t, [b, T], detached, 0 outside the mask. `stats`: see `Measured`."""
        return reference_kl(self.config.estimator, stats, stats, mask).detach()

    def rewards(self, logprobs: Tensor, stats: TokenStats, mask: Tensor) -> Tensor:
        """rho_t - sg[kappa_t] (soft: rho_t), [b, T], 0 outside the mask, which is the rollout's: of whole responses,
        whatever a correction leaves to the surrogate."""
        log_ratio = torch.where(mask, logprobs - stats.get("ref_logprobs"), 0.0)
        return self.config.beta * (log_ratio if self.config.value == "soft" else log_ratio - self.kl(stats, mask))


def credit(implied: Tensor, start: Tensor, rollout: Rollout) -> dict[str, Tensor]:
    """The implied value in prefix form, which does not know the rewards to come:
    V(s_t) = start + sum_{l<t} (rho_l - kappa_l - r_l); and what each token adds to value and rewards. `implied` is
    [b, T], 0 outside the mask, `start` [b]: the group's baseline."""
    came = F.pad(token_rewards(rollout)[:, :-1], (1, 0)).cumsum(1)
    value = start.unsqueeze(1) + implied.cumsum(1) - implied - came
    return {"value": torch.where(rollout.mask, value, 0.0), "credit": implied}
