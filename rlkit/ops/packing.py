"""How rows are shared out over ranks and cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlkit.interfaces.learning import Rollout


def plan_microbatches(lengths: Sequence[int], budget: int, ranks: int) -> list[list[list[int]]]:
    """Share rows out over ranks, balanced by tokens, and cut each share into micro-batches.

    Args:
        lengths: tokens of each row, prompt included.
        budget: most padded tokens (rows x longest row) of a micro-batch. A row that is longer goes alone.
        ranks: number of ranks.

    Returns:
        [rank][micro-batch] -> row numbers. Every rank has the same number of micro-batches, at least one unless
        there are no rows at all: ranks that run different numbers of passes would wait for each other for ever.
        Where a rank has fewer, the list ends in empty ones.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        lightest = load.index(min(load))
        shares[lightest].append(row)
        load[lightest] += lengths[row]
    plans = [_cut(share, lengths, budget) for share in shares]
    count = max(len(plan) for plan in plans)
    return [plan + [[] for _ in range(count - len(plan))] for plan in plans]


def _cut(rows: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Longest first, so that rows of like length are padded together and memory peaks at once or never."""
    plan: list[list[int]] = []
    for row in rows:
        if plan and (len(plan[-1]) + 1) * lengths[plan[-1][0]] <= budget:
            plan[-1].append(row)
        else:
            plan.append([row])
    return plan


def place_rows(rollout: Rollout, device: torch.device) -> dict[str, Tensor]:
    """Whole rows, prompt and response, padded on the right; and where the state before each token in `mask` is."""
    if not all(len(prompt) for prompt in rollout.prompt_tokens):
        raise ValueError("a prompt has no tokens: nothing precedes its response's first token")
    tokens, mask = rollout.tokens.to(device), rollout.mask.to(device)
    prompts = [prompt.to(device) for prompt in rollout.prompt_tokens]
    whole = [
        torch.cat([prompt, row[:length]])
        for prompt, row, length in zip(prompts, tokens, rollout.length.tolist(), strict=True)
    ]
    rows, at = mask.nonzero(as_tuple=True)
    before = torch.tensor([len(prompt) for prompt in prompts], device=device) - 1
    return {
        "input_ids": nn.utils.rnn.pad_sequence(whole, batch_first=True),
        "rows": rows,
        "columns": before[rows] + at,
        "tokens": tokens[rows, at],
    }


def scatter_rows(values: Tensor, mask: Tensor) -> Tensor:
    mask = mask.to(values.device)
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
