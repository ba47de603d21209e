"""What each rank has measured of its rows, put together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlkit.engine import distributed


def put_together(mine: Tensor, shares: Sequence[Sequence[int]], mask: Tensor) -> Tensor:
    """[n, B, T], 0 outside the mask [B, T], on the CPU, on every rank.

    mine: [n, N] at the tokens in the mask of this rank's rows. shares: each rank's rows, in the order in which `mine`
    has them; between them all with a token in the mask. No rank sends what is another's, or is not there.
    """
    counts = mask.sum(1)
    each = [counts[list(share)].tolist() for share in shares]
    parts = distributed.gather_flat(mine.reshape(-1), [len(mine) * sum(tokens) for tokens in each])
    rows: dict[int, Tensor] = {}
    for share, tokens, part in zip(shares, each, parts, strict=True):
        rows |= zip(share, torch.split(part.view(len(mine), sum(tokens)), tokens, dim=1), strict=True)
    values = torch.cat([torch.empty(len(mine), 0), *(rows[row] for row in sorted(rows))], dim=1)
    return torch.zeros(len(mine), *mask.shape).masked_scatter_(mask.expand(len(mine), *mask.shape), values)
