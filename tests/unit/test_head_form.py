"""What a model does around its head is found out whatever its weights are, or left to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, GPTJConfig, GraniteConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from rlkit.engine.head_form import head_form
from rlkit.engine.modules import Policy
from rlkit.errors import ConfigError
from rlkit.ops.head import Head

SHAPE = {
    "vocab_size": 30, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


class Odd(LlamaForCausalLM):
    """With something of its own between the body and the logits."""

    before = staticmethod(lambda hidden: hidden)
    after = staticmethod(lambda logits: logits)

    def forward(self, input_ids: Any, **more: Any) -> Any:
        found = super().forward(input_ids, **more)
        hidden = self.model(input_ids).last_hidden_state
        found.logits = self.after(self.lm_head(self.before(hidden)))
        return found


def odd(before: Any = None, after: Any = None) -> Odd:
    model = Odd(LlamaConfig(**SHAPE)).eval()
    if before is not None:
        model.before = before
    if after is not None:
        model.after = after
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1.0], ids=["small logits", "large logits"])
@pytest.mark.parametrize(
    ("config", "form"),
    [
        (LlamaConfig(**SHAPE), (1.0, None)),
        (Gemma2Config(**SHAPE, final_logit_softcapping=30.0, head_dim=16), (1.0, 30.0)),
        (Gemma2Config(**SHAPE, final_logit_softcapping=2.5, head_dim=16), (1.0, 2.5)),
        (GraniteConfig(**SHAPE, logits_scaling=6.0), (round(1 / 6, 6), None)),
        (GPTJConfig(vocab_size=30, n_embd=32, n_layer=1, n_head=2, rotary_dim=4), (1.0, None)),
    ],
)
def test_scale_and_cap_are_found_whatever_the_weights(
    config: Any, form: tuple[float, float | None], size: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(size)
    assert head_form(model.to(dtype), "here") == pytest.approx(form, abs=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        lambda: odd(before=lambda hidden: hidden / 3),
        lambda: odd(after=lambda logits: 0.7 * logits),
        lambda: odd(after=lambda logits: 5 * torch.tanh(0.2 * logits)),
        lambda: odd(before=lambda hidden: 2 * hidden, after=lambda logits: 4 * torch.tanh(logits / 4)),
        lambda: AutoModelForCausalLM.from_config(
            GPTJConfig(vocab_size=30, n_embd=32, n_layer=1, n_head=2, rotary_dim=4, initializer_range=1.0)
        ).eval(),
    ],
    ids=["states divided", "logits scaled", "scaled and capped", "both", "bias"],
)
def test_the_policy_says_what_the_model_says(model: Any) -> None:
    torch.manual_seed(0)
    made = model()
    with torch.no_grad():
        for parameter in made.get_output_embeddings().parameters():
            parameter.normal_()
    policy = Policy(made, "here")
    ids, columns = torch.randint(30, (1, 9)), torch.arange(8)
    tokens = ids[0, 1:]
    with torch.no_grad():
        found = policy(ids, torch.zeros(8, dtype=torch.long), columns, tokens, want={"logprobs"})["logprobs"]
        expected = made(ids).logits[0, :-1].log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda: odd(after=lambda logits: logits.clamp(-50, 50)),
        lambda: odd(after=lambda logits: logits + torch.arange(30) / 10),
        lambda: odd(after=lambda logits: logits - logits.mean(-1, keepdim=True) * 0.5),
        lambda: odd(before=lambda hidden: hidden.flip(-1)),
        lambda: odd(before=lambda hidden: torch.nn.functional.layer_norm(hidden + 1, (32,))),
    ],
    ids=["clamped", "shifted", "centred", "states turned", "states normed"],
)
def test_what_else_a_model_may_do_is_left_to_the_model(model: Any) -> None:
    torch.manual_seed(0)
    made = model()
    assert head_form(made, "here") is None
    policy = Policy(made, "here")
    ids, columns, rows = torch.randint(30, (1, 9)), torch.arange(8), torch.zeros(8, dtype=torch.long)
    other = torch.randn(8, 30)
    found = policy(ids, rows, columns, ids[0, 1:], want={"logprobs", "token_kl"}, reference=(other, Head(None)))
    logp = made(ids).logits[0, :-1].log_softmax(-1)
    expected = logp.gather(1, ids[0, 1:, None])[:, 0]
    kl = (logp.exp() * (logp - other.log_softmax(-1))).sum(1)
    torch.testing.assert_close(found["logprobs"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["token_kl"], kl, rtol=1e-4, atol=1e-5)
    learnt = list(made.parameters())
    ours = torch.autograd.grad((found["logprobs"] + found["token_kl"]).sum(), learnt)
    for one, theirs in zip(ours, torch.autograd.grad((expected + kl).sum(), learnt), strict=True):
        torch.testing.assert_close(one, theirs, rtol=1e-3, atol=1e-4)
    assert torch.equal(policy(ids, rows, columns, ids[0, 1:], hidden_only=True)["hidden"], made(ids).logits[0, :-1])


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model.get_output_embeddings = lambda: None  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no output head"):
        head_form(model, "here")


@pytest.mark.parametrize("packs", [True, False])
def test_a_second_model_of_the_same_is_not_tried_again(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Policy(odd(after=lambda logits: 0.7 * logits), "here")
    first.packs = packs
    monkeypatch.setattr("rlkit.engine.modules.head_form", lambda *_: pytest.fail("tried again"))
    monkeypatch.setattr("rlkit.engine.attention._states", lambda *_, **__: pytest.fail("tried again"))
    second = Policy(odd(after=lambda logits: 0.7 * logits), "here", like=first)
    assert (second.form, second.packs) == (first.form, packs)
    assert (second.lm.config._attn_implementation == "rlkit") == packs
