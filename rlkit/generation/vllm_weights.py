"""New weights into vLLM's model, in this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rlkit.errors import RlkitError
from rlkit.generation import vllm_cpu


@torch.no_grad()
def load(model: Any, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, *, whole: bool = True) -> None:
    """Load the weights, all of them if `whole`. RlkitError where some of the model's were then not sent.

    dtype: the model's.
    """
    with vllm_cpu.plain_experts(model):  # a GPU's layers have none
        new = set(model.load_weights(weights))
    new |= _made_of_others(model, dtype)
    old = {name for name, _ in model.named_parameters()} - new
    if whole and old:
        raise RlkitError(f"sync: {len(old)} weights of vLLM's model were not sent, {min(old)!r} first")


def _made_of_others(model: Any, dtype: torch.dtype) -> set[str]:
    """Make again what latent attention (DeepSeek) has computed from the old weights. Returns its names."""
    from vllm.model_executor.layers.attention.mla_attention import MLAAttention

    latent = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, MLAAttention)]
    for _, layer in latent:
        layer.process_weights_after_loading(dtype)
    return {f"{name}.{made}" for name, layer in latent for made in ("W_UV", "W_UK_T") if hasattr(layer, made)}
