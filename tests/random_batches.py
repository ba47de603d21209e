"""Random optimizer batches in float64 for the tests of the mathematics.

A dressed batch has everything that must not count: environment tokens between the policy's, padding, invalid
samples; and NaN wherever such a thing could be read. `bare` is the same batch with none of it.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlkit.interfaces.learning import Batch, Rollout, TokenStats
from rlkit.interfaces.rewards import SampleKey

NAN = float("nan")


@dataclass
class Case:
    batch: Batch
    new: TokenStats
    """The gradient forward's stats: leaves."""

    def leaves(self) -> list[Tensor]:
        found = (getattr(self.new, f.name) for f in dataclasses.fields(self.new))
        return [leaf for leaf in found if leaf is not None]


def make_stats(logprobs: Tensor, ref: Tensor, rng: torch.Generator, mask: Tensor, outside: float) -> TokenStats:
    """Stats that go with the log-probs: a token_kl, an entropy and a value for each."""
    shape = logprobs.shape
    uniform = [torch.rand(shape, generator=rng, dtype=torch.float64) for _ in range(2)]
    normal = torch.randn(shape, generator=rng, dtype=torch.float64)
    values = (logprobs, ref, 0.2 * uniform[0], 2 * uniform[1], 0.5 * normal)
    return TokenStats(
        **{
            name: torch.where(mask, value, outside)
            for name, value in zip(("logprobs", "ref_logprobs", "token_kl", "entropy", "values"), values, strict=True)
        }
    )


def make_case(
    seed: int,
    groups: int = 3,
    per_group: int = 4,
    length: int = 6,
    p_env: float = 0.3,
    p_invalid: float = 0.2,
    off_policy: float = 0.3,
    dense: bool = False,
    compares_groups: bool = True,
    outside: float = NAN,
) -> Case:
    """A dressed batch: rows in random order, log-ratios to the old policy of standard deviation `off_policy`."""
    rng = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, dtype=torch.float64)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    b, t = groups * per_group, length
    group = torch.arange(groups).repeat_interleave(per_group)[torch.randperm(b, generator=rng)] * 7 - 3
    valid = rand(b) >= p_invalid
    if compares_groups:
        valid &= torch.stack([(valid & (group == g)).sum() for g in group]) >= 2
    lengths = torch.randint(1, t + 1, (b,), generator=rng)
    exists = torch.arange(t) < lengths.unsqueeze(1)
    acts = exists & (rand(b, t) >= p_env)
    # The policy chose at least one token of every response.
    acts[torch.arange(b), (rand(b) * lengths).long()] = True
    mask = acts & valid.unsqueeze(1)

    reward = (rand(b) < 0.5).to(torch.float64) + 0.3 * randn(b)
    token_reward = None
    if dense:
        parts = torch.where(acts, randn(b, t), 0.0)
        reward = parts.sum(1)
        token_reward = torch.where(exists & valid.unsqueeze(1), parts, outside)
    old_logprobs = -3 * rand(b, t)
    ref_logprobs = old_logprobs + 0.5 * randn(b, t)
    new_logprobs = old_logprobs + off_policy * randn(b, t)

    rollout = Rollout(
        keys=[SampleKey(f"prompt{int(g)}", 1, 0, i) for i, g in enumerate(group)],
        prompt_tokens=[torch.tensor([1, 2])] * b,
        tokens=torch.randint(0, 9, (b, t), generator=rng),
        length=lengths,
        mask=mask,
        valid=valid,
        group=group,
        reward=torch.where(valid, reward, outside),
        clean_reward=torch.where(valid, reward, outside),
        token_reward=token_reward,
        sampler_logprobs=torch.where(mask, old_logprobs, 0.0),
        version=torch.zeros(b, dtype=torch.long),
        truncated=rand(b) < 0.3,
    )
    batch = Batch(
        rollout=rollout,
        old=make_stats(old_logprobs, ref_logprobs, rng, mask, outside),
        now=make_stats(new_logprobs, ref_logprobs, rng, mask, outside),
        n_sequences=int(valid.sum()),
        n_tokens=int(mask.sum()),
    )
    return Case(batch, with_grad(make_stats(new_logprobs, ref_logprobs, rng, mask, outside)))


def fresh_seed() -> int:
    """A new seed, also given to torch's own generator; shown with the output of a test that fails."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"random_batches.fresh_seed() gave {seed}")
    torch.manual_seed(seed)
    return seed


def fresh_case(**shape: Any) -> Case:
    """A `make_case` of a new seed, in which two groups or more have valid samples."""
    seed = fresh_seed()
    while True:
        case = make_case(seed, **shape)
        if len(by_group(case.batch.rollout)) > 1:
            return case
        seed += 1


def with_grad(stats: TokenStats) -> TokenStats:
    return stats._map(lambda leaf: leaf.detach().clone().requires_grad_())


def bare(case: Case) -> tuple[Case, Tensor]:
    """The valid rows and the policy's tokens alone, and for each of those tokens its place in the dressed case.

    The places are [b, T'] into the flattened [B * T] tensors; -1 where a shorter row is padded (with 0).
    """
    rollout = case.batch.rollout
    rows = rollout.valid.nonzero().squeeze(1)
    counts = rollout.mask[rows].sum(1)
    width = max(int(counts.max()) if len(rows) else 0, 1)
    places = torch.full((len(rows), width), -1)
    for i, row in enumerate(rows.tolist()):
        columns = rollout.mask[row].nonzero().squeeze(1)
        places[i, : len(columns)] = row * rollout.mask.shape[1] + columns
    mask = places >= 0

    def narrow(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.where(mask, x.detach().flatten()[places.clamp(min=0)], 0)

    def narrow_stats(stats: TokenStats) -> TokenStats:
        return TokenStats(**{f.name: narrow(getattr(stats, f.name)) for f in dataclasses.fields(stats)})

    small = rollout.rows(rows.tolist())
    small = dataclasses.replace(
        small,
        tokens=narrow(rollout.tokens),
        mask=mask,
        length=counts,
        token_reward=narrow(rollout.token_reward),
        sampler_logprobs=narrow(rollout.sampler_logprobs),
    )
    batch = dataclasses.replace(
        case.batch, rollout=small, old=narrow_stats(case.batch.old), now=narrow_stats(case.batch.now)
    )
    return Case(batch, with_grad(narrow_stats(case.new))), places


def by_group(rollout: Rollout) -> dict[int, list[int]]:
    """Group number -> its valid rows."""
    members: dict[int, list[int]] = {}
    for row in range(len(rollout.keys)):
        if rollout.valid[row]:
            members.setdefault(int(rollout.group[row]), []).append(row)
    return members


def actions(rollout: Rollout, row: int) -> list[int]:
    """Columns of the row's tokens in `mask`."""
    return [t for t in range(rollout.mask.shape[1]) if rollout.mask[row, t]]
