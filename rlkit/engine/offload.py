"""An optimizer's state in host memory while somebody else has the GPU: its means, float32 weights and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def leave(engine: Any, stage: int) -> None:
    """Have a DeepSpeed engine of ZeRO stage 2 or 3 give the device's memory back but for the weights."""
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

    if stage == 3:
        # For another optimizer than its own, which takes a compiler, DeepSpeed moves the gradients alone.
        _move(engine, _to_host)
        engine.offload_states(include=[State.lp_grads, State.contiguous_grad_buffer])
    else:
        engine.offload_states(include=[State.hp_params, State.optim_states])


def come_back(engine: Any, stage: int, device: torch.device) -> None:
    """Undo `leave`."""
    engine.reload_states()
    if stage == 3:
        _move(engine, lambda tensor: tensor.to(device))


def _move(engine: Any, put: Callable[[Tensor], Tensor]) -> None:
    zero = engine.optimizer
    for weights in zero.fp32_partitioned_groups_flat:
        weights.data = put(weights.data)
    for state in zero.optimizer.state.values():
        state.update({name: put(value) for name, value in state.items() if torch.is_tensor(value)})


def _to_host(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor)
