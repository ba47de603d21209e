"""The process group: set up once per process, with or without a launcher; and light data across ranks."""

from __future__ import annotations

import atexit
import datetime
import hashlib
import logging
import os
import resource
import sys
import threading
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

TIMEOUT = datetime.timedelta(hours=1)
"""How long a rank waits for the others: one may be sampling long responses while another is done."""


def init() -> None:
    """Join the process group; calling it again is harmless.

    With RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in the environment (torchrun, DeepSpeed's launcher
    and `rlkit run --nproc` set them) the ranks find each other; without them this process is the only one. NCCL
    where there is a GPU, else gloo.
    """
    if dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    # DeepSpeed's engine reads it, with one process too.
    os.environ.setdefault("LOCAL_RANK", "0")
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if cuda else "gloo"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)  # type: ignore[attr-defined]

    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not cuda:
        # Else DeepSpeed tries which of its operators a C compiler could make, and makes one, 45 s on a fresh machine: a
        # shared-memory all-reduce that only inference uses.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    # Not before: DeepSpeed remembers the group for as long as the process lives.
    atexit.register(shutdown)


def shutdown() -> None:
    """Leave the process group. Close vLLM's engine first: it holds groups of its own."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process once Python has ended what it ends, without the teardown of C++ that would come then: threads of
    gloo's that still run abort it now and then (SIGABRT, "terminate called without an active exception"), and a run
    that is whole would count as failed."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def main_rank() -> bool:
    """True on the one rank that writes files and speaks to the user."""
    return rank() == 0


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def gather_objects(item: T) -> list[T]:
    """Every rank's item, in rank order, on every rank. For light data: it is pickled."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def first_to_say(text: str) -> bool:
    """True on the first rank that asks it of this text: what several ranks find is for one of them to say."""
    if world_size() == 1:
        return True
    key = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()
    try:
        return int(dist.distributed_c10d._get_default_store().add(f"rlkit said {key}", 1)) == 1
    except (RuntimeError, ValueError):  # rank 0, which keeps the store, has ended, and has said why
        return False


def any_rank(flag: bool) -> bool:
    """True on every rank if it is on one."""
    return bool(sum_ranks(torch.tensor(float(flag))) > 0)


def sum_ranks(tensor: Tensor) -> Tensor:
    """The sum over ranks, on every rank, on the CPU. The tensor itself is left as it is."""
    if world_size() == 1:
        return tensor.cpu()
    total = tensor.to(device(), copy=True)
    dist.all_reduce(total)
    return total.cpu()


_seen = 0
"""Bytes: the most that the GPU had in use when it was looked at, since the peak was last asked for."""


def look_at_memory() -> None:
    """Where a phase of a step has what it needs. What PyTorch has once taken it keeps, so that a phase's peak is seen
    at its end too; but vLLM's memory is there only while it samples, and PyTorch does not count it."""
    global _seen
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        _seen = max(_seen, total - free)


def peak_memory_gib() -> float:
    """Of this rank's GPU, the most in use since this was last asked, whoever uses it; without a GPU, this process's
    peak since it began."""
    global _seen
    if torch.cuda.is_available():
        look_at_memory()
        peak, _seen = _seen, 0
        return peak / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
