"""From scored completions to a Rollout: rows, masks, groups and rewards as the learner reads them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rlkit.generation.sampled import Sampled, Scored
from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.rewards import RewardResult


def assemble(
    scored: Sequence[Scored],
    rewards: Sequence[float | None] | None = None,
    *,
    compares_groups: bool = False,
    leaves_out_truncated: bool = False,
    replaced: Sequence[bool] | None = None,
) -> Rollout:
    """The Rollout of completions whose groups may have any size.

    rewards: the values after noise; None: the clean ones. The flags are those of `Algorithm`. replaced: samples whose
    group was drawn in vain, and which stay in the rollout as invalid ones; None: none.
    """
    clean = [s.result.value for s in scored]
    rewards = clean if rewards is None else rewards
    numbers: dict[tuple[str, int], int] = {}
    group = torch.tensor([numbers.setdefault((s.key.prompt_id, s.key.occurrence), len(numbers)) for s in scored])
    truncated = torch.tensor([s.completion.truncated for s in scored])
    valid = torch.tensor([value is not None for value in rewards])
    if leaves_out_truncated:
        valid = valid & ~truncated
    if compares_groups:
        members = torch.zeros(len(numbers), dtype=torch.long).index_add_(0, group, valid.long())
        valid = valid & (members[group] > 1)
    if replaced is not None:
        valid = valid & ~torch.tensor(replaced)
    length = torch.tensor([len(s.completion.tokens) for s in scored])
    turns = [[(0, len(s.completion.tokens))] if s.turns is None else list(s.turns) for s in scored]
    version = torch.tensor([s.completion.version for s in scored])
    prompts = {id(s.problem): torch.tensor(s.problem.tokens, dtype=torch.long) for s in scored}
    return Rollout(
        keys=[s.key for s in scored],
        prompt_tokens=[prompts[id(s.problem)] for s in scored],
        tokens=_padded([_tensor(s.completion.tokens, torch.long) for s in scored]),
        length=length,
        mask=_acted(turns, length) & valid[:, None],
        valid=valid,
        group=group,
        reward=torch.tensor([value or 0.0 for value in rewards], dtype=torch.float32),
        clean_reward=torch.tensor([value or 0.0 for value in clean], dtype=torch.float32),
        token_reward=_token_rewards(scored, rewards),
        sampler_logprobs=_padded([_tensor(s.completion.logprobs, torch.float32) for s in scored]),
        version=version,
        last_version=version,
        turns=turns,
        truncated=truncated,
    )


def unscored(sampled: Sequence[Sampled]) -> Rollout:
    """A Rollout to look at log-probs alone: every sample counts, and has no reward."""
    nothing = RewardResult(value=0.0)
    return assemble([Scored(**vars(s), result=nothing) for s in sampled])


def _token_rewards(scored: Sequence[Scored], rewards: Sequence[float | None]) -> Tensor | None:
    """[B, T], each row's sum its reward; None where every reward comes at the end. What noise has added to a reward
    that comes on the way, or taken off it, stands at the last token."""
    if all(s.result.token_values is None for s in scored):
        return None
    rows = []
    for one, reward in zip(scored, rewards, strict=True):
        row = torch.zeros(len(one.completion.tokens))
        if reward is not None and len(row):
            if one.result.token_values is not None:
                row += _tensor(one.result.token_values, torch.float32)
            row[-1] += reward - float(row.sum())
        rows.append(row)
    return _padded(rows)


def _tensor(numbers: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Of a list, or, without looking at one number after the other, of an array."""
    return torch.from_numpy(np.asarray(numbers)).to(dtype)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """[B, T]"""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _acted(turns: Sequence[Sequence[tuple[int, int]]], length: Tensor) -> Tensor:
    """[B, T] bool: the tokens of the policy's turns."""
    mask = torch.arange(int(length.max())) < length[:, None]
    for row, spans in enumerate(turns):
        for (_, end), (start, _) in itertools.pairwise(spans):
            mask[row, end:start] = False
    return mask
