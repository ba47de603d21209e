"""Estimates of KL(p || q) from tokens drawn from p, all of x = log p(y) - log q(y) (http://joschu.net/blog/kl-approx.html).

    k1  x                  unbiased, of high variance; as a loss its gradient is zero in expectation
    k2  x^2 / 2            biased; its gradient is the KL's
    k3  exp(-x) - 1 + x    unbiased, never negative

The exact KL, over the whole vocabulary, comes from the head: `head_stats`.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Bound of log-ratios before they are raised: exp(20) is 5e8, beyond any clip and small enough to be squared in
float32."""


def k2(x: Tensor) -> Tensor:
    return x.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT) ** 2 / 2


def k3(x: Tensor) -> Tensor:
    x = x.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(-x) + x
