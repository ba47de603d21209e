"""What a model does around its output head to get logits, found by watching it do it.

Families differ here (a scale, a soft cap) and name it differently in their configs, and a model's own code may do what
no config says. Logits at the weights as they are would not show a cap while they are small.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlkit.errors import ConfigError

_PROBES = torch.cat([-torch.logspace(4, -3, 29), torch.logspace(-3, 4, 29)])
"""What the head is made to say: past any cap, and close to 0."""


@torch.no_grad()
def head_form(lm: Any, path: str) -> tuple[float, float | None]:
    """The scale of the logits and their soft cap (None: there is none), as `Head` has them.

    ConfigError for a model without a head, and for one that does anything else to get logits.
    """
    head = lm.get_output_embeddings()
    if head is None:
        raise ConfigError(f"model.path {path!r}: {type(lm).__name__} has no output head: rlkit trains causal models")
    read: list[Tensor] = []

    def speak(layer: Any, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        read.append(inputs[0])
        said = torch.zeros(logits.shape).flatten()
        said[: len(_PROBES)] = _PROBES
        return said.view(logits.shape)

    vocabulary = head.weight.shape[0]
    tokens = torch.arange(max(4, math.ceil(len(_PROBES) / vocabulary)))[None] % vocabulary
    hook = head.register_forward_hook(speak)
    try:
        heard = lm(input_ids=tokens, use_cache=False).logits.flatten()[: len(_PROBES)].double()
    finally:
        hook.remove()
    unknown = ConfigError(
        f"model.path {path!r}: {type(lm).__name__} does more than a scale and a soft cap to get logits from its head, "
        "and rlkit, which computes log-probs itself, does not know what: this model cannot be trained"
    )
    if not read or lm.base_model is lm:
        raise unknown
    probes, largest = _PROBES.double(), float(heard[-1])
    scale = float(heard[-1] / probes[-1])
    cap = None
    if not torch.allclose(heard, scale * probes, rtol=1e-4, atol=0):
        cap, scale = largest, float(heard[len(probes) // 2] / probes[len(probes) // 2])
        if not torch.allclose(heard, cap * torch.tanh(scale * probes / cap), rtol=1e-4, atol=0):
            raise unknown
    states = lm.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    before = float((read[-1].double() * states.double()).sum() / states.double().square().sum())
    if not torch.allclose(read[-1].double(), before * states.double(), rtol=1e-2, atol=1e-3):
        raise unknown
    if abs(before - 1) < 1e-3:  # as far as bfloat16 tells
        before = 1.0
    elif getattr(head, "bias", None) is not None:
        raise unknown
    return float(f"{scale * before:.6g}"), cap  # float32 knows no more digits
