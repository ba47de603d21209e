"""The seam for log-probs: what a language model's head says of given tokens, from hidden states and head weights."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlkit.interfaces.names import Stat

PEAK = 6
"""Memory of a pass at its peak, in float32 logits of its tokens: measured 5 without gradient and with the exact KL, 6
with gradient."""


def peak_bytes(tokens: int, vocabulary: int) -> int:
    """What `head_stats` and its backward take at most, beside weights and hidden states."""
    return PEAK * 4 * tokens * vocabulary


@dataclass(frozen=True)
class Head:
    """How a language model makes logits: of hidden states h, cap * tanh(scale * (h @ weight.T + bias) / cap)."""

    weight: Tensor
    """[V, d]"""
    bias: Tensor | None = None
    """[V]"""
    scale: float = 1.0
    cap: float | None = None
    """The soft cap, which no logit exceeds; None: there is none."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, d] -> [N, V]: the product in the weight's dtype, the rest in float32 (float64 for float64 inputs)."""
        product = F.linear(hidden, self.weight, self.bias)
        wide = product if product.dtype == torch.float64 else product.float()
        if self.scale != 1.0:
            wide = wide * self.scale
        return wide if self.cap is None else self.cap * torch.tanh(wide / self.cap)


def head_stats(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    *,
    want: Set[Stat] = frozenset({"logprobs"}),
    temperature: float = 1.0,
    reference: tuple[Tensor, Head] | None = None,
) -> dict[str, Tensor]:
    """The wanted statistics of N tokens, differentiable in `hidden` and the head's weight and bias.

    Args:
        hidden: [N, d], the states that predict the tokens. N may be 0.
        head: of the policy, over V tokens.
        tokens: [N] int64.
        want: of "logprobs", "entropy", "ref_logprobs" and "token_kl" (exact, over all V tokens).
        temperature: of the distribution that was drawn from; applied to policy and reference.
        reference: the reference policy's hidden states [N, d'] and head; needed for "ref_logprobs" and "token_kl". No
            gradient flows into it.

    Returns:
        Each wanted statistic, [N], in nats.

    Raises:
        ValueError: "values" is wanted (a critic's), or what needs a reference comes without one.
    """
    if "values" in want:
        raise ValueError("a language model's head gives no 'values': they are the critic's")
    compares = want & {"ref_logprobs", "token_kl"}
    if compares and reference is None:
        raise ValueError(f"{', '.join(sorted(compares))}: needs a reference")
    logp = _log_softmax(hidden, head, temperature)
    stats: dict[str, Tensor] = {}
    if "logprobs" in want:
        stats["logprobs"] = _pick(logp, tokens)
    if "entropy" in want:
        stats["entropy"] = -(logp.exp() * logp).sum(-1)
    if compares and reference is not None:
        with torch.no_grad():
            ref_logp = _log_softmax(*reference, temperature)
        if "ref_logprobs" in want:
            stats["ref_logprobs"] = _pick(ref_logp, tokens)
        if "token_kl" in want:
            stats["token_kl"] = (logp.exp() * (logp - ref_logp)).sum(-1)
    return stats


def _log_softmax(hidden: Tensor, head: Head, temperature: float) -> Tensor:
    return torch.log_softmax(head.logits(hidden) / temperature, dim=-1)


def _pick(logp: Tensor, tokens: Tensor) -> Tensor:
    return logp.gather(-1, tokens[:, None]).squeeze(-1)
