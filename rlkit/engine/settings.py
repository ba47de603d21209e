"""The optimizer, its schedule, and what DeepSpeed is told."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from rlkit.config import OptimizerConfig, RunConfig

BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces at once, by its own default. It makes room for as many, however few there are."""


def learning_rate(config: OptimizerConfig, update: int, total: int) -> float:
    """Of the update with that number (from 0): linear warm-up, then the schedule, which would reach 0 at `total`."""
    if update < config.warmup_updates:
        return config.lr * (update + 1) / config.warmup_updates
    done = min(1.0, (update - config.warmup_updates) / max(1, total - config.warmup_updates))
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - done)
        case "cosine":
            return config.lr * (1 + math.cos(math.pi * done)) / 2


def adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def deepspeed_config(
    config: RunConfig, optimizer: OptimizerConfig | None, stage: int, trained: int = BUCKET
) -> dict[str, Any]:
    """`trained`: numbers that learn."""
    zero: dict[str, Any] = {"stage": stage}
    pin = torch.cuda.is_available()
    if config.engine.offload_optimizer and optimizer is not None:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
    if config.engine.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": pin}
    if config.engine.overlap_comm and optimizer is not None:
        zero["overlap_comm"] = True
    bf16 = config.model.dtype == "bfloat16"
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": bf16},
        # The optimizer is handed in; one named here would be compiled, for minutes.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
    }
    if optimizer is not None:
        # Under bfloat16 of the same bytes as DeepSpeed's own, which is of 2 bytes a number.
        zero["reduce_bucket_size"] = min(BUCKET // 2 if bf16 else BUCKET, trained)
        settings["gradient_clipping"] = optimizer.clip_norm
        if bf16:
            # Micro-batches and ranks add up in float32, else their number would show in the gradient.
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
            settings["communication_data_type"] = "fp32"
    return settings


def cut_settings(config: RunConfig) -> dict[str, Any] | None:
    """With which models are loaded under ZeRO stage 3; None: they are loaded whole."""
    return deepspeed_config(config, None, 3) if config.zero_stage == 3 else None
