"""The head's statistics against closed forms in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlkit.engine.activations import Alive
from rlkit.interfaces.names import Stat
from rlkit.ops.head import Head, head_stats, peak_bytes

EVERY: frozenset[Stat] = frozenset({"logprobs", "ref_logprobs", "token_kl", "entropy"})


def random_inputs(n: int = 7, width: int = 5, vocabulary: int = 11) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    hidden, weight = torch.randn(n, width).double(), torch.randn(vocabulary, width).double()
    ref_hidden, ref_weight = torch.randn(n, width + 2).double(), torch.randn(vocabulary, width + 2).double()
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(vocabulary, (n,)), ref_hidden, ref_weight


def probabilities(hidden: Tensor, weight: Tensor, temperature: float) -> list[list[float]]:
    rows = []
    for state in hidden.tolist():
        scores = [sum(a * b for a, b in zip(state, row, strict=True)) / temperature for row in weight.tolist()]
        total = sum(math.exp(score) for score in scores)
        rows.append([math.exp(score) / total for score in scores])
    return rows


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_every_statistic_is_its_definition(temperature: float) -> None:
    hidden, weight, tokens, ref_hidden, ref_weight = random_inputs()
    found = head_stats(
        hidden, Head(weight), tokens, want=EVERY, temperature=temperature, reference=(ref_hidden, Head(ref_weight))
    )
    assert found.keys() == EVERY
    p, q = probabilities(hidden, weight, temperature), probabilities(ref_hidden, ref_weight, temperature)
    for n, token in enumerate(tokens.tolist()):
        assert found["logprobs"][n].item() == pytest.approx(math.log(p[n][token]))
        assert float(found["ref_logprobs"][n]) == pytest.approx(math.log(q[n][token]))
        assert float(found["entropy"][n]) == pytest.approx(-sum(a * math.log(a) for a in p[n]))
        assert float(found["token_kl"][n]) == pytest.approx(
            sum(a * math.log(a / b) for a, b in zip(p[n], q[n], strict=True))
        )


def by_definition(
    hidden: Tensor, head: Head, tokens: Tensor, reference: tuple[Tensor, Head], temperature: float
) -> dict[str, Tensor]:
    """With all logits in memory, in float64; differentiable."""

    def log_softmax(hidden: Tensor, head: Head) -> Tensor:
        logits = hidden if head.weight is None else hidden @ head.weight.T
        logits = head.scale * (logits if head.bias is None else logits + head.bias)
        logits = logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)
        return torch.log_softmax(logits / temperature, -1)

    p, q = log_softmax(hidden, head), log_softmax(*reference)
    return {
        "logprobs": p.gather(1, tokens[:, None])[:, 0],
        "entropy": -(p.exp() * p).sum(1),
        "ref_logprobs": q.gather(1, tokens[:, None])[:, 0],
        "token_kl": (p.exp() * (p - q)).sum(1),
    }


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "n": draw(st.sampled_from([0, 1, 2, 17, 40])),
        "width": draw(st.sampled_from([1, 5, 8])),
        "vocabulary": draw(st.sampled_from([1, 2, 7, 33, 100])),
        "tile": draw(st.sampled_from([1, 3, 50, 1000, 10**6])),
        "temperature": draw(st.sampled_from([1.0, 0.6, 1.7])),
        "scale": draw(st.sampled_from([1.0, 0.25, 3.0])),
        "cap": draw(st.sampled_from([None, 2.0, 30.0])),
        "bias": draw(st.booleans()),
        "known": draw(st.booleans()),
        "size": draw(st.sampled_from([1.0, 30.0, 1e4])),
        "want": frozenset(draw(st.sets(st.sampled_from(sorted(EVERY)), min_size=1))),
    }


@settings(max_examples=150)
@given(case=cases())
def test_tiles_change_nothing_and_gradients_are_those_of_the_definition(case: dict[str, Any]) -> None:
    n, width, vocabulary = case["n"], case["width"], case["vocabulary"]
    # Under a soft cap logits far past it have no gradient that could be compared.
    size = case["size"] if case["cap"] is None else min(case["size"], case["cap"])
    weight, bias = torch.randn(vocabulary, width).double().requires_grad_(), None
    if case["bias"]:
        bias = torch.randn(vocabulary).double().requires_grad_()
    hidden = (torch.randn(n, width if case["known"] else vocabulary).double() * size).requires_grad_()
    head = Head(weight, bias, case["scale"], case["cap"]) if case["known"] else Head(None)
    reference = (torch.randn(n, 4).double(), Head(torch.randn(vocabulary, 4).double(), None, 1.0, case["cap"]))
    tokens = torch.randint(vocabulary, (n,))
    found = head_stats(
        hidden, head, tokens, want=case["want"], temperature=case["temperature"], reference=reference, tile=case["tile"]
    )
    expected = by_definition(hidden, head, tokens, reference, case["temperature"])
    assert found.keys() == case["want"]
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-8, atol=1e-8)
    factors = {name: torch.randn(n).double() for name in case["want"] - {"ref_logprobs"}}
    if factors:
        learnt = [part for part in (hidden, head.weight, head.bias) if part is not None]
        ours, theirs = (
            torch.autograd.grad(torch.stack([(stats[name] * f).sum() for name, f in factors.items()]).sum(), learnt)
            for stats in (found, expected)
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7 * max(1.0, size))


@pytest.mark.parametrize("vocabulary", [1, 151_936])
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_vocabularies_and_extreme_logits_in_the_dtypes_of_models(
    dtype: torch.dtype, size: float, vocabulary: int
) -> None:
    hidden = (torch.randn(5, 8) * size).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 8).to(dtype).requires_grad_()
    tokens = torch.randint(vocabulary, (5,))
    reference = (hidden.detach() + 0.1 * size * torch.randn(5, 8).to(dtype), Head(weight.detach()))
    wide = [part.detach().double().requires_grad_() for part in (hidden, weight)]
    # The product is in the weights' dtype, so bfloat16's logits are those of bfloat16.
    logits = torch.nn.functional.linear(hidden.detach(), weight.detach())
    found = head_stats(hidden, Head(weight), tokens, want=EVERY, reference=reference)
    ref_logits = torch.nn.functional.linear(reference[0], weight.detach()).double()
    expected = by_definition(logits.double(), Head(None), tokens, (ref_logits, Head(None)), 1.0)
    for name, values in found.items():
        torch.testing.assert_close(values.double(), expected[name], rtol=1e-5, atol=1e-5 * size)
    found["logprobs"].sum().backward()
    plain = [part.detach().requires_grad_() for part in (hidden, weight)]
    for h, w in (wide, plain):
        torch.log_softmax(h @ w.T, -1).gather(1, tokens[:, None]).sum().backward()
    for part, exact, usual in zip((hidden, weight), wide, plain, strict=True):
        assert part.grad is not None
        assert exact.grad is not None
        assert usual.grad is not None
        assert part.grad.dtype == dtype
        largest = max(1.0, float(exact.grad.abs().max()))
        # Sums over 151,936 tokens in float32 are off by some 1e-4 whoever adds them up.
        of_sums = 2 * float((usual.grad.double() - exact.grad).abs().max()) + 1e-6 * largest
        tolerance = 2e-2 * largest if dtype == torch.bfloat16 else of_sums
        if size == 1.0:  # rounded logits of 1e4 decide which tokens have a gradient at all
            assert (part.grad.double() - exact.grad).abs().max() <= tolerance
        assert part.grad.isfinite().all()


def test_gradients_of_low_precision_are_summed_in_float32() -> None:
    """Over many tiles: rounded to bfloat16 after each, a sum of equal parts would stop growing."""
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    found = head_stats(hidden, Head(weight), torch.zeros(4096, dtype=torch.long), tile=2)
    found["logprobs"].sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [2048.0, -2048.0]


@pytest.mark.parametrize("want", [{"logprobs"}, {"logprobs", "entropy"}, EVERY], ids=["log-probs", "entropy", "all"])
@pytest.mark.parametrize(("n", "vocabulary"), [(64, 512), (2048, 512), (64, 32768), (2048, 4096)])
def test_memory_does_not_grow_with_tokens_times_vocabulary(
    n: int, vocabulary: int, want: set[Stat], monkeypatch: pytest.MonkeyPatch
) -> None:
    tile, width = 1 << 14, 8
    hidden, weight = torch.randn(n, width, requires_grad=True), torch.randn(vocabulary, width, requires_grad=True)
    ref_weight = torch.randn(vocabulary, width)
    reference, tokens = (torch.randn(n, width), Head(ref_weight)), torch.randint(vocabulary, (n,))
    with Alive(hidden, weight, tokens, reference[0], ref_weight) as alive:
        found = head_stats(hidden, Head(weight), tokens, want=want, reference=reference, tile=tile)
        loss = torch.stack([values.sum() for name, values in found.items() if name != "ref_logprobs"]).sum()
        loss.backward()
    assert hidden.grad is not None
    # The states' gradient, and some numbers a token.
    left = 4 * width * n + 40 * 4 * n
    monkeypatch.setattr("rlkit.ops.head.TILE", tile)
    assert alive.peak <= peak_bytes(n, vocabulary, learns=width) + left
    assert alive.peak > 4 * tile, "nothing was watched"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_wide_head_is_in_the_peak(dtype: torch.dtype) -> None:
    """In bfloat16 it is there twice: summed up in float32, and as it is given."""
    hidden, weight = (torch.randn(*size, dtype=dtype, requires_grad=True) for size in ((8, 512), (4096, 512)))
    tokens = torch.randint(4096, (8,))
    with Alive(hidden, weight, tokens) as alive:
        head_stats(hidden, Head(weight), tokens)["logprobs"].sum().backward()
    said = peak_bytes(8, 4096, learns=512, width=dtype.itemsize)
    assert 0.7 * said < alive.peak < 1.01 * said


def test_no_gradient_flows_into_the_reference() -> None:
    hidden, weight, tokens, *_ = random_inputs()
    found = head_stats(hidden.detach(), Head(weight.detach()), tokens, want=EVERY, reference=(hidden, Head(weight)))
    assert not any(values.requires_grad for values in found.values())


def test_a_policy_is_at_no_distance_from_itself() -> None:
    hidden, weight, tokens, *_ = random_inputs()
    found = head_stats(
        hidden.float(), Head(weight.float()), tokens, want=EVERY, reference=(hidden.float(), Head(weight.float()))
    )
    assert torch.equal(found["logprobs"], found["ref_logprobs"])
    assert torch.equal(found["token_kl"], torch.zeros(7))


def test_the_softmax_is_in_float32() -> None:
    hidden, weight, tokens, *_ = random_inputs()
    found = head_stats(hidden.bfloat16(), Head(weight.bfloat16()), tokens)["logprobs"]
    assert found.dtype == torch.float32
    logits = torch.nn.functional.linear(hidden.bfloat16(), weight.bfloat16()).double()
    expected = torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_no_tokens_give_nothing_and_a_gradient_of_zero() -> None:
    hidden, weight, tokens, *_ = random_inputs()
    found = head_stats(hidden[:0], Head(weight), tokens[:0], want=frozenset({"logprobs", "entropy"}))
    (found["logprobs"].sum() + found["entropy"].sum()).backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_what_cannot_be_said_is_refused() -> None:
    hidden, weight, tokens, *_ = random_inputs()
    with pytest.raises(ValueError, match="token_kl: needs a reference"):
        head_stats(hidden, Head(weight), tokens, want=frozenset({"token_kl"}))
    with pytest.raises(ValueError, match="tile 0: at least one logit must fit"):
        head_stats(hidden, Head(weight), tokens, tile=0)
    with pytest.raises(ValueError, match="the critic's"):
        head_stats(hidden, Head(weight), tokens, want=frozenset({"values"}))
