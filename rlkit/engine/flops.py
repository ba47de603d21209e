"""Model FLOPs utilisation: what share of the GPU's peak the passes over tokens reach.

A pass over n tokens with a model of P parameters takes 2 P n operations forward and 4 P n backward, half of these for
the gradients of weights. What attention itself computes, and what gradient checkpointing computes again, is left out,
as is usual.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch

from rlkit.config import ModelConfig

Kind = Literal["measure", "update"]

PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
    "L40S": 362e12,
}
"""GPU, as a part of its name -> operations a second in bfloat16, dense, by its maker's data sheet. The first that fits
counts."""


def peak_of(gpu: str, dtype: str) -> float | None:
    """Of a GPU with that name; None: it is not known, or not in that type."""
    fits = (peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", gpu))
    return next(fits, None) if dtype == "bfloat16" else None


def peak(model: ModelConfig) -> float | None:
    """Of this rank's GPU, for the model; None where it is not known."""
    return peak_of(torch.cuda.get_device_name(), model.dtype) if torch.cuda.is_available() else None


def flops(parameters: Mapping[str, list[int]], kind: Kind, tokens: int) -> float:
    """parameters: name -> shape, each once. With LoRA adapters the others' weights have no gradients.

    Of a mixture of experts, of which a token meets a few, this is too many: see `has_experts`.
    """
    adapted = any(".lora_" in name for name in parameters)
    each = 2 if kind == "measure" else 4 if adapted else 6
    return each * float(sum(map(math.prod, parameters.values()))) * tokens


def has_experts(parameters: Mapping[str, list[int]]) -> bool:
    return any(".experts." in name for name in parameters)
