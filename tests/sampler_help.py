"""What the samplers' tests share: small random models, and the plain forward pass that samplers are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams

VOCABULARY = 40
END, OTHER_END = 1, 2


def random_model(folder: Path, tied: bool, seed: int) -> Any:
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        eos_token_id=END,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(
        eos_token_id=[END, OTHER_END], do_sample=True, temperature=0.3, top_k=3, repetition_penalty=1.7
    )
    model.save_pretrained(folder)
    return model


def ask(sampler: Sampler, prompts: list[list[int]], seeds: list[int], **params: Any) -> list[Completion]:
    wanted = SamplingParams(**{"max_tokens": 24, **params})
    requests = [
        Request(prompt_tokens=prompt, seed=seed, params=wanted) for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    pairs = list(sampler.generate(requests))
    assert sorted(index for index, _ in pairs) == list(range(len(requests)))
    return [completion for _, completion in sorted(pairs, key=lambda pair: pair[0])]


@torch.no_grad()
def forward(model: Any, prompt: list[int], tokens: list[int]) -> Tensor:
    """[tokens, V] logits of a plain forward pass over one unpadded sequence."""
    return model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()


def largest_gap(model: Any, prompts: list[list[int]], completions: list[Completion], temperature: float) -> float:
    largest = 0.0
    for prompt, completion in zip(prompts, completions, strict=True):
        assert len(completion.tokens) == len(completion.logprobs)
        logprobs = (forward(model, prompt, completion.tokens) / temperature).log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        largest = max(largest, float((expected - torch.tensor(completion.logprobs)).abs().max()))
    return largest
