"""Weights over gloo, between CPUs: the trainer and one server's workers make a group, and the trainer broadcasts.

The shape is that of vLLM's NCCL route: a handshake, then for each sync the names, dtypes and shapes ahead, and the
weights packed into buffers, which both sides cut alike. A group for each server: one that dies takes no other with it.
"""

from __future__ import annotations

import datetime
import math
import socket
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroupGloo, TCPStore

from rlkit.generation.weights import Receiver

BACKEND = "rlkit_gloo"
"""Its name among vLLM's backends of weight transfer."""
BUFFER = 2**26
"""Bytes of weights that travel at once, at least."""
TIMEOUT = datetime.timedelta(minutes=5)
"""For one buffer, and for the handshake."""
CALL = datetime.timedelta(seconds=10)
"""Until a store answers: it listens before anybody is asked to call it."""

_ALIGNED = 16
"""Bytes: where in a buffer a weight may begin."""


class GlooRoute:
    """From the trainer to the workers of one server."""

    def __init__(self, server: Receiver, workers: int) -> None:
        self._server = server
        own = address_towards(*place(server.url))
        store = listen(own)
        with ThreadPoolExecutor(1) as beside:
            # The workers answer only when they have met the trainer.
            joined = beside.submit(
                server.init_weight_transfer_engine, {"address": own, "port": store.port, "size": 1 + workers}
            )
            self._group = join(store, 0, 1 + workers, own)
            joined.result()

    def send(self, weights: Mapping[str, Tensor], changed: Set[str]) -> None:
        news = {name: tensor for name, tensor in weights.items() if name in changed}
        self._server.start_weight_update()
        ahead = {
            "names": list(news),
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in news.values()],
            "shapes": [list(tensor.shape) for tensor in news.values()],
            "whole": len(news) == len(weights),
        }
        with ThreadPoolExecutor(1) as beside:
            taken = beside.submit(self._server.update_weights, ahead)
            send(self._group, news.values())
            taken.result()
        self._server.finish_weight_update()

    def close(self) -> None:
        self._group = None


def listen(address: str = "127.0.0.1") -> Any:
    """A store on a free port of this machine, by which a group finds itself; `port` is its port.

    It has no key: so it listens on this one address of the machine, by which the others reach it.
    """
    taken = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    port = taken.getsockname()[1]
    return TCPStore(
        address, port, is_master=True, timeout=TIMEOUT, wait_for_workers=False, master_listen_fd=taken.detach()
    )


def join(store: Any, rank: int, size: int, address: str) -> Any:
    """The group of the trainer, rank 0, and of a server's workers. Blocks until all are there.

    address: of this machine, as the others reach it.
    """
    options: Any = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = TIMEOUT
    options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    return ProcessGroupGloo(store, rank, size, options)


def call(address: str, port: int) -> Any:
    """The store that another machine listens with. DistNetworkError where it is gone, with the process that had it."""
    store = TCPStore(address, port, is_master=False, timeout=CALL, wait_for_workers=False)
    store.set_timeout(TIMEOUT)
    return store


def place(url: str) -> tuple[str, int]:
    """Host and port of a url."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def address_towards(host: str, port: int) -> str:
    """This machine's address, as another one sees it. OSError where that cannot be reached."""
    with socket.create_connection((host, port), timeout=10) as connection:
        return str(connection.getsockname()[0])


def send(group: Any, weights: Iterable[Tensor]) -> None:
    """Broadcast CPU tensors, in order."""
    tensors = [tensor.detach().contiguous() for tensor in weights]
    sizes = [tensor.numel() * tensor.itemsize for tensor in tensors]
    for part in _parts(sizes):
        buffer = torch.zeros(sum(_aligned(sizes[i]) for i in part), dtype=torch.uint8)
        at = 0
        for i in part:
            buffer[at : at + sizes[i]] = tensors[i].view(-1).view(torch.uint8)
            at += _aligned(sizes[i])
        group.broadcast(buffer, root=0).wait()


def receive(
    group: Any, names: Sequence[str], dtypes: Sequence[torch.dtype], shapes: Sequence[Sequence[int]]
) -> Generator[tuple[str, Tensor]]:
    """What `send` sends, with its names. A tensor lives until the next is asked for."""
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
    for part in _parts(sizes):
        buffer = torch.empty(sum(_aligned(sizes[i]) for i in part), dtype=torch.uint8)
        group.broadcast(buffer, root=0).wait()
        at = 0
        for i in part:
            yield names[i], buffer[at : at + sizes[i]].view(dtypes[i]).view(torch.Size(shapes[i]))
            at += _aligned(sizes[i])


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _parts(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the weights that go together, in order."""
    part: list[int] = []
    held = 0
    for i, size in enumerate(sizes):
        part.append(i)
        held += size
        if held >= BUFFER:
            yield part
            part, held = [], 0
    if part:
        yield part
