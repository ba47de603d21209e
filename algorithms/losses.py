"""Policy losses, and the pieces that every algorithm shares: ratio, surrogate, KL to the reference, aggregation.

Losses are sums over the rows they are given, divided by counts of the whole optimizer batch, so that the parts
of a batch add up to the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from rlkit.config import Section
from rlkit.interfaces.declarations import Needs
from rlkit.interfaces.learning import Batch, Metrics, PolicyLoss, Targets, TokenStats
from rlkit.interfaces.names import Stat
from rlkit.ops.kl import LOG_RATIO_LIMIT, k2, k3
from rlkit.ops.masked import masked_mean, masked_sum
from rlkit.registry import loss

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]
Estimator = Literal["k2", "k3", "exact"]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


def log_ratios(new: TokenStats, batch: Batch, level: Literal["token", "sequence"] = "token") -> Tensor:
    """log pi_new(y_t|s_t) - log pi_old(y_t|s_t), [b, T], within +-20; 0 outside the mask.

    At the level of sequences (GSPO, arXiv 2507.18071) every token has the mean over its sequence's tokens as
    its value, and its own gradient; under one advantage a sequence that is the gradient of the mean.
    """
    ratio = torch.where(batch.mask, new.get("logprobs") - batch.old.get("logprobs"), 0.0)
    if level == "sequence":
        mean = masked_mean(ratio, batch.mask, dim=1).unsqueeze(1)
        ratio = ratio + (mean - ratio).detach()
    return ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """PPO's loss of each token, and where a clip holds its gradient back (bool); both [b, T].

    max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A); where A < 0, at most -dual_clip A (arXiv 1912.09729).
    """
    ratio = log_ratio.exp()
    free = -ratio * advantages
    bound = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    per_token, clipped = torch.maximum(free, bound), bound > free
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        over = (advantages < 0) & (per_token > ceiling)
        per_token, clipped = torch.where(over, ceiling, per_token), clipped | over
    return per_token, clipped


def cispo_surrogate(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """CISPO's loss of each token (arXiv 2506.13585), and where its weight is clipped (bool); both [b, T].

    -sg[clip(r, 1 - clip_low, 1 + clip_high)] A log pi: every token keeps a gradient, of bounded weight.
    """
    ratio = log_ratio.detach().exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages * logprobs, weight != ratio


def reference_kl(estimator: Estimator, stats: TokenStats, reference: TokenStats, mask: Tensor) -> Tensor:
    """KL(pi || pi_ref) of each token in nats, [b, T], 0 outside `mask`: exact, or an estimate from the token drawn
    (`rlkit.ops.kl`).

    `stats` speaks of pi, `reference` has
    `ref_logprobs` (not needed for exact).
    """
    if estimator == "exact":
        return torch.where(mask, stats.get("token_kl"), 0.0)
    x = torch.where(mask, stats.get("logprobs") - reference.get("ref_logprobs"), 0.0)
    return k2(x) if estimator == "k2" else k3(x)


def aggregate(x: Tensor, batch: Batch, how: Aggregation = "token_mean", constant: float = 1.0) -> Tensor:
    """These rows' share of the optimizer batch's mean of `x` ([b, T]); a scalar.

    token_mean: sum over tokens / tokens. sequence_mean: each sequence's mean over its tokens, / sequences.
    sequence_sum: sum over tokens / (sequences * constant).
    """
    if how == "token_mean":
        return masked_sum(x, batch.mask) / max(batch.n_tokens, 1)
    if how == "sequence_mean":
        return masked_mean(x, batch.mask, dim=1).sum() / max(batch.n_sequences, 1)
    return masked_sum(x, batch.mask) / (max(batch.n_sequences, 1) * constant)


def token_metric(x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(sum, weight) for a mean over tokens of `x` ([b, T])."""
    return masked_sum(x.detach().to(batch.rollout.reward.dtype), batch.mask), batch.mask.sum()


class ClipLossConfig(Section):
    surrogate: Literal["clip", "cispo"] = "clip"
    """clip: PPO's. cispo: the ratio is a clipped weight without gradient on A log pi."""
    ratio: Literal["token", "sequence"] = "token"
    """sequence: every token has the geometric mean of its sequence's ratios (GSPO)."""
    clip_low: Share = 0.2
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: NonNegative = 0.2
    """The ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Where A < 0, a token's loss is at most this times -A; None: unbounded."""
    aggregation: Aggregation = "token_mean"
    """Mean over all tokens; over each sequence's tokens and then over sequences; or sums over tokens divided by
    `sequence_constant`, and then a mean over sequences."""
    sequence_constant: Annotated[float, Field(gt=0)] = 1024.0
    """What sequence_sum divides by: usually the longest length of a response. It scales the gradient, no more."""
    kl_coef: NonNegative = 0.0
    """Weight of the KL to the reference in the loss; 0: no reference is kept for it."""
    kl_estimator: Estimator = "k3"
    """exact: over the whole vocabulary; k2 and k3: from the tokens that were drawn."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""

    @field_validator("kl_estimator", mode="before")
    @classmethod
    def _k1_teaches_nothing(cls, value: object) -> object:
        if value == "k1":
            raise ValueError(
                "k1 cannot be a loss: its gradient, that of log pi, is zero in expectation, so it would add noise and "
                "no pull to the reference. Set k2, k3 or exact; k1 belongs in the reward (ppo: reward_kl_coef)"
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.surrogate == "cispo" and self.dual_clip is not None:
            raise ValueError("dual_clip has no meaning with surrogate: cispo, which bounds every weight: leave it out")
        return self


@dataclass(frozen=True)
class ClipLoss:
    """Surrogate + kl_coef * KL - entropy_coef * entropy, all three aggregated in one way."""

    config: ClipLossConfig
    reads: ClassVar[frozenset[str]] = frozenset({"advantages", "importance"})

    @property
    def needs(self) -> Needs:
        old: set[Stat] = set()
        grad: set[Stat] = {"logprobs"}
        if self.config.kl_coef and self.config.kl_estimator == "exact":
            grad.add("token_kl")
        elif self.config.kl_coef:
            old.add("ref_logprobs")
        if self.config.entropy_coef:
            grad.add("entropy")
        return Needs(old=frozenset(old), grad=frozenset(grad))

    def __call__(self, new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        config = self.config
        advantages = targets.get("advantages")
        ratio = log_ratios(new, batch, config.ratio)
        if config.surrogate == "cispo":
            per_token, clipped = cispo_surrogate(
                ratio, new.get("logprobs"), advantages, config.clip_low, config.clip_high
            )
        else:
            per_token, clipped = clipped_surrogate(
                ratio, advantages, config.clip_low, config.clip_high, config.dual_clip
            )
        if targets.importance is not None:
            per_token = per_token * targets.importance
        metrics = {"policy/clip_share": token_metric(clipped, batch)}

        if config.kl_coef:
            kl = reference_kl(config.kl_estimator, new, batch.old, batch.mask)
            per_token = per_token + config.kl_coef * kl
            metrics["policy/kl"] = token_metric(kl, batch)
        elif batch.old.ref_logprobs is not None:
            metrics["policy/kl"] = token_metric(reference_kl("k3", new, batch.old, batch.mask), batch)
        if config.entropy_coef:
            per_token = per_token - config.entropy_coef * new.get("entropy")
        return aggregate(per_token, batch, config.aggregation, config.sequence_constant), metrics


@loss("clip")
def clip(config: ClipLossConfig) -> PolicyLoss:
    """PPO's clipped surrogate (1707.06347), with KL, entropy, and GRPO's ways of averaging."""
    return ClipLoss(config)
