"""Sampling with transformers' models says what transformers' own `generate` would say, token for token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, Family, make
from random_batches import fresh_seed
from torch import Tensor

from rlkit import registry
from rlkit.config import ModelConfig
from rlkit.engine.attention import heed_soft_cap
from rlkit.generation.transformers import BLOCK, _first_past
from rlkit.interfaces.generation import Request, SamplingParams

QUICK = {"Qwen3", "Mistral, windowed", "Gemma 3", "Qwen3.5, hybrid", "Bloom", "Mamba"}
END = 1


class _Inverse:
    """A logits processor that draws by inverse transform, over the vocabulary as a whole, and has it chosen."""

    def __init__(self, requests: list[Request]) -> None:
        self.tokens: list[Tensor] = []
        self.logprobs: list[Tensor] = []
        raw = [np.random.Philox(key=r.seed).random_raw(r.params.max_tokens) for r in requests]
        self._uniforms = torch.from_numpy(np.stack([(each >> np.uint64(11)) * 2.0**-53 for each in raw]))
        self._temperature = requests[0].params.temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs = (scores / self._temperature).log_softmax(-1)
        cumulated = logprobs.double().exp().cumsum(-1)
        point = self._uniforms[:, len(self.tokens), None] * cumulated[:, -1:]
        token = (cumulated <= point).sum(-1, keepdim=True)
        self.tokens.append(token)
        self.logprobs.append(logprobs.gather(1, token))
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def generated(folder: Path, requests: list[Request]) -> list[tuple[list[int], list[float]]]:
    """Of all rows at once, by `generate`, each up to its end."""
    from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    heed_soft_cap(model)
    model.generation_config = GenerationConfig()
    longest, most = max(len(r.prompt_tokens) for r in requests), requests[0].params.max_tokens
    pads = [longest - len(r.prompt_tokens) for r in requests]
    inverse = _Inverse(requests)
    model.generate(
        torch.tensor([[0] * pad + list(r.prompt_tokens) for pad, r in zip(pads, requests, strict=True)]),
        attention_mask=torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads]),
        generation_config=GenerationConfig(max_new_tokens=most, do_sample=False),
        logits_processor=LogitsProcessorList([inverse]),
    )
    found = []
    columns = torch.cat(inverse.tokens, 1).tolist(), torch.cat(inverse.logprobs, 1).tolist()
    for row, logprobs in zip(*columns, strict=True):
        length = row.index(END) + 1 if END in row else most
        found.append((row[:length], logprobs[:length]))
    return found


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.name, marks=() if f.name in QUICK else pytest.mark.slow) for f in FAMILIES],
)
def test_the_tokens_are_those_of_generate(family: Family, tmp_path: Path) -> None:
    """Rows that share prompts, prompts of several lengths or of one, windows that are left behind, rows that end."""
    rng = random.Random(0)  # fixed: another order of sums may now and then tip a draw
    make(family, tmp_path)
    sampler = registry.build("samplers", "transformers", {}, ModelConfig(path=str(tmp_path), dtype="float32"), 100, 0)
    for lengths in ([2, 9, 17, 5], [6, 6, 6, 6]):
        prompts = [[rng.randrange(3, 25) for _ in range(length)] for length in lengths]
        params = SamplingParams(max_tokens=50, temperature=rng.choice([0.7, 1.0]))
        requests = [Request(prompt_tokens=prompts[i % 4], seed=rng.randrange(2**64), params=params) for i in range(24)]
        completions = dict(sampler.generate(requests))
        assert len({len(completion.tokens) for completion in completions.values()}) > 3
        for at, (tokens, logprobs) in enumerate(generated(tmp_path, requests)):
            assert completions[at].tokens == tokens
            assert completions[at].logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("vocabulary", [1, 25, BLOCK, BLOCK + 1, 20 * BLOCK - 7])
@pytest.mark.parametrize("left", [1.0, 0.02])
def test_the_token_is_where_the_whole_vocabulary_cumulated_passes_the_share(vocabulary: int, left: float) -> None:
    """`left`: the share of tokens that can be drawn at all."""
    torch.manual_seed(fresh_seed())
    logits = 3 * torch.randn(400, vocabulary)
    logits[(torch.rand_like(logits) > left) & (torch.arange(vocabulary) != vocabulary // 2)] = -torch.inf
    logprobs = logits.log_softmax(-1)
    share = torch.rand(400, 1, dtype=torch.float64)
    share[:2, 0] = torch.tensor([0.0, 1 - 2.0**-53])
    found = _first_past(logprobs, share)
    cumulated = logprobs.double().exp().cumsum(-1)
    assert torch.equal(found[2:], (cumulated <= share * cumulated[:, -1:]).sum(-1, keepdim=True)[2:])
    assert logprobs.gather(1, found).isfinite().all(), "a token was drawn that has no probability"
    possible = logprobs.isfinite()
    assert found[0, 0] == possible[0].nonzero()[0, 0]
    assert found[1, 0] == possible[1].nonzero()[-1, 0]
