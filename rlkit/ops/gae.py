"""Rewards along a response, what follows a token of them, and generalised advantage estimation (arXiv 1506.02438)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlkit.interfaces.learning import Rollout

CACHED = 2**16
"""Numbers that stay in a core's cache, with some copies of them."""


def token_rewards(rollout: Rollout) -> Tensor:
    """[B, T]: `token_reward` within each response's length; without one, the reward at the policy's last token."""
    columns = torch.arange(rollout.mask.shape[1], device=rollout.mask.device)
    if rollout.token_reward is not None:
        return torch.where(columns < rollout.length.unsqueeze(1), rollout.token_reward, 0.0)
    last = torch.where(rollout.mask, columns, -1).amax(1)
    return torch.where(columns == last.unsqueeze(1), rollout.reward.unsqueeze(1), 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float = 1.0, gamma: float = 1.0) -> Tensor:
    """Advantages [B, T], 0 outside `mask`.

        delta_t = r_t + gamma V(s_t') - V(s_t),   A_t = delta_t + gamma lam A_t'

    where t' is the next token in `mask` (bool, [B, T]). After a row's last one the value is 0: truncated
    responses end like any other. Tokens outside `mask` take no step, whatever number of them lies between two
    actions, and their values are not looked at; a reward that falls on one belongs to the action before it.
    With `values` 0 and `gamma` 1, A_t is the suffix sum of lam^(l-t) r_l: see `suffix_sum`.
    """
    steps: list[Tensor] = []
    # A column is read at each step: columns of a [B, T] tensor lie apart in memory.
    columns = zip(*(reversed(x.T.contiguous().unbind()) for x in (rewards, values, mask)), strict=True)
    advantage = next_value = pending = torch.zeros_like(rewards[:, 0])
    for reward, value, acts in columns:
        pending = pending + reward
        delta = pending + gamma * next_value - value
        advantage = torch.where(acts, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(acts, value, next_value)
        pending = torch.where(acts, 0.0, pending)
        steps.append(advantage)
    return torch.where(mask, torch.stack(steps[::-1]).T, 0.0)


def suffix_sum(x: Tensor, mask: Tensor, decay: float = 1.0) -> Tensor:
    """S_t = x_t + decay S_t', [B, T], where t' is the next column in `mask` (bool, [B, T]); 0 outside it.

    In log2(T) steps rather than T, which on an accelerator would each be a launch; and some rows at a time, since each
    step goes over all of them.
    """
    rows = max(1, CACHED // max(1, x.shape[1]))
    parts = zip(torch.split(x, rows), torch.split(mask, rows), strict=True)
    return torch.cat([_suffix_sum(*part, decay) for part in parts])


def _suffix_sum(x: Tensor, mask: Tensor, decay: float) -> Tensor:
    total = torch.where(mask, x, 0.0)
    weight = torch.where(mask, decay, torch.ones_like(total))
    span = 1  # columns that `total` has summed over, and over which `weight` has decayed
    while span < x.shape[1]:
        total = total + weight * F.pad(total[:, span:], (0, span))
        weight = weight * F.pad(weight[:, span:], (0, span))
        span *= 2
    return torch.where(mask, total, 0.0)
