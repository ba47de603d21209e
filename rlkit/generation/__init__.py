"""Samplers: they turn requests into completions, and take new weights after every update.

A sampler's factory gets its options, the model's settings, the context (longest prompt + max_tokens) and the
run's seed: `def mine(config: MineConfig, model: ModelConfig, context: int, seed: int) -> Sampler`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlkit.config import ModelConfig, PluginRef, resolve_ref
from rlkit.errors import RlkitError

if TYPE_CHECKING:
    from rlkit.interfaces.generation import Request

VLLM_PAYS_FROM = 10_000_000
"""Parameters from which vLLM is quicker than generate on a CPU."""


def choose(model_parameters: int | None) -> tuple[str, str]:
    """The sampler that `sampler: auto` stands for, and one sentence that says why. Imports no vLLM.

    `model_parameters` is None where the size is not known: then the model is taken for a large one.
    """
    import torch

    if importlib.util.find_spec("vllm") is None:
        return "transformers", "vLLM is not installed"
    if torch.cuda.is_available():
        return "vllm", "vLLM is installed and there is a GPU"
    if model_parameters is None:
        return "vllm", "vLLM is installed"
    size = f"{model_parameters / 1e6:.3g} M parameters"
    if model_parameters >= VLLM_PAYS_FROM:
        return "vllm", f"vLLM is installed and pays for a model of {size}"
    return "transformers", f"a model of {size} is too small for vLLM to pay"


def resolve_sampler(ref: PluginRef, model: ModelConfig) -> tuple[PluginRef, str]:
    """The sampler with all its options, whatever `auto` stands for here, and one sentence that says why it."""
    from rlkit.engine.models import model_shape

    if ref.kind != "auto":
        return resolve_ref("samplers", ref, "sampler"), "named in the config"
    shape = model_shape(model)
    kind, why = choose(shape[0] if shape else None)
    return resolve_ref("samplers", PluginRef(kind=kind), "sampler"), why


def end_tokens(path: str, trust_remote_code: bool = False) -> tuple[int, ...]:
    """The model's own end tokens: its generation config's, or, where it has none, its config's.

    path: a folder, or a hub id.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(path)
    except OSError:  # it ships no generation_config.json
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        generation = GenerationConfig.from_model_config(config)
    ends = generation.eos_token_id
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)


def check(requests: Sequence[Request], context: int) -> None:
    """RlkitError for a request that cannot be served within `context` tokens."""
    for i, request in enumerate(requests):
        prompt, limit = len(request.prompt_tokens), request.params.max_tokens
        if prompt < 1 or limit < 1:
            raise RlkitError(f"request {i}: {prompt} prompt tokens and max_tokens {limit}; each must be at least 1")
        if prompt + limit > context:
            raise RlkitError(
                f"request {i}: a prompt of {prompt} tokens and max_tokens {limit} exceed the sampler's context of "
                f"{context}. Lower max_tokens or drop long prompts"
            )
