"""Importance weights against loops written from their definition; and what they are for: right expectations."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import pytest
import torch
from random_batches import fresh_seed
from torch import Tensor

from rlkit.conformance.batches import NAN
from rlkit.generation.transformers import _Draw
from rlkit.interfaces.generation import Request, SamplingParams
from rlkit.ops.importance import importance_weights

LEVELS: list[Literal["token", "sequence"]] = ["token", "sequence"]
MODES: list[Literal["truncate", "mask"]] = ["truncate", "mask"]
NO_LIMIT = 1e9


def drawn(rows: int = 300, width: int = 7, spread: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the policy and of the behaviour, NaN where nothing is to be read, and the mask."""
    fresh_seed()
    mask = torch.rand(rows, width) < 0.7
    mask[0], mask[1] = False, True
    logprobs = -3 * torch.rand(rows, width, dtype=torch.float64)
    behaviour = logprobs + spread * torch.randn(rows, width, dtype=torch.float64)
    return torch.where(mask, logprobs, NAN), torch.where(mask, behaviour, NAN), mask


@pytest.mark.parametrize("limit", [1.2, 2.0])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_weights_are_the_definition_and_nothing_outside_the_mask_is_read(
    level: Literal["token", "sequence"], mode: Literal["truncate", "mask"], limit: float
) -> None:
    logprobs, behaviour, mask = drawn()
    weights, kept = importance_weights(logprobs, behaviour, mask, level=level, mode=mode, limit=limit)
    seen = set()
    for i, row in enumerate(mask.tolist()):
        product = math.prod(math.exp((logprobs[i, t] - behaviour[i, t]).item()) for t, here in enumerate(row) if here)
        for t, here in enumerate(row):
            if not here:
                assert (weights[i, t].item(), kept[i, t].item()) == (0.0, False)
                continue
            weight = product if level == "sequence" else math.exp((logprobs[i, t] - behaviour[i, t]).item())
            inside = 1 / limit <= weight <= limit
            seen.add(inside)
            expected = min(weight, limit) if mode == "truncate" else weight if inside else 0.0
            assert weights[i, t].item() == pytest.approx(expected, rel=1e-12)
            assert kept[i, t].item() == (inside or mode == "truncate")
    assert seen == {True, False}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_no_weight_is_above_the_limit_and_a_mask_keeps_what_stands_on_it(
    level: Literal["token", "sequence"], mode: Literal["truncate", "mask"]
) -> None:
    logprobs, behaviour, mask = drawn(rows=400, width=3, spread=3.0)
    weights, kept = importance_weights(logprobs, behaviour, mask, level=level, mode=mode, limit=1.5)
    assert weights.max() <= 1.5
    assert not (kept & ~mask).any()
    assert not weights[~kept].any()
    if mode == "mask":
        assert weights[kept].min() >= 1 / 1.5
        edge = torch.tensor([[math.log(2.0)], [-math.log(2.0)]], dtype=torch.float64)
        on, left = importance_weights(
            edge, torch.zeros_like(edge), torch.ones(2, 1, dtype=torch.bool), level=level, mode=mode, limit=2.0
        )
        assert left.all()
        assert on.flatten().tolist() == [2.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("apart", [25.0, 1e3, 1e30, math.inf])
def test_log_ratios_of_any_size_give_finite_weights(
    apart: float, level: Literal["token", "sequence"], dtype: torch.dtype
) -> None:
    logprobs = torch.tensor([[-0.5, -0.5 - apart], [-apart, -0.1], [-0.2, -0.3]], dtype=dtype)
    behaviour = torch.tensor([[-0.5 - min(apart, 1e30), -0.5], [-0.5, -0.1], [-0.2, -0.3]], dtype=dtype)
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    weights, kept = importance_weights(logprobs, behaviour, mask, level=level, mode="truncate", limit=2.0)
    assert weights.isfinite().all()
    assert weights[0, 0] == 2.0
    assert 0 <= weights[1, 0] < 1e-8
    assert weights[2].tolist() == [1.0, 1.0]
    unlimited, _ = importance_weights(logprobs, behaviour, mask, level=level, mode="truncate", limit=math.inf)
    assert unlimited.isfinite().all()
    assert unlimited[0, 0] > 1e8
    weights, kept = importance_weights(logprobs, behaviour, mask, level=level, mode="mask", limit=2.0)
    assert kept.tolist() == [[False, False], [False, level == "token"], [True, True]]
    assert weights.tolist() == kept.to(dtype).tolist()


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.7}])
def test_of_a_truncated_sampler_the_weight_is_the_share_that_could_be_drawn(options: dict[str, Any]) -> None:
    """mu = pi / Z on what is left of the vocabulary, so pi / mu is Z whatever was drawn."""
    fresh_seed()
    rows, vocabulary, temperature = 32, 20, 0.8
    logits = 2 * torch.randn(rows, vocabulary)
    params = SamplingParams(max_tokens=1, temperature=temperature, **options)
    draw = _Draw(params, [Request(prompt_tokens=[1], seed=row, params=params) for row in range(rows)], (), "cpu")
    draw(logits)
    completions = [completion for _, completion in sorted(draw.completions(0), key=lambda x: x[0])]
    tokens = torch.tensor([completion.tokens for completion in completions])
    behaviour = torch.tensor([completion.logprobs for completion in completions])
    whole = (logits.double() / temperature).log_softmax(-1)

    weights, kept = importance_weights(
        whole.gather(1, tokens), behaviour, torch.ones(rows, 1, dtype=torch.bool), level="token", mode="mask", limit=9.0
    )
    assert kept.all()
    shares = []
    for row in whole.exp():
        left = sorted(row.tolist(), reverse=True)[: options.get("top_k", vocabulary)]
        wanted, count = options.get("top_p", 1.0) * sum(left), len(left)
        if "top_p" in options:
            count = next(n for n in range(1, len(left) + 1) if sum(left[:n]) >= wanted)
        shares.append(sum(left[:count]))
    assert weights.flatten().tolist() == pytest.approx(shares, rel=1e-5)
    assert max(shares) - min(shares) > 0.05
    assert weights.max() <= 1


def tables(states: int, vocabulary: int) -> Tensor:
    """log p(y | s), [states, vocabulary]."""
    return torch.randn(states, vocabulary, dtype=torch.float64).log_softmax(-1)


def test_under_no_limit_sequence_weights_make_every_expectation_right() -> None:
    """Over all responses of three tokens: E_mu[w f] = E_pi[f], whatever f looks at."""
    fresh_seed()
    vocabulary, length = 3, 3
    responses = list(itertools.product(range(vocabulary), repeat=length))
    prefixes = {y[:t]: i for i, (y, t) in enumerate(itertools.product(responses, range(length)))}
    pi, mu = tables(len(responses) * length, vocabulary), tables(len(responses) * length, vocabulary)

    def logprobs(table: Tensor) -> Tensor:
        return torch.stack([torch.stack([table[prefixes[y[:t]], y[t]] for t in range(length)]) for y in responses])

    new, behaviour = logprobs(pi), logprobs(mu)
    mask = torch.ones(len(responses), length, dtype=torch.bool)
    weights, _ = importance_weights(new, behaviour, mask, level="sequence", mode="truncate", limit=NO_LIMIT)
    f = torch.randn(len(responses), length, dtype=torch.float64)
    found = (behaviour.sum(1).exp().unsqueeze(1) * weights * f).sum()
    torch.testing.assert_close(found, (new.sum(1).exp().unsqueeze(1) * f).sum())
    assert abs((behaviour.sum(1).exp().unsqueeze(1) * f).sum() - found) > 1e-6

    # A limit bounds what one response may weigh, at the price of a bias.
    bounded, _ = importance_weights(new, behaviour, mask, level="sequence", mode="truncate", limit=1.01)
    assert abs((behaviour.sum(1).exp() * bounded[:, 0]).sum() - 1) > 1e-3
    torch.testing.assert_close((behaviour.sum(1).exp() * weights[:, 0]).sum(), torch.ones((), dtype=torch.float64))


def test_under_no_limit_token_weights_make_the_expectation_right_at_every_state() -> None:
    fresh_seed()
    pi, mu = tables(5, 8), tables(5, 8)
    f = torch.randn(5, 8, dtype=torch.float64)
    mask = torch.ones_like(pi, dtype=torch.bool)
    weights, _ = importance_weights(pi, mu, mask, level="token", mode="truncate", limit=NO_LIMIT)
    torch.testing.assert_close((mu.exp() * weights * f).sum(1), (pi.exp() * f).sum(1))
    # Of a truncated behaviour: the part of the expectation that can be drawn.
    left = mu > mu.median(1, keepdim=True).values
    cut = torch.where(left, pi, -math.inf).log_softmax(-1)
    weights, _ = importance_weights(pi, cut, left, level="token", mode="truncate", limit=NO_LIMIT)
    found = (torch.where(left, cut, -math.inf).exp() * weights * f).sum(1)
    torch.testing.assert_close(found, torch.where(left, pi.exp() * f, 0.0).sum(1))
