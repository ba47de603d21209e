"""What a lone advantage or a lone loss is checked beside: the plainest of its kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlkit.conformance.findings import LeftOut
from rlkit.interfaces.declarations import advantage_declaration, loss_declaration
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, State, Targets, TokenStats
from rlkit.ops.masked import group_mean, masked_sum


def around_advantage(advantage: Any) -> Algorithm:
    """A policy gradient on what it gives, with a critic where it needs one's values."""
    declared = advantage_declaration(advantage, "the advantage")

    def policy_loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        logprobs, mask = new.get("logprobs"), batch.mask
        total = torch.zeros_like(logprobs)
        for given in (targets.advantages, targets.returns, targets.scores):
            if given is not None:
                total = total + (given if given.dim() == 2 else given.unsqueeze(1))
        per_token = torch.where(mask, -total, 0.0) * torch.where(mask, logprobs, 0.0)
        return masked_sum(per_token, mask) / max(batch.n_tokens, 1), {}

    def value_loss(values: Tensor, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        error = values if targets.returns is None else values - targets.returns
        return masked_sum(torch.where(batch.mask, error, 0.0) ** 2, batch.mask) / max(batch.n_tokens, 1), {}

    _set(policy_loss, reads=declared.gives)
    critic = "values" in declared.needs.old | declared.needs.now
    _set(value_loss, reads=declared.gives & {"returns"})
    return Algorithm(advantage=advantage, policy_loss=policy_loss, value_loss=value_loss if critic else None)


def around_loss(loss: Any) -> Algorithm:
    """Rewards less their group's mean, as whatever the loss reads."""
    reads = loss_declaration(loss, "the loss").reads
    if "coefs" in reads:
        raise LeftOut("it reads `coefs`, which only its own advantage can give: check the algorithm that has both")
    gives = reads & {"advantages", "scores", "returns"}

    def advantage(batch: Batch, state: State) -> Targets:
        rollout, mask = batch.rollout, batch.mask
        centred = rollout.reward - group_mean(rollout.reward, rollout.group, rollout.valid)
        scores = torch.where(rollout.valid, centred, 0.0)
        tokens = torch.where(mask, scores.unsqueeze(1), 0.0)
        all_there_is: dict[str, Any] = {"advantages": tokens, "scores": scores, "returns": tokens}
        return Targets(**{name: all_there_is[name] for name in gives})

    _set(advantage, gives=gives, compares_groups=True)
    return Algorithm(advantage=advantage, policy_loss=loss)


def _set(function: Any, **declarations: Any) -> None:
    vars(function).update(declarations)
