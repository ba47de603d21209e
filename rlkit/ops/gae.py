"""Generalised advantage estimation (arXiv 1506.02438) over the policy's own tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float = 1.0, gamma: float = 1.0) -> Tensor:
    """Advantages [B, T], 0 outside `mask`.

        delta_t = r_t + gamma V(s_t') - V(s_t),   A_t = delta_t + gamma lam A_t'

    where t' is the next token in `mask` (bool, [B, T]). After a row's last one the value is 0: truncated
    responses end like any other. Tokens outside `mask` take no step, whatever number of them lies between two
    actions, and their values are not looked at; a reward that falls on one belongs to the action before it.
    With `values` 0, A_t is the suffix sum of lam^(l-t) r_l.
    """
    steps: list[Tensor] = []
    advantage = next_value = pending = torch.zeros_like(rewards[:, 0])
    for reward, value, acts in zip(
        reversed(rewards.unbind(1)), reversed(values.unbind(1)), reversed(mask.unbind(1)), strict=True
    ):
        pending = pending + reward
        delta = pending + gamma * next_value - value
        advantage = torch.where(acts, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(acts, value, next_value)
        pending = torch.where(acts, 0.0, pending)
        steps.append(advantage)
    return torch.where(mask, torch.stack(steps[::-1], dim=1), 0.0)
