"""VIMPO (arXiv 2606.20008): the policy is its own critic.

    rho_t = beta (log pi - log pi_ref)(y_t|s_t),   kappa_t = beta KL(pi(.|s_t) || pi_ref(.|s_t))
    L_V   = mean_i 1/2 [ sum_t (rho_t - sg[kappa_t]) - (R_i - mean_group R) ]^2
    A_t   = sg[ sum_{l>=t} lambda^(l-t) (rho_l - kappa_l) ], less its mean, over sqrt(var + (0.2 beta)^2)
    L_A   = token-mean of the clipped surrogate with A_t
    L     = L_V + c_A L_A

The reward enters through L_V alone. At pi = pi_ref every A_t is 0, and the floor under the whitening keeps it
so. `value: soft` is the other reading: sum_t rho_t against R_i - mean_group[R - beta sum_t KL_old], no actor part.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from rlkit.config import Section
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, Needs, State, Targets, TokenStats
from rlkit.interfaces.stats import Stat
from rlkit.ops.gae import gae
from rlkit.ops.masked import group_mean, masked_mean, masked_sum, whiten
from rlkit.registry import algorithm

from .losses import NonNegative, Share, aggregate, clipped_surrogate, log_ratios, reference_kl, token_metric

RATIO_LIMIT = 0.2
"""Above it the actor part has been seen to run away."""
GATE_DECAY = 0.9
"""Weight of the past in the gate's running moments, an update."""


class VimpoConfig(Section):
    beta: Annotated[float, Field(gt=0)] = 5e-4
    """Weight of the KL to the reference against the reward."""
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
    estimator: Literal["exact", "k3"] = "exact"
    """Of the KL in kappa: exact over the whole vocabulary, or k3 from the token that was drawn."""
    value: Literal["mean", "soft"] = "mean"
    """mean: as above. soft: sum rho against R_i - mean_group[R - beta sum KL_old]; the actor part is off."""
    huber: Annotated[float, Field(gt=0)] | None = None
    """L_V grows linearly where a residual is above this (in units of reward); None: squared everywhere."""
    gate: bool = False
    """Multiply c_A by max(0, running correlation of sum(rho - kappa) with its target): a net against running away."""

    @field_validator("estimator", mode="before")
    @classmethod
    def _k1_says_nothing(cls, value: object) -> object:
        if value == "k1":
            raise ValueError(
                "k1 cannot be VIMPO's estimator: it sets KL_t to log pi - log pi_ref of the token drawn, so that "
                "rho - kappa is 0 whatever the policy, and neither A_t nor L_V says anything. Set exact or k3"
            )
        return value

    @model_validator(mode="after")
    def _one_actor_weight(self) -> Self:
        if self.value == "soft":
            if self.actor_coef or (self.actor_ratio and "actor_ratio" in self.model_fields_set) or self.gate:
                raise ValueError(
                    "value: soft has no actor part: leave out actor_ratio, actor_coef and gate, or set value: mean"
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
class _Implied:
    """What the advantage and the loss both take from the policy."""

    config: VimpoConfig

    @property
    def needs(self) -> Needs:
        wanted: set[Stat] = {"logprobs", "ref_logprobs"}
        if self.config.estimator == "exact":
            wanted.add("token_kl")
        return Needs(old=frozenset(wanted)) if self.config.value == "soft" else Needs(now=frozenset(wanted))

    def measured(self, batch: Batch) -> TokenStats:
        """Where KL and reference come from: the weights about to be updated, or for soft those that sampled."""
        return batch.old if self.config.value == "soft" else batch.now

    def kl(self, batch: Batch) -> Tensor:
        """KL_t, [b, T], detached, 0 outside the mask."""
        stats = self.measured(batch)
        return reference_kl(self.config.estimator, stats, stats, batch.mask).detach()

    def rewards(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """rho_t - sg[kappa_t] (soft: rho_t), [b, T], 0 outside the mask."""
        log_ratio = torch.where(batch.mask, logprobs - self.measured(batch).get("ref_logprobs"), 0.0)
        return self.config.beta * (log_ratio if self.config.value == "soft" else log_ratio - self.kl(batch))


@dataclass
class VimpoAdvantage(_Implied):
    gives: ClassVar[frozenset[str]] = frozenset({"advantages", "scores"})
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
        credit = _credit(implied, start, mask)
        rms = math.sqrt(float(masked_mean(scores**2, rollout.valid)))
        if config.value == "soft":
            scalars = {"vimpo/actor_coef": 0.0, "vimpo/target_rms": rms}
            none = torch.zeros_like(rollout.sampler_logprobs)
            return Targets(advantages=none, scores=scores, scalars=scalars, credit=credit)

        advantages = gae(implied, torch.zeros_like(implied), mask, config.lam)
        unit = config.beta * batch.n_tokens / max(batch.n_sequences, 1) * rms
        coef = config.actor_coef if config.actor_coef is not None else (config.actor_ratio or 0.0) * unit
        scalars = {"vimpo/target_rms": rms}
        if config.gate:
            scalars["vimpo/gate"] = _running_correlation(state, implied.sum(1), scores, rollout.valid)
            coef *= max(0.0, scalars["vimpo/gate"])
        scalars["vimpo/actor_coef"] = coef
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
        return Targets(advantages=advantages, scores=scores, scalars=scalars, credit=credit)


def _credit(implied: Tensor, start: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The implied value in prefix form, which does not know the reward: V(s_t) = start + sum_{l<t} (rho_l - kappa_l);
    and what each token adds to it. `implied` is [b, T], 0 outside the mask, `start` [b]: the group's baseline."""
    value = start.unsqueeze(1) + implied.cumsum(1) - implied
    return {"value": torch.where(mask, value, 0.0), "credit": implied}


def _running_correlation(state: State, x: Tensor, y: Tensor, valid: Tensor) -> float:
    """Correlation of two [B] tensors from running means of their moments, kept in `state`; 0 where one is constant."""
    x, y = x.double(), y.double()
    now = [float(masked_mean(moment, valid)) for moment in (x, y, x * x, y * y, x * y)]
    past = state.get("gate", now)
    moments = [GATE_DECAY * p + (1 - GATE_DECAY) * n for p, n in zip(past, now, strict=True)]
    state["gate"] = moments
    mean_x, mean_y, xx, yy, xy = moments
    spread = max(0.0, xx - mean_x**2) * max(0.0, yy - mean_y**2)
    return (xy - mean_x * mean_y) / math.sqrt(spread) if spread > 0 else 0.0


@dataclass
class VimpoLoss(_Implied):
    reads: ClassVar[frozenset[str]] = frozenset({"advantages", "scores"})

    def __call__(self, new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        config, valid = self.config, batch.rollout.valid
        scores = targets.get("scores")
        residual = self.rewards(new.get("logprobs"), batch).sum(1) - scores
        squared = residual**2 / 2
        if config.huber is not None:
            size = residual.abs()
            squared = torch.where(size <= config.huber, squared, config.huber * (size - config.huber / 2))
        value_loss = masked_sum(squared, valid) / max(batch.n_sequences, 1)

        surrogate, clipped = clipped_surrogate(
            log_ratios(new, batch), targets.get("advantages"), config.clip_low, config.clip_high, config.dual_clip
        )
        if targets.importance is not None:
            surrogate = surrogate * targets.importance
        loss = value_loss + targets.scalars["vimpo/actor_coef"] * aggregate(surrogate, batch)

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
