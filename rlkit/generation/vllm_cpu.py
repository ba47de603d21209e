"""What vLLM's CPU build (0.32) needs to live in a training process and take new weights. GPUs need none of it."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

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
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.v1.sample import sampler

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # For good, since it is called while sampling: compiled, it takes a C++ compiler and up to 15 s.
    sampler.batched_count_greater_than = _count_greater_or_equal
    pack = CPUUnquantizedExperts.process_weights_after_loading
    set_num_threads = torch.set_num_threads
    with (
        mock.patch.object(utils, "dispatch_cpu_unquantized_gemm", _keep_plain_weight),
        mock.patch.object(CPUUnquantizedExperts, "process_weights_after_loading", _keeping_plain(pack)),
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


def _keeping_plain(pack: Any) -> Any:
    """In place of the method `pack`, which packs a layer's experts for the kernel: loaded into again, they would be
    nonsense. This one packs them as well, and keeps them for `plain_experts` as they were."""

    def packed(experts: Any, layer: Any) -> None:
        layer.rlkit_plain = {n: p for n, p in layer.named_parameters() if n in ("w13_weight", "w2_weight")}
        layer.rlkit_pack = functools.partial(pack, experts, layer)
        pack(experts, layer)

    return packed


@contextlib.contextmanager
def plain_experts(model: nn.Module) -> Iterator[None]:
    """Load weights within: layers of experts are as they were before they were packed, and are packed at the end."""
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "rlkit_plain")]
    for layer in layers:
        for name, parameter in layer.rlkit_plain.items():
            setattr(layer, name, parameter)
    yield
    for layer in layers:
        layer.rlkit_pack()


def _leave_memory_alone(nodes: list[int]) -> None:
    """In place of the operator that binds all memory of this process, the trainer's too, to one NUMA node."""


def _count_greater_or_equal(x: Tensor, values: Tensor) -> Tensor:
    """x: [n, V], values: [n, 1] -> [n], each value's rank in its row."""
    return (x >= values).sum(-1)


def forget_shared_memory() -> None:
    """Take away the names of the memory that ranks of one model share, which all of them have joined by now.

    vLLM takes the same names each time, and does away with them when a process is torn down in order: what was killed,
    or left without that, would be in the next run's way.
    """
    from vllm.distributed.parallel_state import get_tp_group

    shared = getattr(get_tp_group().device_communicator, "dist_module", None)
    if (group := getattr(shared, "group_name", None)) is not None:
        name = glob.escape(group.rpartition("/")[2])
        for file in Path("/dev/shm").glob(f"{name}_*"):
            file.unlink(missing_ok=True)
