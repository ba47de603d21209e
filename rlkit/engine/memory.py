"""Who needs how much memory: the plan and the sweep ask here. Activations are not in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rlkit.config import RunConfig
from rlkit.engine.models import model_shape
from rlkit.ops.head import peak_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes on each rank."""

    policy: float
    """Weights, gradients, the optimizer's state."""
    reference: float
    critic: float
    host: float
    """In host memory: a moving reference's average, where it is kept there."""
    head: float
    """The head's logits and what is made of them, as many as are in memory at once."""

    @property
    def engines(self) -> float:
        """What stays for the whole run, on the device."""
        return self.policy + self.reference + self.critic


def estimate(config: RunConfig, ranks: int, *, longest: int, needs_reference: bool, has_critic: bool) -> Memory | None:
    """Of a resolved config whose `longest` row has so many tokens, prompt and response; None where the model's size is
    not known here. LoRA's adapters count as nothing."""
    shape = model_shape(config.model)
    if shape is None:
        return None
    parameters, vocabulary, _ = shape
    lora = config.model.lora is not None
    stage, width = config.engine.zero_stage, _width(config)
    weights = parameters * width / (ranks if stage == 3 else 1)
    gradients = parameters * width / (ranks if stage >= 2 else 1)
    optimizer = parameters * _optimizer_width(config) / (ranks if stage >= 1 else 1)
    learning = weights + (0 if lora else gradients + optimizer)
    reference = host = 0.0
    if needs_reference and not lora:
        average = _average_width(config) * parameters / (ranks if stage == 3 else 1)
        on_host = config.reference is not None and getattr(config.reference, "keep_on", "device") == "host"
        reference, host = weights + (0 if on_host else average), average if on_host else 0.0
    return Memory(
        policy=learning,
        reference=reference,
        critic=learning if has_critic else 0.0,
        host=host,
        head=peak_bytes(_largest_microbatch(config, ranks, longest), vocabulary, on_gpu=torch.cuda.is_available()),
    )


def states_bytes(config: RunConfig, ranks: int, width: int) -> int:
    """Bytes on a rank of a rollout's hidden states, one for each token of the responses, as long as these may be: the
    rows are dealt out evenly."""
    rows = math.ceil(config.batch.prompts_per_step * config.batch.samples_per_prompt / ranks)
    return rows * config.sampling.max_tokens * width * _width(config)


def _largest_microbatch(config: RunConfig, ranks: int, longest: int) -> int:
    """Padded tokens: what the budget allows (a row that is longer goes alone), or all rows of a rank."""
    rows = math.ceil(config.batch.prompts_per_step * config.batch.samples_per_prompt / ranks)
    return min(max(config.batch.tokens_per_microbatch, longest), rows * longest)


def checkpoints_kept(config: RunConfig) -> int:
    """Checkpoints that a finished run keeps."""
    every = config.checkpoint_every
    return min(config.checkpoint.keep, math.ceil(config.steps / every)) if every else 1


def checkpoint_bytes(config: RunConfig, *, needs_reference: bool, has_critic: bool) -> float:
    """Bytes on disk of one checkpoint; 0 where the model's size is not known here.

    Of policy and critic the weights, for training and for `from_pretrained`, and AdamW's state; of a moving reference
    its weights."""
    shape = model_shape(config.model)
    if shape is None:
        return 0.0
    optimizer = _optimizer_width(config) if config.model.lora is None else 0
    each = (2 * _width(config) + optimizer) * (1 + has_critic)
    if needs_reference and config.reference is not None and config.reference.kind in ("average", "copy"):
        each += _average_width(config) or _width(config)
    return shape[0] * each


def _width(config: RunConfig) -> int:
    """Bytes of a weight."""
    return 4 if config.model.dtype == "float32" else 2


def _optimizer_width(config: RunConfig) -> int:
    """Bytes of AdamW's state for a weight: two means in float32, and under bfloat16 a float32 copy of the weight."""
    return 8 if config.model.dtype == "float32" else 12


def _average_width(config: RunConfig) -> int:
    """Bytes for a weight of what a moving average keeps beside the reference's weights (see `Follower`)."""
    reference = config.reference
    if reference is None or reference.kind != "average":
        return 0
    return 0 if config.model.dtype == "float32" and reference.by == "rollout" and reference.keep_on == "device" else 4
