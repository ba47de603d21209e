"""What an update adds up: the same numbers as adding at once, and nothing is read while a GPU would still compute."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from random_batches import fresh_seed
from torch.utils._python_dispatch import TorchDispatchMode

from rlkit.conformance.batches import make_case
from rlkit.engine.tally import Tally


class _Reads(TorchDispatchMode):
    """Counts what would have the host wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "masked_select"))
        return func(*args, **(kwargs or {}))


def test_a_tally_waits_for_nothing_until_it_is_asked() -> None:
    case = make_case(fresh_seed(), outside=0.0)
    rows = case.batch.rollout.mask.any(1).nonzero().flatten().tolist()
    parts = [rows[::2], rows[1::2]]
    weights = [3.0, 5.0]
    tally = Tally("policy")
    totals = [torch.randn((), dtype=torch.float64, requires_grad=True) for _ in parts]
    with _Reads() as reads:
        for part, weight, total in zip(parts, weights, totals, strict=True):
            metrics = {"own": (total * 2, torch.tensor(weight)), "plain": (weight, 2), "own_max": (total, total)}
            tally.add(total * 1, metrics, case.new.rows(part), case.batch.rows(part))
    assert reads.count == 0
    assert tally.bad() == []
    means = tally.means()
    first, second = (float(total.detach()) for total in totals)
    assert means["policy/loss"] == pytest.approx(first + second)
    assert means["own"] == pytest.approx(2 * (first + second) / 8)
    assert means["plain"] == pytest.approx(8 / 4)
    assert means["own_max"] == max(first, second)
    mask, logprobs = case.batch.rollout.mask, case.new.get("logprobs").detach()
    gap = (logprobs - case.batch.rollout.sampler_logprobs).abs()[mask]
    assert means["sampler/gap_mean"] == pytest.approx(float(gap.mean()))
    assert means["sampler/gap_max"] == float(gap.max())
    assert means["policy/entropy"] == pytest.approx(float(case.new.get("entropy").detach()[mask].mean()))


def test_a_tally_names_the_samples_of_a_part_whose_loss_is_not_finite() -> None:
    case = make_case(fresh_seed(), outside=0.0)
    rows = case.batch.rollout.mask.any(1).nonzero().flatten().tolist()
    tally = Tally("policy")
    tally.add(torch.tensor(1.0), {}, case.new.rows(rows[:1]), case.batch.rows(rows[:1]))
    tally.add(torch.tensor(math.inf), {}, case.new.rows(rows[1:]), case.batch.rows(rows[1:]))
    assert tally.bad() == [case.batch.rollout.keys[row] for row in rows[1:]]
