"""How rows are shared out over ranks, cut into micro-batches, and put into tensors without padding."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlkit.interfaces.learning import Rollout


def plan_microbatches(
    lengths: Sequence[int],
    budget: int,
    ranks: int,
    packed: bool,
    prompts: Sequence[tuple[int, ...]],
) -> list[list[list[int]]]:
    """Share rows out over ranks, balanced by tokens, and cut each share into micro-batches.

    Args:
        lengths: tokens of each row, prompt included.
        budget: most tokens of a micro-batch: as they are, or padded (rows x longest row). A row that is longer goes
            alone.
        ranks: number of ranks.
        packed: rows stand behind each other, without padding; a prompt counts once where rows with it do.
        prompts: the tokens of each row's prompt.

    Returns:
        [rank][micro-batch] -> row numbers, those of one prompt behind each other. Every rank has the same number of
        micro-batches, at least one unless there are no rows at all: ranks that run different numbers of passes would
        wait for each other for ever. Where a rank has fewer, the list ends in empty ones.
    """
    bundles = [[row] for row in range(len(lengths))]
    sizes = list(lengths)
    if packed:
        # Small enough for loads to be level, large enough for most prompts to be read once.
        bundles, sizes = _bundles(lengths, prompts, min(budget, sum(lengths) // ranks) // 4)
    largest_first = sorted(range(len(bundles)), key=lambda bundle: (-sizes[bundle], bundle))
    shares = _level(largest_first, sizes, ranks)
    cut = _pack if packed else _cut
    plans = [cut(share, sizes, budget) for share in shares]
    count = max(len(plan) for plan in plans)
    rows = [[[row for bundle in part for row in bundles[bundle]] for part in plan] for plan in plans]
    return [plan + [[] for _ in range(count - len(plan))] for plan in rows]


def _bundles(
    lengths: Sequence[int], prompts: Sequence[tuple[int, ...]], most: int
) -> tuple[list[list[int]], list[int]]:
    """Rows of one prompt, as many as have `most` tokens together, and how many they have; those of a prompt behind each
    other."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        groups[prompt].append(row)
    bundles: list[list[int]] = []
    sizes: list[int] = []
    for prompt, group in groups.items():
        for at, row in enumerate(group):
            # Attention's part of what a token takes: it writes the prompt out again.
            more = lengths[row] - len(prompt) + len(prompt) // 8
            if at and sizes[-1] + more <= most:
                bundles[-1].append(row)
                sizes[-1] += more
            else:
                bundles.append([row])
                sizes.append(lengths[row])
    return bundles, sizes


def _level(items: Sequence[int], sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Each item, the largest first, to the part that has least."""
    shares: list[list[int]] = [[] for _ in range(parts)]
    load = [0] * parts
    for item in items:
        lightest = load.index(min(load))
        shares[lightest].append(item)
        load[lightest] += sizes[item]
    return shares


def _pack(items: list[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    """As few micro-batches as best fit, decreasing, makes; of equal loads where as many do with those. Items stand in
    order, which has the bundles of one prompt side by side."""
    plan: list[list[int]] = []
    room: list[int] = []
    for item in items:
        fits = [at for at, left in enumerate(room) if left >= sizes[item]]
        if fits:
            at = min(fits, key=lambda at: room[at])
        else:
            at = len(plan)
            plan.append([])
            room.append(budget)
        plan[at].append(item)
        room[at] -= sizes[item]
    level = _level(items, sizes, max(len(plan), 1))
    if all(len(part) == 1 or sum(sizes[item] for item in part) <= budget for part in level):
        plan = [part for part in level if part]
    return [sorted(part) for part in plan]


def _cut(rows: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Longest first, so that rows of like length are padded together and memory peaks at once or never."""
    plan: list[list[int]] = []
    for row in rows:
        if plan and (len(plan[-1]) + 1) * lengths[plan[-1][0]] <= budget:
            plan[-1].append(row)
        else:
            plan.append([row])
    return plan


def pack(prompts: Sequence[Tensor], responses: Sequence[Tensor]) -> dict[str, Tensor]:
    """A model's arguments for sequences in one row, behind each other; a prompt that one has as the one before it is
    there once, for both.

    Returns:
        `input_ids`, `position_ids`: [1, R].
        `cu_seq_lens_q`: [n + 1], the bounds of the n sequences written out, one after the other, to E tokens;
            `cu_seq_lens_k`: the same in int32.
        `spread`: [E], where in the row each of those tokens is; `kept`: [R], where among those each of the row's is.
            Only where a prompt is shared.
    """
    sizes = torch.tensor([len(prompt) for prompt in prompts])
    lengths = sizes + torch.tensor([len(response) for response in responses])
    ends = lengths.cumsum(0)
    starts = ends - lengths
    written = torch.cat([part for pair in zip(prompts, responses, strict=True) for part in pair])
    positions = torch.arange(len(written)) - starts.repeat_interleave(lengths)
    bounds = torch.cat([torch.zeros(1, dtype=ends.dtype), ends])
    shared = torch.tensor(
        [False, *(len(one) == len(other) and torch.equal(one, other) for one, other in itertools.pairwise(prompts))]
    )
    placed = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds.int()}
    if not shared.any():
        return placed | {"input_ids": written[None], "position_ids": positions[None]}
    again = (shared.repeat_interleave(lengths)) & (positions < sizes.repeat_interleave(lengths))
    kept = (~again).nonzero().flatten()
    # The sequence with which each one's prompt has come.
    first = torch.where(shared, 0, torch.arange(len(shared))).cummax(0).values
    spread = (~again).cumsum(0) - 1
    spread = torch.where(again, spread[starts[first].repeat_interleave(lengths)] + positions, spread)
    return placed | {
        "input_ids": written[kept][None],
        "position_ids": positions[kept][None],
        "spread": spread,
        "kept": kept,
    }


def place_rows(rollout: Rollout, device: torch.device, packed: bool) -> dict[str, Tensor]:
    """Whole rows, prompt and response, behind each other in one row, or padded on the right; and where the state before
    each token in `mask` is.

    The rollout is on the CPU, where placing it makes a GPU wait for nothing. Returns on the device what a policy's
    forward takes: `input_ids`, `rows`, `columns`, `tokens`; packed also what `pack` gives, of which `cu_seq_lens_q`
    stays on the CPU.
    """
    prompts = rollout.prompt_tokens
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt has no tokens: nothing precedes its response's first token")
    responses = [row[:length] for row, length in zip(rollout.tokens, rollout.length.tolist(), strict=True)]
    sizes = torch.tensor([len(prompt) for prompt in prompts])
    rows, at = rollout.mask.nonzero(as_tuple=True)
    columns, tokens = sizes[rows] - 1 + at, rollout.tokens[rows, at]
    if packed:
        placed = pack(prompts, responses)
        columns = placed["cu_seq_lens_q"][rows] + columns
        if "spread" in placed:
            columns = placed["spread"][columns]
        rows = torch.zeros_like(rows)
    else:
        ids = [torch.cat([prompt, response]) for prompt, response in zip(prompts, responses, strict=True)]
        placed = {"input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True)}
    placed |= {"rows": rows, "columns": columns, "tokens": tokens}
    return {name: part if name == "cu_seq_lens_q" else part.to(device) for name, part in placed.items()}


def scatter_rows(values: Tensor, mask: Tensor) -> Tensor:
    mask = mask.to(values.device)
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
