"""The head's statistics against closed forms in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlkit.interfaces.names import Stat
from rlkit.ops.head import Head, head_stats

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


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, tokens, ref_hidden, ref_weight = random_inputs(3, 4, 6)

    def stats(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        wanted: list[Stat] = ["logprobs", "token_kl", "entropy"]
        found = head_stats(
            hidden,
            Head(weight),
            tokens,
            want=frozenset(wanted),
            temperature=0.7,
            reference=(ref_hidden, Head(ref_weight)),
        )
        return tuple(found[name] for name in wanted)

    assert torch.autograd.gradcheck(stats, (hidden, weight))


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
    with pytest.raises(ValueError, match="the critic's"):
        head_stats(hidden, Head(weight), tokens, want=frozenset({"values"}))
