"""Importance weights: what corrects a loss whose samples were drawn from another distribution than it speaks of."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlkit.ops.kl import LOG_RATIO_LIMIT
from rlkit.ops.masked import masked_sum


def importance_weights(
    logprobs: Tensor,
    behaviour: Tensor,
    mask: Tensor,
    *,
    level: Literal["token", "sequence"],
    mode: Literal["truncate", "mask"],
    limit: float,
) -> tuple[Tensor, Tensor]:
    """Weights of samples drawn from `behaviour` for a loss under `logprobs`, and the tokens that are left to it.

        token     w_t = pi(y_t|s_t) / mu(y_t|s_t)
        sequence  w_t = prod_l pi(y_l|s_l) / mu(y_l|s_l), the same for each token of a sequence
        truncate  min(w, limit)
        mask      w where 1/limit <= w <= limit; elsewhere the token is left out

    Truncation bounds the variance at the price of a bias (Ionides 2008, doi 10.1198/106186008X320456); masking leaves
    out what the two distributions disagree about most, at both ends (IcePop, arXiv 2510.18855).

    Args:
        logprobs: [B, T] of the policy that learns.
        behaviour: [B, T] of the distribution that was drawn from, which need not be a whole one (top-p, top-k).
        mask: [B, T] bool.

    Returns:
        [B, T] float, 0 where nothing is left; [B, T] bool, within `mask`.
    """
    log_ratio = torch.where(mask, logprobs - behaviour, 0.0)
    if level == "sequence":
        log_ratio = masked_sum(log_ratio, mask, dim=1).unsqueeze(1).expand_as(log_ratio)
    weight = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if mode == "truncate":
        return torch.where(mask, weight.clamp(max=limit), 0.0), mask
    # What is not a number stays, for the loss to be seen not to be one.
    kept = mask & ~((weight > limit) | (weight < 1 / limit))
    return torch.where(kept, weight, 0.0), kept
