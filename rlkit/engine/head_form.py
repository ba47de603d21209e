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
def head_form(lm: Any, path: str) -> tuple[float, float | None] | None:
    """The scale of the logits and their soft cap (None: there is none), as `Head` has them.

    None for a model that does anything else to get its logits. ConfigError for one without a head.
    """
    head = lm.get_output_embeddings()
    if head is None:
        raise ConfigError(f"model.path {path!r}: {type(lm).__name__} has no output head: rlkit trains causal models")
    read: list[Tensor] = []
    given: list[Tensor] = []

    def watch(body: Any, inputs: tuple[Any, ...], found: Any) -> None:
        given.append(found.last_hidden_state)

    def speak(layer: Any, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        read.append(inputs[0])
        said = torch.zeros(logits.shape).flatten()
        said[: len(_PROBES)] = _PROBES
        return said.view(logits.shape).to(logits.device)

    vocabulary = getattr(head.weight, "ds_shape", head.weight.shape)[0]
    tokens = torch.arange(max(4, math.ceil(len(_PROBES) / vocabulary)))[None] % vocabulary
    if lm.base_model is lm:
        return None
    hooks = [head.register_forward_hook(speak), lm.base_model.register_forward_hook(watch)]
    try:
        heard = lm(input_ids=tokens.to(lm.device), use_cache=False).logits.flatten()[: len(_PROBES)].double().cpu()
    finally:
        for hook in hooks:
            hook.remove()
    if not read or not given:
        return None
    form = _after(heard)
    before = _before(given[-1].double(), read[-1].double())
    if form is None or before is None or (before != 1.0 and getattr(head, "bias", None) is not None):
        return None
    scale, cap = form
    return float(f"{scale * before:.6g}"), cap  # float32 knows no more digits


def _after(heard: Tensor) -> tuple[float, float | None] | None:
    """Scale and cap that make of the probes what was heard."""
    probes, small = _PROBES.double(), len(_PROBES) // 2
    scale = float(heard[-1] / probes[-1])
    if torch.allclose(heard, scale * probes, rtol=1e-4, atol=0):
        return scale, None
    cap, scale = float(heard[-1]), float(heard[small] / probes[small])
    capped = cap > 0 and torch.allclose(heard, cap * torch.tanh(scale * probes / cap), rtol=1e-4, atol=0)
    return (scale, cap) if capped else None


def _before(states: Tensor, read: Tensor) -> float | None:
    """The factor between the body's states and those that the head read."""
    if states.shape != read.shape:
        return None
    factor = float((read * states).sum() / states.square().sum())
    if not torch.allclose(read, factor * states, rtol=1e-2, atol=1e-3):
        return None
    return 1.0 if abs(factor - 1) < 1e-3 else factor  # as far as bfloat16 tells
