"""Weights over NCCL, between GPUs: vLLM's own route, packed. The trainer's side needs vLLM too."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from rlkit import distribution
from rlkit.engine.adapters import merged
from rlkit.generation.weights import Receiver
from rlkit.generation.weights.gloo import address_towards, place


class NcclRoute:
    """From the trainer's rank 0, on its GPU, to the workers of one server, on GPUs of their own."""

    def __init__(self, server: Receiver, workers: int) -> None:
        distribution.check_extra("sampler vllm_server, for servers on GPUs", "vllm")
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        own = address_towards(*place(server.url))
        with socket.socket() as probe:
            probe.bind((own, 0))
            port = probe.getsockname()[1]
        self._device = torch.device("cuda", 0)  # rank 0 has the first of its node
        self._source = _source(self._device)
        info = NCCLTrainerInitInfo(rank=0, master_address=own, master_port=port, world_size=1 + workers)
        with torch.cuda.device(self._device):
            self._engine: Any = WeightTransferTrainerFactory.trainer_init(info, client=server, source=self._source)

    def send(self, weights: Mapping[str, Tensor], changed: Set[str]) -> None:
        # What vLLM's own engine loads are weights: adapters are merged here.
        self._source.weights = dict(merged(weights, changed))
        with torch.cuda.device(self._device):
            self._engine.send_weights()

    def close(self) -> None:
        if self._engine.model_update_group is not None:
            self._engine.model_update_group.destroy()


def _source(device: torch.device) -> Any:
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    class OfHost(WeightSource):  # type: ignore[misc]
        """Weights on the host, each brought to the GPU when its turn comes."""

        weights: Mapping[str, Tensor]

        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights.items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            for name, tensor in self.weights.items():
                yield name, tensor.to(device)

    return OfHost()
