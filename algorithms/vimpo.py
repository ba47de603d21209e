"""VIMPO (arXiv 2606.20008): the policy is its own critic.

    rho_t = beta (log pi - log pi_ref)(y_t|s_t),   kappa_t = beta KL(pi(.|s_t) || pi_ref(.|s_t))
    L_V   = mean_i 1/2 [ sum_t (rho_t - sg[kappa_t]) - (R_i - mean_group R) ]^2
    A_t   = sg[ sum_{l>=t} lambda^(l-t) (rho_l - kappa_l) ], less its mean, over sqrt(var + (0.2 beta)^2)
    L_A   = token-mean of the clipped surrogate with A_t
    L     = L_V + c_A L_A

The reward enters through L_V alone. At pi = pi_ref every A_t is 0, and the floor under the whitening keeps it
so. `value: soft` is the other reading: sum_t rho_t against R_i - mean_group[R - beta sum_t KL_old], no actor part.
rho and kappa are in implied.py, the surrogate in losses.py.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlkit.interfaces.learning import Algorithm, Batch, Metrics, State, Targets, TokenStats
from rlkit.ops.gae import gae
from rlkit.ops.masked import group_mean, masked_mean, masked_sum, whiten
from rlkit.registry import algorithm

from .implied import Implied, ImpliedConfig, credit
from .losses import NonNegative, Share, aggregate, clipped_surrogate, log_ratios, token_metric

ACTOR = "vimpo/actor_coef"
"""c_A, among the update's coefficients."""
RATIO_LIMIT = 0.2
"""Above it the actor part has been seen to run away."""


class VimpoConfig(ImpliedConfig):
    actor_ratio: NonNegative | None = 0.0125
    """The actor part's weight in scale-free form: c_A is set each update so that
    c_A / (beta * mean length * RMS of the targets) is this. Up to 0.1 is fine; above 0.2 it tends to run away."""
    actor_coef: NonNegative | None = None
    """c_A itself, in place of actor_ratio."""
    lam: Share = 1.0
    """lambda of A_t. The smaller it is, the lighter the actor part must be: .5 is as good as 1 at a ratio of 0.1, and
    collapses at 0.3."""
    clip_low: Share = 0.2
    """The ratio is clipped below at 1 - clip_low. With one minibatch and one epoch no clip acts."""
    clip_high: NonNegative = 0.28
    """The ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None = 10.0
    """Where A < 0, a token's loss is at most this times -A; None: unbounded."""

    @model_validator(mode="after")
    def _one_actor_weight(self) -> Self:
        if self.value == "soft":
            if self.actor_coef or (self.actor_ratio and "actor_ratio" in self.model_fields_set):
                raise ValueError(
                    "value: soft has no actor part: leave out actor_ratio and actor_coef, or set value: mean"
                )
            self.actor_ratio, self.actor_coef = None, 0.0
        elif self.actor_coef is not None:
            if self.actor_ratio is not None and "actor_ratio" in self.model_fields_set:
                raise ValueError("actor_ratio and actor_coef both set the actor part's weight: give one of them")
            self.actor_ratio = None
        elif self.actor_ratio is None:
            raise ValueError("actor_ratio is null and actor_coef is not given: give one (actor_coef: 0 turns it off)")
        return self


@dataclass
class VimpoAdvantage(Implied[VimpoConfig]):
    gives: ClassVar[frozenset[str]] = frozenset({"advantages", "scores", "coefs"})
    compares_groups: ClassVar[bool] = True
    warned: bool = field(default=False, init=False)
    """A heavy actor part has been warned of. Not in `state`: a resumed run says it again."""

    def __call__(self, batch: Batch, state: State) -> Targets:
        config, rollout, mask = self.config, batch.rollout, batch.mask
        baseline = rollout.reward
        if config.value == "soft":
            baseline = baseline - config.beta * self.kl(batch).sum(1)
        start = group_mean(baseline, rollout.group, rollout.valid)
        scores = torch.where(rollout.valid, rollout.reward - start, 0.0)
        implied = self.rewards(self.measured(batch).get("logprobs"), batch)
        shown = credit(implied, start, mask)
        rms = math.sqrt(float(masked_mean(scores**2, rollout.valid)))
        if config.value == "soft":
            none, scalars = torch.zeros_like(rollout.sampler_logprobs), {"vimpo/target_rms": rms}
            return Targets(advantages=none, scores=scores, coefs={ACTOR: 0.0}, scalars=scalars, credit=shown)

        advantages = gae(implied, torch.zeros_like(implied), mask, config.lam)
        unit = config.beta * batch.n_tokens / max(batch.n_sequences, 1) * rms
        coef = config.actor_coef if config.actor_coef is not None else (config.actor_ratio or 0.0) * unit
        scalars = {"vimpo/target_rms": rms}
        if unit > 0:  # 0: all rewards of each group are equal
            scalars["vimpo/actor_ratio"] = coef / unit
            if coef / unit > RATIO_LIMIT and not self.warned:
                self.warned = True
                warnings.warn(
                    f"vimpo: the actor part weighs more than {RATIO_LIMIT} of the value loss (vimpo/actor_ratio in the "
                    "log), where it tends to run away from the reference: lower actor_coef or actor_ratio",
                    stacklevel=2,
                )
        advantages = whiten(advantages, mask, 0.2 * config.beta)
        return Targets(advantages=advantages, scores=scores, coefs={ACTOR: coef}, scalars=scalars, credit=shown)


@dataclass
class VimpoLoss(Implied[VimpoConfig]):
    reads: ClassVar[frozenset[str]] = frozenset({"advantages", "scores", "coefs", "importance"})

    def __call__(self, new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        config, valid = self.config, batch.rollout.valid
        scores = targets.get("scores")
        residual = self.rewards(new.get("logprobs"), batch).sum(1) - scores
        squared = residual**2 / 2
        value_loss = masked_sum(squared, valid) / max(batch.n_valid, 1)

        surrogate, clipped = clipped_surrogate(
            log_ratios(new, batch), targets.get("advantages"), config.clip_low, config.clip_high, config.dual_clip
        )
        if targets.importance is not None:
            surrogate = surrogate * targets.importance
        loss = value_loss + targets.coefs[ACTOR] * aggregate(surrogate, batch)

        explained = (scores**2 - residual.detach() ** 2, scores**2)
        metrics: Metrics = {
            "vimpo/value_loss": (masked_sum(squared.detach(), valid), valid.sum()),
            "vimpo/actor_loss": token_metric(surrogate, batch),
            "vimpo/residual": (masked_sum(residual.detach().abs(), valid), valid.sum()),
            "vimpo/explained": (masked_sum(explained[0], valid), masked_sum(explained[1], valid)),
            "policy/kl": token_metric(self.kl(batch), batch),
            "policy/clip_share": token_metric(clipped, batch),
        }
        return loss, metrics


@algorithm("vimpo")
def vimpo(config: VimpoConfig) -> Algorithm:
    """VIMPO (2606.20008): regresses the policy's own implied value on the reward; no critic, exact KL."""
    return Algorithm(advantage=VimpoAdvantage(config), policy_loss=VimpoLoss(config))
