"""Advantages: against the group (GRPO and its descendants) and by a critic (GAE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlkit.config import Section
from rlkit.interfaces.declarations import Needs
from rlkit.interfaces.learning import Advantage, Batch, Rollout, State, Targets
from rlkit.interfaces.names import Stat
from rlkit.ops.gae import gae as estimate
from rlkit.ops.gae import token_rewards
from rlkit.ops.masked import group_mean, group_size, group_std, masked_var, whiten
from rlkit.ops.turns import Turns, reward_to_go
from rlkit.registry import advantage

STD_EPS = 1e-6
WHITEN_FLOOR = 1e-4


class OverlongPenalty(Section):
    """DAPO's soft penalty (arXiv 2503.14476): 0 up to limit - buffer tokens, falling to -scale at the limit."""

    limit: Annotated[int, Field(ge=1)]
    """Longest response in tokens of the policy; usually sampling.max_tokens."""
    buffer: Annotated[int, Field(ge=1)]
    """Tokens before the limit over which the penalty grows."""
    scale: Annotated[float, Field(ge=0)] = 1.0
    """What is taken off at the limit."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.buffer > self.limit:
            raise ValueError(f"buffer ({self.buffer}) must not be above limit ({self.limit})")
        return self

    def __call__(self, rollout: Rollout) -> Tensor:
        """[B], to be added to the reward."""
        over = rollout.action_counts - (self.limit - self.buffer)
        return -self.scale * (over.to(rollout.reward.dtype) / self.buffer).clamp(0, 1)


class GroupConfig(Section):
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """The group's mean reward, or that of its other members."""
    divide_by_std: bool = True
    """Divide by the group's standard deviation (unbiased, + 1e-6)."""
    credit: Literal["trajectory", "turn"] = "trajectory"
    """trajectory: the whole reward for every token. turn: for the tokens of a turn the reward of this and later turns,
    compared with that of the members that have such a turn."""
    overlong_mask: bool = False
    """Leave truncated responses out: of the loss, of their group's baseline, of all counts."""
    overlong_penalty: OverlongPenalty | None = None
    """Take something off the reward of long responses."""


@dataclass(frozen=True)
class GroupAdvantage:
    """(R_i - baseline) / std within the valid members of a group; the same for all tokens of a response or a turn."""

    config: GroupConfig
    compares_groups: ClassVar[bool] = True

    @property
    def leaves_out_truncated(self) -> bool:
        return self.config.overlong_mask

    def __call__(self, batch: Batch, state: State) -> Targets:
        rollout = batch.rollout
        reward, group, valid = rollout.reward, rollout.group, rollout.valid
        if self.config.overlong_penalty is not None:
            reward = reward + self.config.overlong_penalty(rollout)
        turns = Turns.of(rollout) if self.config.credit == "turn" else None
        if turns is not None:  # a turn is compared as a response is, among those of its number
            reward = reward_to_go(rollout, turns, reward).to(reward.dtype).flatten()
            group, valid = turns.same_turn(group).flatten(), turns.there.flatten()
        score = reward - group_mean(reward, group, valid)
        if self.config.baseline == "leave_one_out":
            size = group_size(group, valid, reward.dtype)
            score = score * size / (size - 1).clamp(min=1)
        if self.config.divide_by_std:
            score = score / (group_std(reward, group, valid) + STD_EPS)
        score = score.unsqueeze(1) if turns is None else turns.spread(score.view(turns.there.shape))
        return Targets(advantages=torch.where(batch.mask, score, 0.0))


@advantage("group")
def group(config: GroupConfig) -> Advantage:
    """GRPO's (2402.03300): reward less the group's mean, over its standard deviation; RLOO's by its options."""
    return GroupAdvantage(config)


class GaeConfig(Section):
    lam: Annotated[float, Field(ge=0, le=1)] = 1.0
    """GAE's lambda; 1: the return less the critic's value."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount a token."""
    reward_kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of log pi_old - log pi_ref (k1), taken off the reward of each token; 0: no reference is kept for it."""


@dataclass(frozen=True)
class GaeAdvantage:
    """GAE (arXiv 1506.02438) over the policy's tokens with the critic's old values, whitened; V = 0 at the end."""

    config: GaeConfig
    gives: ClassVar[frozenset[str]] = frozenset({"advantages", "returns"})

    @property
    def needs(self) -> Needs:
        old: set[Stat] = {"values"}
        if self.config.reward_kl_coef:
            old |= {"logprobs", "ref_logprobs"}
        return Needs(old=frozenset(old))

    def __call__(self, batch: Batch, state: State) -> Targets:
        mask = batch.mask
        rewards = token_rewards(batch.rollout)
        if self.config.reward_kl_coef:
            k1 = batch.old.get("logprobs") - batch.old.get("ref_logprobs")
            rewards = rewards - self.config.reward_kl_coef * torch.where(mask, k1, 0.0)
        values = torch.where(mask, batch.old.get("values"), 0.0)
        advantages = estimate(rewards, values, mask, self.config.lam, self.config.gamma)
        returns = advantages + values
        spread = float(masked_var(returns, mask))
        scalars = {}
        if spread > WHITEN_FLOOR**2:  # equal returns differ by rounding
            scalars["critic/explained_variance"] = 1 - float(masked_var(returns - values, mask)) / spread
        advantages = whiten(advantages, mask, WHITEN_FLOOR)
        return Targets(advantages=advantages, returns=returns, scalars=scalars, credit={"value": values})


@advantage("gae")
def gae(config: GaeConfig) -> Advantage:
    """GAE (1506.02438): a critic's values as baseline; builds a critic where the algorithm has a value loss."""
    return GaeAdvantage(config)
