"""Random optimizer batches for the checks of the mathematics.

A dressed batch has trajectories of several turns, some with a beginning in common, and everything that must not count:
environment tokens between the policy's, padding, invalid samples; and, where `outside` says so, NaN wherever such a
thing could be read. `bare` is the same batch with none of it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
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
    p_turn: float = 0.2,
    p_shared: float = 0.3,
    compares_groups: bool = True,
    outside: float = NAN,
) -> Case:
    """A dressed batch: rows in random order, log-ratios to the old policy of standard deviation `off_policy`.

    A turn ends where the environment speaks, and with chance `p_turn` where it does not. With chance `p_shared` a row
    repeats another of its group up to the beginning of a turn.
    """
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
    begins = acts & (~torch.nn.functional.pad(acts[:, :-1], (1, 0)) | (rand(b, t) < p_turn))
    # Of so many that two are the same only where one row repeats another.
    tokens = torch.randint(0, 2**31, (b, t), generator=rng)
    for row in range(1, b):
        if rand() >= p_shared:
            continue
        # A place is a row of the group and a column that begins one of its turns.
        there = begins[:row, : int(lengths[row])] & (group[:row] == group[row]).unsqueeze(1)
        if len(places := there.nonzero()):
            other, turn = places[int(torch.randint(0, len(places), (), generator=rng))].tolist()
            for each in (acts, begins, tokens):
                each[row, :turn] = each[other, :turn]
            acts[row, turn] = begins[row, turn] = True
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
        tokens=tokens,
        length=lengths,
        mask=mask,
        valid=valid,
        group=group,
        reward=torch.where(valid, reward, outside),
        clean_reward=torch.where(valid, reward, outside),
        token_reward=token_reward,
        sampler_logprobs=torch.where(mask, old_logprobs, 0.0),
        version=torch.zeros(b, dtype=torch.long),
        turns=[_turns(*row) for row in zip(begins.tolist(), acts.tolist(), strict=True)],
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


def _turns(begins: list[bool], acts: list[bool]) -> list[tuple[int, int]]:
    """The spans [start, end) of a row, of which each begins where `begins` says so and ends where the policy does."""
    starts = [column for column, here in enumerate(begins) if here]
    return [
        (start, start + sum(acts[start:until])) for start, until in zip(starts, [*starts[1:], len(acts)], strict=True)
    ]


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

    def narrow(x: Any) -> Any:
        return None if x is None else torch.where(mask, x.detach().flatten()[places.clamp(min=0)], 0)

    def narrow_stats(stats: TokenStats) -> TokenStats:
        return TokenStats(**{f.name: narrow(getattr(stats, f.name)) for f in dataclasses.fields(stats)})

    small = rollout.rows(rows.tolist())
    small = dataclasses.replace(
        small,
        tokens=narrow(rollout.tokens),
        mask=mask,
        length=counts,
        turns=[
            [(int(acts[:start].sum()), int(acts[:end].sum())) for start, end in turns]
            for acts, turns in zip(rollout.mask[rows], small.turns or [], strict=True)
        ],
        token_reward=narrow(rollout.token_reward),
        sampler_logprobs=narrow(rollout.sampler_logprobs),
    )
    batch = dataclasses.replace(
        case.batch, rollout=small, old=narrow_stats(case.batch.old), now=narrow_stats(case.batch.now)
    )
    return Case(batch, with_grad(narrow_stats(case.new))), places


def cast(case: Case, dtype: torch.dtype) -> Case:
    def narrow(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return Case(case.batch._map(narrow), with_grad(case.new._map(narrow)))


def permuted(case: Case, order: Sequence[int]) -> Case:
    return Case(case.batch.rows(order), with_grad(case.new.rows(order)))


def widened(case: Case, columns: int, outside: float) -> Case:
    """The same batch with more columns of padding, which hold `outside` wherever padding does."""
    width = case.batch.mask.shape[1]

    def wider(x: Any, fill: float = outside) -> Any:
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != width:
            return x
        fill = fill if x.is_floating_point() else 0
        return torch.nn.functional.pad(x.detach(), (0, columns), value=fill)

    batch = case.batch._map(wider)
    batch.rollout.sampler_logprobs = wider(case.batch.rollout.sampler_logprobs, 0.0)
    return Case(batch, with_grad(case.new._map(wider)))


SIZES = [(1, 2, 1), (1, 2, 2), (2, 2, 1), (1, 3, 3), (2, 2, 3), (2, 3, 4), (3, 3, 5), (3, 4, 6), (4, 5, 8)]
"""Groups, samples of each, longest response: from the smallest up."""


def growing(seed: int, *, outside: float, alone: bool) -> Iterator[Case]:
    """Batches of each size, the smallest first, so that the first that breaks something is the smallest; of each size
    one with nothing odd about it, and one with environment tokens, invalid samples and off-policy tokens at random.

    alone: a valid sample may be the only one of its group. No batch is without a valid sample: from such a one nothing
    is learnt, and no algorithm gets to see it.
    """
    chance = random.Random(seed)
    for at, (groups, per_group, length) in enumerate(SIZES):
        odd: dict[str, Any] = {
            "p_env": chance.choice([0.0, 0.4, 0.8]),
            "p_invalid": chance.choice([0.0, 0.3, 0.7]),
            "off_policy": chance.choice([0.0, 0.3, 3.0]),
            "dense": chance.random() < 0.5,
        }
        plain: dict[str, Any] = {"p_env": 0.0, "p_invalid": 0.0, "p_turn": 0.0, "p_shared": 0.0}
        for dress in (plain, odd):
            case = _case_with_tokens(
                chance,
                groups,
                per_group,
                length,
                compares_groups=not alone,
                outside=outside,
                **dress,
            )
            case.batch.update, case.batch.progress = at, at / len(SIZES)
            yield case


def _case_with_tokens(chance: random.Random, *shape: Any, **dress: Any) -> Case:
    while True:
        case = make_case(chance.randrange(2**31), *shape, **dress)
        if case.batch.n_tokens:
            return case


def table(case: Case) -> str:
    """The batch's rows, for people."""
    rollout = case.batch.rollout
    rows = [("row", "group", "reward", "valid", "mask")]
    for row, (group, reward, valid) in enumerate(
        zip(rollout.group.tolist(), rollout.reward.tolist(), rollout.valid.tolist(), strict=True)
    ):
        mask = "".join("1" if acts else "." for acts in rollout.mask[row].tolist())
        rows.append((str(row), str(group), f"{reward:.3g}", "yes" if valid else "no", mask))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
