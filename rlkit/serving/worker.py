"""What vLLM's workers load of ours, before they make the model: on CPUs layers that can take new weights, and the
engine that receives weights and adapters over gloo. Whole weights come to GPUs by vLLM's own NCCL engine instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.platforms import current_platform

from rlkit.engine.adapters import DOWN, SCALE, UP, merged
from rlkit.generation import vllm_cpu, vllm_weights
from rlkit.generation.weights import gloo


class Extension:
    """For vLLM's `--worker-extension-cls`, which makes the workers import this file. It adds nothing to them."""


@dataclass
class GlooInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Where the trainer is, and how large the group of it and of this server's workers will be."""

    address: str
    port: int
    size: int


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """What is about to be sent, in order; dtypes by their names in torch."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    whole: bool
    """These are all weights."""


class GlooWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]
    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    supports_draft_weight_update = False
    _group: Any = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        self._kept: dict[str, Tensor] = {}
        """Adapters, and the weights that they belong to: of these the model has the sum."""
        if current_platform.is_cpu():
            vllm_cpu.forget_shared_memory()
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        own = gloo.address_towards(init_info.address, init_info.port)
        self._group = gloo.join(gloo.call(init_info.address, init_info.port), rank, init_info.size, own)

    def start_weight_update(self) -> None:
        """Nothing: weights are loaded into those that are there."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        dtypes = [getattr(torch, name) for name in update_info.dtypes]
        weights = gloo.receive(self._group, update_info.names, dtypes, update_info.shapes)
        try:
            merged = self._merged(weights, set(update_info.names))
            vllm_weights.load(self.model, merged, self.model_config.dtype, whole=update_info.whole)
        except BaseException:
            # Else the trainer would wait for somebody to take the rest.
            weights.close()
            self._group = None
            raise

    def _merged(self, weights: Iterable[tuple[str, Tensor]], come: set[str]) -> Iterator[tuple[str, Tensor]]:
        """What the model loads, of weights and adapters that come."""
        for name, tensor in weights:
            if name.endswith((DOWN, UP, SCALE)) or name + DOWN in come:
                self._kept[name] = tensor.clone()
            else:
                yield name, tensor
        yield from merged(self._kept, come)

    def finish_weight_update(self) -> None:
        """Nothing, as at the start."""

    def shutdown(self) -> None:
        self._group = None


_LASTING = contextlib.ExitStack()
if current_platform.is_cpu():
    _LASTING.enter_context(vllm_cpu.ready())  # for as long as the worker lives: it makes one model
WeightTransferEngineFactory.register_engine(gloo.BACKEND, GlooWeightTransferEngine)
