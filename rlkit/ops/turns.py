"""The turns of trajectories: what falls into each, what follows it, and who has stood in the same place."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from rlkit.interfaces.learning import Rollout
from rlkit.ops.gae import token_rewards


@dataclass(frozen=True)
class Turns:
    number: Tensor
    """[B, T] int64: the turn of each column, from 0. What an environment says belongs to the turn before it."""
    tokens: Tensor
    """[B, K] int64, K the most turns of a row: the turn's tokens in the mask."""

    @classmethod
    def of(cls, rollout: Rollout) -> Self:
        """A rollout that names no turns has one in each row."""
        mask = rollout.mask
        begins = torch.zeros(mask.shape, dtype=torch.long)
        for row, turns in enumerate(rollout.turns or []):
            begins[row, [start for start, _ in turns]] = 1
        count = max(map(len, rollout.turns or []), default=1)
        number = (begins.cumsum(1) - 1).clamp(min=0).to(mask.device)
        none = torch.zeros(len(mask), max(count, 1), dtype=torch.long, device=mask.device)
        return cls(number, none.scatter_add(1, number, mask.long()))

    @property
    def there(self) -> Tensor:
        """[B, K] bool: the row has such a turn."""
        return self.tokens > 0

    def sums(self, x: Tensor) -> Tensor:
        """[B, K]: the sum of `x` ([B, T]) over each turn's columns."""
        return torch.zeros(self.tokens.shape, dtype=x.dtype, device=x.device).scatter_add(1, self.number, x)

    def means(self, x: Tensor) -> Tensor:
        """[B, K]: the mean over each turn's tokens in the mask of `x` ([B, T], 0 outside it)."""
        return self.sums(x) / self.tokens.clamp(min=1)

    def spread(self, x: Tensor) -> Tensor:
        """[B, T]: at each column its turn's `x` ([B, K])."""
        return x.gather(1, self.number)

    def same_turn(self, group: Tensor) -> Tensor:
        """[B, K]: a number for each place that members of a group can be compared at: the same for the same turn."""
        _, slot = torch.unique(group, return_inverse=True)
        count = self.tokens.shape[1]
        first: Tensor = slot.unsqueeze(1) * count
        return first + torch.arange(count, device=group.device)


def later(x: Tensor) -> Tensor:
    """[B, K]: of each turn the sum of `x` ([B, K]) over the turns after it."""
    return F.pad(x[:, 1:], (0, 1)).flip(1).cumsum(1).flip(1)


def reward_to_go(rollout: Rollout, turns: Turns, reward: Tensor) -> Tensor:
    """[B, K] in float64: `reward` ([B]) less what had come before the turn began; of the first turn `reward` itself."""
    came = turns.sums(token_rewards(rollout).double())
    return reward.double().unsqueeze(1) - F.pad(came[:, :-1], (1, 0)).cumsum(1)


def same_state(rollout: Rollout, turns: Turns) -> Tensor:
    """[B, K]: a number for each state in which a turn began: the same for members of a group of which all was the same
    till then, the environment's text included. Their first turns all begin alike, whatever stands before them."""
    places = torch.full(turns.tokens.shape, -1)
    known: dict[tuple[int, int, bytes], int] = {}
    spans = rollout.turns or [[(0, 0)]] * len(places)
    for row, (tokens, group) in enumerate(zip(rollout.tokens.cpu().numpy(), rollout.group.tolist(), strict=True)):
        past, read = blake2b(digest_size=16), 0
        for turn, (start, _) in enumerate(spans[row]):
            if turn:
                past.update(tokens[read:start].tobytes())
            read = start
            places[row, turn] = known.setdefault((group, turn, past.digest()), len(known))
    return places.to(rollout.mask.device)
