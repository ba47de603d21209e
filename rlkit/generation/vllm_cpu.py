"""What vLLM's CPU build (0.32) needs to live in a training process and take new weights. GPUs need none of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it ties its threads to cores that other ranks use as well
}
"""Set where the user has not."""


@contextlib.contextmanager
def ready() -> Iterator[None]:
    """Make the engine within: its layers keep plain weights, and the process keeps its threads and memory policy."""
    import vllm._C  # noqa: F401  registers the operators
    from vllm.model_executor.layers import utils
    from vllm.v1.sample import sampler

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # For good, since it is called while sampling: compiled, it takes a C++ compiler and up to 15 s.
    sampler.batched_count_greater_than = _count_greater_or_equal
    set_num_threads = torch.set_num_threads
    with (
        mock.patch.object(utils, "dispatch_cpu_unquantized_gemm", _keep_plain_weight),
        mock.patch.object(torch.ops._C, "init_cpu_memory_env", _leave_memory_alone),
    ):
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads  # vLLM's worker makes it do nothing


def _keep_plain_weight(layer: Any, remove_weight: bool) -> None:
    """In place of `dispatch_cpu_unquantized_gemm`, which packs weights into oneDNN handles.

    Packed, they cannot be loaded into again: `load_weights` raises, and `reload_weights` leaves a tied head old
    without a word.
    """
    layer.cpu_linear = torch.nn.functional.linear


def _leave_memory_alone(nodes: list[int]) -> None:
    """In place of the operator that binds all memory of this process, the trainer's too, to one NUMA node."""


def _count_greater_or_equal(x: Tensor, values: Tensor) -> Tensor:
    """x: [n, V], values: [n, 1] -> [n], each value's rank in its row."""
    return (x >= values).sum(-1)
