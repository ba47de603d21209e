"""Optimizer batches of fresh seeds for the tests of the mathematics, and what those say of a batch's rows."""

from __future__ import annotations

import os
from typing import Any

import torch

from rlkit.conformance.batches import Case, make_case
from rlkit.interfaces.learning import Rollout


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
