"""Rows that stand behind each other without padding say and learn what each says and learns alone."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from families import FAMILIES
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoModelForCausalLM, LlamaModel

from rlkit.engine import attention
from rlkit.engine.attention import packed_attention, use_packing
from rlkit.engine.modules import Critic, Policy
from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.names import Stat
from rlkit.interfaces.rewards import SampleKey
from rlkit.ops.packing import pack, place_rows

PACKED = [
    "Llama", "Mistral, windowed", "Qwen2, tied", "Qwen3", "Qwen3-MoE", "Mixtral", "Gemma", "Gemma 2", "Gemma 3", "Phi",
    "Phi-3", "GPT-2", "GPT-NeoX (Pythia)", "GPT-OSS", "OPT", "OLMo 2", "StarCoder2", "SmolLM3", "GLM-4", "DeepSeek-V3",
    "Granite", "Cohere",
]  # fmt: skip
PADDED = ["Qwen3.5, hybrid", "GPT-J", "Bloom", "Falcon", "StableLM", "CodeGen", "Mamba"]
STATS: frozenset[Stat] = frozenset({"logprobs", "entropy"})


def model(name: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    family = next(family for family in FAMILIES if family.name == name)
    made = AutoModelForCausalLM.from_config(family.config(**family.settings, **more))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return made.to(dtype).eval()


def rollout() -> Rollout:
    """Prompts of 1 to 9 tokens, some of them shared, responses of 1 to 20, some longer than a window; one masked in its
    middle."""
    count, longest = 7, 20
    length = torch.tensor([20, 1, 13, 5, 5, 17, 2])
    mask = torch.arange(longest)[None] < length[:, None]
    mask[2, 4:7] = False
    prompts = [torch.randint(3, 25, (int(n),)) for n in torch.randint(1, 10, (count,))]
    prompts[1] = prompts[2] = prompts[3]
    prompts[6] = prompts[5]
    return Rollout(
        keys=[SampleKey(f"p{i}", 0, 0, 0) for i in range(count)],
        prompt_tokens=prompts,
        tokens=torch.randint(3, 25, (count, longest)),
        length=length,
        mask=mask,
        valid=torch.ones(count, dtype=torch.bool),
        group=torch.zeros(count, dtype=torch.long),
        reward=torch.zeros(count),
        clean_reward=torch.zeros(count),
        sampler_logprobs=torch.zeros(count, longest),
        version=torch.zeros(count, dtype=torch.long),
        truncated=torch.zeros(count, dtype=torch.bool),
    )


def said_and_learnt(module: Any, batch: Rollout, packed: bool) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    found = module(**place_rows(batch, torch.device("cpu"), packed), want=STATS)
    values = torch.stack(list(found.values()))
    (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
    return values.detach(), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("critic", [False, True], ids=["policy", "critic"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_is_padded_and_alone(name: str, critic: bool) -> None:
    made = model(name)
    module = Critic(made.base_model, "here") if critic else Policy(made, "here")
    if critic:
        torch.nn.init.normal_(module.head.weight)
    assert module.packs
    batch = rollout()
    packed, gradients = said_and_learnt(module, batch, True)
    padded, others = said_and_learnt(module, batch, False)
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == others.keys()
    whole = torch.stack([gradient.norm() for gradient in others.values()]).norm()
    for weight, gradient in gradients.items():
        # Some weights, as the biases of keys, have no gradient but rounding.
        assert (gradient - others[weight]).norm() <= 1e-3 * others[weight].norm() + 1e-6 * whole, weight
    with torch.no_grad():
        one_by_one = [
            torch.stack(list(module(**place_rows(batch.rows([row]), torch.device("cpu"), True), want=STATS).values()))
            for row in range(len(batch.prompt_tokens))
        ]
    torch.testing.assert_close(packed, torch.cat(one_by_one, 1), rtol=1e-4, atol=1e-4)


def test_a_prompt_is_there_once_for_rows_behind_each_other() -> None:
    batch = rollout()
    packed = place_rows(batch, torch.device("cpu"), True)
    sizes = [len(prompt) for prompt in batch.prompt_tokens]
    assert packed["input_ids"].shape[1] == sum(sizes) - 2 * sizes[1] - sizes[5] + int(batch.length.sum())
    whole = [
        torch.cat([prompt, row[:length]])
        for prompt, row, length in zip(batch.prompt_tokens, batch.tokens, batch.length.tolist(), strict=True)
    ]
    assert torch.equal(packed["input_ids"][0, packed["spread"]], torch.cat(whole))
    assert torch.equal(packed["spread"][packed["kept"]], torch.arange(packed["input_ids"].shape[1]))
    apart = place_rows(batch.rows([1, 0, 2, 4, 3, 5]), torch.device("cpu"), True)
    assert "spread" not in apart
    assert apart["input_ids"].shape[1] == int(apart["cu_seq_lens_q"][-1])


@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_placed_on_another_device(packed: bool) -> None:
    """One that holds nothing, and would not compute with what is on the CPU."""
    placed = place_rows(rollout(), torch.device("meta"), packed)
    here = place_rows(rollout(), torch.device("cpu"), packed)
    assert placed.keys() == here.keys()
    on_host = {name for name, part in placed.items() if part.device.type == "cpu"}
    assert on_host == ({"cu_seq_lens_q"} if packed else set())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PADDED)
def test_a_model_that_does_not_keep_sequences_apart_is_padded(name: str, dtype: torch.dtype) -> None:
    made = model(name, dtype)
    before = made.config._attn_implementation
    assert not use_packing(made.base_model)
    assert made.config._attn_implementation == before


def test_a_model_that_lets_a_little_through_is_padded() -> None:
    """So little that its states are near enough those of a sequence alone."""

    class Leaking(LlamaModel):
        def forward(self, *args: Any, **more: Any) -> Any:
            found = super().forward(*args, **more)
            found.last_hidden_state = found.last_hidden_state + 1e-5 * found.last_hidden_state.roll(1, 1)
            return found

    family = next(family for family in FAMILIES if family.name == "Llama")
    assert use_packing(LlamaModel(family.config(**family.settings)).eval())
    assert not use_packing(Leaking(family.config(**family.settings)).eval())


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_attention_is_its_definition(softcap: float | None, window: int | None, sinks: bool, key_heads: int) -> None:
    lengths, heads, width = [5, 1, 3, 3, 3, 5], 4, 8
    query = torch.randn(1, heads, sum(lengths), width).double()
    key, value = torch.randn(2, 1, key_heads, sum(lengths), width).double().unbind(0)
    sink = torch.randn(heads).double() if sinks else None
    found, _ = packed_attention(
        None, query, key, value, None, scaling=0.3, softcap=softcap, sliding_window=window, s_aux=sink,
        cu_seq_lens_q=torch.tensor([0, *lengths]).cumsum(0),
    )  # fmt: skip
    start = 0
    for length in lengths:
        for head in range(heads):
            theirs = head // (heads // key_heads)
            for at in range(length):
                seen = range(0 if window is None else max(0, at - window + 1), at + 1)
                scores = [0.3 * float(query[0, head, start + at] @ key[0, theirs, start + i]) for i in seen]
                if softcap is not None:
                    scores = [softcap * float(torch.tanh(torch.tensor(s / softcap).double())) for s in scores]
                if sink is not None:
                    scores.append(float(sink[head]))
                weights = torch.tensor(scores).double().softmax(0)
                expected = sum(w * value[0, theirs, start + i] for w, i in zip(weights, seen, strict=False))
                torch.testing.assert_close(found[0, start + at, head], expected, rtol=1e-5, atol=1e-5)
        start += length


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("key_heads", [1, 4])
def test_flash_attention_is_asked_for_the_same(window: int | None, key_heads: int, monkeypatch: Any) -> None:
    """Without a GPU: by its documented arguments. tests/gpu asks the kernel itself."""

    def documented(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
        *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool, **_: Any,
    ) -> Tensor:  # fmt: skip
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert max_q == max_k == int(cu_seq_q.diff().max())
        assert window_size[1] == 0
        assert enable_gqa or query.shape[1] == key.shape[1]
        out = []
        for start, end in itertools.pairwise(cu_seq_q.tolist()):
            q, k, v = (whole[start:end].transpose(0, 1) for whole in (query, key, value))
            back = torch.arange(end - start)[:, None] - torch.arange(end - start)
            mask = (back >= 0) & ((back <= window_size[0]) if window_size[0] >= 0 else True)
            k, v = (part.repeat_interleave(len(q) // len(part), 0) for part in (k, v))
            scores = (q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)).masked_fill(
                ~mask, -torch.inf
            )
            out.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(out)

    sizes = [5, 5, 9]
    placed = pack([torch.arange(3), torch.arange(3), torch.arange(4)], [torch.arange(size) for size in (2, 2, 5)])
    row = placed["input_ids"].shape[1]
    assert row == sum(sizes) - 3
    query, key, value = torch.randn(1, 4, row, 8), *torch.randn(2, 1, key_heads, row, 8)
    given = {name: placed[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "spread", "kept")}
    slow, _ = packed_attention(None, query, key, value, None, scaling=0.3, sliding_window=window, **given)
    monkeypatch.setattr(attention, "_flash", lambda *_: True)
    monkeypatch.setattr(attention, "varlen_attn", mock.create_autospec(varlen_attn, side_effect=documented))
    fast, _ = packed_attention(None, query, key, value, None, scaling=0.3, sliding_window=window, **given)
    torch.testing.assert_close(fast, slow)
