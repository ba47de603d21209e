"""The seam for log-probs: what a language model's head says of given tokens, from hidden states and head weights."""

from __future__ import annotations

from collections.abc import Set

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


def head_stats(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    want: Set[Stat] = frozenset({"logprobs"}),
    temperature: float = 1.0,
    reference: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The wanted statistics of N tokens, differentiable in `hidden` and `weight`.

    Logits are `hidden @ weight.T / temperature`, the product in the weights' dtype and the softmax in float32
    (float64 for float64 inputs).

    Args:
        hidden: [N, d], the states that predict the tokens. N may be 0.
        weight: [V, d].
        tokens: [N] int64.
        want: of "logprobs", "entropy", "ref_logprobs" and "token_kl" (exact, over all V tokens).
        temperature: of the distribution that was drawn from; applied to policy and reference.
        reference: the reference policy's ([N, d'], [V, d']); needed for "ref_logprobs" and "token_kl". No gradient
            flows into it.

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
    logp = _log_softmax(hidden, weight, temperature)
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


def _log_softmax(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = F.linear(hidden, weight)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide / temperature, dim=-1)


def _pick(logp: Tensor, tokens: Tensor) -> Tensor:
    return logp.gather(-1, tokens[:, None]).squeeze(-1)
