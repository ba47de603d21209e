"""How rows are shared out over ranks, cut into micro-batches, and put into tensors without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlkit.interfaces.learning import Rollout


def plan_microbatches(lengths: Sequence[int], budget: int, ranks: int, packed: bool) -> list[list[list[int]]]:
    """Share rows out over ranks, balanced by tokens, and cut each share into micro-batches.

    Args:
        lengths: tokens of each row, prompt included.
        budget: most tokens of a micro-batch: as they are, or padded (rows x longest row). A row that is longer goes
            alone.
        ranks: number of ranks.
        packed: rows stand behind each other, without padding.

    Returns:
        [rank][micro-batch] -> row numbers. Every rank has the same number of micro-batches, at least one unless
        there are no rows at all: ranks that run different numbers of passes would wait for each other for ever.
        Where a rank has fewer, the list ends in empty ones.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    shares = _level(longest_first, lengths, ranks)
    plans = [_pack(share, lengths, budget) if packed else _cut(share, lengths, budget) for share in shares]
    count = max(len(plan) for plan in plans)
    return [plan + [[] for _ in range(count - len(plan))] for plan in plans]


def _level(rows: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Each row, the longest first, to the part that has least."""
    shares: list[list[int]] = [[] for _ in range(parts)]
    load = [0] * parts
    for row in rows:
        lightest = load.index(min(load))
        shares[lightest].append(row)
        load[lightest] += lengths[row]
    return shares


def _pack(rows: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """As few micro-batches as best fit, decreasing, makes; of equal loads where as many do with those."""
    plan: list[list[int]] = []
    room: list[int] = []
    for row in rows:
        fits = [at for at, left in enumerate(room) if left >= lengths[row]]
        if fits:
            at = min(fits, key=lambda at: room[at])
        else:
            at = len(plan)
            plan.append([])
            room.append(budget)
        plan[at].append(row)
        room[at] -= lengths[row]
    level = _level(rows, lengths, max(len(plan), 1))
    if all(len(part) == 1 or sum(lengths[row] for row in part) <= budget for part in level):
        plan = [part for part in level if part]
    return plan


def _cut(rows: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Longest first, so that rows of like length are padded together and memory peaks at once or never."""
    plan: list[list[int]] = []
    for row in rows:
        if plan and (len(plan[-1]) + 1) * lengths[plan[-1][0]] <= budget:
            plan[-1].append(row)
        else:
            plan.append([row])
    return plan


def place_rows(rollout: Rollout, device: torch.device, packed: bool) -> dict[str, Tensor]:
    """Whole rows, prompt and response, behind each other in one row, or padded on the right; and where the state before
    each token in `mask` is.

    Returns what a policy's forward takes: `input_ids`, `rows`, `columns`, `tokens`; packed also `position_ids` and
    `cu_seq_lens_q` (see `rlkit/engine/attention.py`).
    """
    if not all(len(prompt) for prompt in rollout.prompt_tokens):
        raise ValueError("a prompt has no tokens: nothing precedes its response's first token")
    lengths = rollout.length.tolist()
    whole = [
        part
        for prompt, row, length in zip(rollout.prompt_tokens, rollout.tokens, lengths, strict=True)
        for part in (prompt, row[:length])
    ]
    sizes = torch.tensor([len(prompt) for prompt in rollout.prompt_tokens])
    rows, at = rollout.mask.nonzero(as_tuple=True)
    columns, tokens = sizes[rows] - 1 + at, rollout.tokens[rows, at]
    sequences = sizes + rollout.length.to(sizes)
    if packed:
        ends = sequences.cumsum(0)
        starts = ends - sequences
        placed = {
            "input_ids": torch.cat([part.to(tokens) for part in whole])[None],
            "position_ids": (torch.arange(int(ends[-1])) - starts.repeat_interleave(sequences))[None],
            "rows": torch.zeros_like(rows),
            "columns": starts[rows] + columns,
            "tokens": tokens,
        }
        # The bounds stay on the host, where attention needs them.
        bounds = torch.cat([torch.zeros(1, dtype=ends.dtype), ends])
        return {name: part.to(device) for name, part in placed.items()} | {"cu_seq_lens_q": bounds}
    ids = [torch.cat([prompt, response]) for prompt, response in zip(whole[::2], whole[1::2], strict=True)]
    placed = {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "rows": rows,
        "columns": columns,
        "tokens": tokens,
    }
    return {name: part.to(device) for name, part in placed.items()}


def scatter_rows(values: Tensor, mask: Tensor) -> Tensor:
    mask = mask.to(values.device)
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
