"""Masked statistics and GAE against plain loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from random_batches import actions, fresh_case, fresh_seed

from rlkit.conformance.batches import NAN
from rlkit.ops.gae import gae, suffix_sum
from rlkit.ops.masked import (
    group_mean,
    group_size,
    group_std,
    group_sum,
    masked_mean,
    masked_sum,
    masked_var,
    whiten,
)


@pytest.fixture(autouse=True)
def _fresh_numbers() -> None:
    fresh_seed()


EMPTY = torch.zeros(2, 3, dtype=torch.bool)


def test_masked_statistics_are_those_of_what_is_left() -> None:
    x = torch.randn(5, 7, dtype=torch.float64)
    mask = torch.rand(5, 7) < 0.6
    mask[2] = False
    left = x[mask].tolist()
    holed = torch.where(mask, x, NAN)
    assert masked_sum(holed, mask).item() == pytest.approx(sum(left))
    assert masked_mean(holed, mask).item() == pytest.approx(statistics.fmean(left))
    assert masked_var(holed, mask).item() == pytest.approx(statistics.pvariance(left))
    for row, (total, mean) in enumerate(zip(masked_sum(holed, mask, 1), masked_mean(holed, mask, 1), strict=True)):
        kept = x[row][mask[row]].tolist()
        assert total.item() == pytest.approx(sum(kept))
        assert mean.item() == pytest.approx(statistics.fmean(kept) if kept else 0.0)


def test_whitening_has_mean_0_and_a_floor_under_its_scale() -> None:
    x = 3 + 2 * torch.randn(6, 9, dtype=torch.float64)
    mask = torch.rand(6, 9) < 0.7
    floor = 0.9
    left = x[mask].tolist()
    scale = math.sqrt(statistics.pvariance(left) + floor**2)
    expected = [(v - statistics.fmean(left)) / scale for v in left]
    white = whiten(torch.where(mask, x, NAN), mask, floor)
    assert white[mask].tolist() == pytest.approx(expected)
    assert not white[~mask].any()
    noise = 1e-9 * torch.randn(6, 9, dtype=torch.float64)
    assert whiten(noise, mask, floor=1e-4).abs().max() < 1e-4


def test_nothing_there_gives_0() -> None:
    x = torch.full((2, 3), NAN, dtype=torch.float64)
    for value in (masked_sum(x, EMPTY), masked_mean(x, EMPTY), masked_var(x, EMPTY), whiten(x, EMPTY, 1e-4)):
        assert not value.any()


def test_masked_entries_get_no_gradient_even_where_they_are_not_finite() -> None:
    x = torch.tensor([[1.0, NAN, 3.0], [float("inf"), 2.0, 7.0]], dtype=torch.float64, requires_grad=True)
    mask = x.detach().isfinite()
    masked_mean(x, mask).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.where(mask, 0.25, 0.0).double())


def test_group_statistics_are_over_valid_members() -> None:
    x = torch.randn(40, dtype=torch.float64)
    group = torch.randint(-3, 6, (40,)) * 11
    valid = torch.rand(40) < 0.7
    holed = torch.where(valid, x, NAN)
    for row in range(40):
        members = [x[i].item() for i in range(40) if group[i] == group[row] and valid[i]]
        assert group_size(group, valid, x.dtype)[row].item() == len(members)
        assert group_sum(holed, group, valid)[row].item() == pytest.approx(sum(members))
        mean = statistics.fmean(members) if members else 0.0
        assert group_mean(holed, group, valid)[row].item() == pytest.approx(mean)
        std = statistics.stdev(members) if len(members) > 1 else 0.0
        assert group_std(holed, group, valid)[row].item() == pytest.approx(std, abs=1e-12)


def test_equal_values_in_a_group_have_exactly_that_mean_and_no_deviation() -> None:
    for value in (0.1, 0.7, 100.1, *(1e3 * torch.randn(20)).tolist(), *torch.rand(20).tolist()):
        size = int(torch.randint(2, 500, ()))
        x = torch.cat([torch.full((size,), value), torch.randn(7)])
        group = torch.cat([torch.zeros(size), torch.ones(7)]).long()
        order = torch.randperm(size + 7)
        x, group = x[order], group[order]
        valid = torch.rand(size + 7) < 0.8
        equal = valid & (group == 0)
        holed = torch.where(valid, x, NAN)
        mean, std = group_mean(holed, group, valid), group_std(holed, group, valid)
        assert mean.dtype == std.dtype == torch.float32
        assert torch.equal(mean[equal], x[equal])
        assert not std[equal].any()


@pytest.mark.parametrize(("lam", "gamma"), [(1.0, 1.0), (0.9, 1.0), (0.0, 1.0), (0.7, 0.8)])
def test_gae_is_its_closed_form_over_the_policys_tokens(lam: float, gamma: float) -> None:
    """A_t = sum_l (gamma lam)^(l-t) (r_l + gamma V_{l+1} - V_l), in the steps of a row's own tokens."""
    case = fresh_case(length=9, p_env=0.4)
    mask = case.batch.mask
    values = torch.randn(mask.shape, dtype=torch.float64)
    rewards = torch.where(mask, torch.randn(mask.shape, dtype=torch.float64), 0.0)
    found = gae(rewards, torch.where(mask, values, NAN), mask, lam, gamma)
    assert not found[~mask].any()
    for row in range(len(mask)):
        columns = actions(case.batch.rollout, row)
        r = [rewards[row, t].item() for t in columns]
        v = [values[row, t].item() for t in columns] + [0.0]
        for t in range(len(columns)):
            expected = sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, len(columns)))
            assert found[row, columns[t]].item() == pytest.approx(expected, abs=1e-12)


def test_gae_with_lambda_1_is_the_return_less_the_value() -> None:
    rewards, values = torch.randn(2, 4, 7, dtype=torch.float64)
    returns = rewards.flip(1).cumsum(1).flip(1)
    found = gae(rewards, values, torch.ones(4, 7, dtype=torch.bool))
    torch.testing.assert_close(found, returns - values)


@pytest.mark.parametrize("decay", [1.0, 0.9, 0.3, 0.0])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 33])
def test_suffix_sums_are_over_the_policys_tokens(decay: float, length: int) -> None:
    case = fresh_case(length=length, p_env=0.4)
    mask = case.batch.mask
    x = torch.where(mask, torch.randn(mask.shape, dtype=torch.float64), NAN)
    found = suffix_sum(x, mask, decay)
    assert not found[~mask].any()
    for row in range(len(mask)):
        total = 0.0
        for t in reversed(actions(case.batch.rollout, row)):
            total = x[row, t].item() + decay * total
            assert found[row, t].item() == pytest.approx(total, abs=1e-12)
    torch.testing.assert_close(found, gae(torch.where(mask, x, 0.0), torch.zeros_like(x), mask, decay))


@pytest.mark.parametrize("cached", [1, 20, 21])
def test_suffix_sums_do_not_depend_on_how_many_rows_are_summed_at_a_time(
    cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, mask = torch.randn(5, 10), torch.rand(5, 10) < 0.7
    whole = suffix_sum(x, mask, 0.9)
    monkeypatch.setattr("rlkit.ops.gae.CACHED", cached)
    assert torch.equal(suffix_sum(x, mask, 0.9), whole)
    assert suffix_sum(x[:0], mask[:0], 0.9).shape == (0, 10)


def test_a_reward_on_an_environment_token_belongs_to_the_action_before() -> None:
    mask = torch.tensor([[True, False, False, True, False]])
    rewards = torch.tensor([[1.0, 10.0, 100.0, 1000.0, 10000.0]])
    found = gae(rewards, torch.zeros_like(rewards), mask, lam=0.5)
    assert found.tolist() == [[111 + 0.5 * 11000, 0.0, 0.0, 11000.0, 0.0]]
