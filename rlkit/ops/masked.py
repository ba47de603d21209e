"""Statistics over what is there: sums, means and variances under a mask, and within groups.

Masked entries are replaced before anything is computed, so that whatever stands in padding, NaN included,
reaches neither a value nor a gradient. Nothing there gives 0, never NaN. Statistics of groups are computed in
float64: sums of equal float32 values are exact there, so their mean is the value itself, and their deviation 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `x` where the bool `mask` (of the same shape) is True: over everything, or over one dimension."""
    kept = torch.where(mask, x, 0.0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `x` where `mask` is True; 0 where it is nowhere True."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divided by n) of `x` where `mask` is True; a scalar."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x: Tensor, mask: Tensor, floor: float) -> Tensor:
    """(x - mean) / sqrt(var + floor^2) with mean and population variance over `mask`; 0 elsewhere.

    `floor` is in the units of `x` and above 0: a spread well below it is noise, and is not blown up to 1.
    """
    scale = torch.sqrt(masked_var(x, mask) + floor**2)
    return torch.where(mask, (x - masked_mean(x, mask)) / scale, 0.0)


def group_sum(x: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """[B]: for each row, the sum of `x` ([B]) over the valid rows of its group (`group` is [B], any numbers)."""
    _, slot = torch.unique(group, return_inverse=True)
    kept = torch.where(valid, x, 0.0).double()
    return torch.zeros_like(kept).index_add(0, slot, kept)[slot].to(x.dtype)


def group_size(group: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """[B]: for each row, the number of valid rows in its group, as a float of the given type."""
    return group_sum(torch.ones(group.shape, dtype=dtype, device=group.device), group, valid)


def group_mean(x: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """[B]: for each row, the mean of `x` over the valid rows of its group; 0 where there are none."""
    size = group_size(group, valid, torch.float64)
    return (group_sum(x.double(), group, valid) / size.clamp(min=1)).to(x.dtype)


def group_std(x: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """[B]: for each row, the standard deviation of `x` (divided by n - 1) over the valid rows of its group.

    0 where there are fewer than two.
    """
    exact = x.double()
    squares = group_sum((exact - group_mean(exact, group, valid)) ** 2, group, valid)
    return torch.sqrt(squares / (group_size(group, valid, torch.float64) - 1).clamp(min=1)).to(x.dtype)
