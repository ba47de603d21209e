"""Any number of real ranks over gloo, without DeepSpeed: for what passes between them, not for what they compute."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# The one server imports torch, and each rank is a fork of it.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "rlkit.generation.assemble"])


def on_ranks(count: int, job: Callable[..., Any], *args: Any) -> list[Any]:
    """What `job`, a module's function, gives on each of the ranks."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            _context.Process(target=_rank, args=(Path(folder), rank, count, job, args), daemon=True)
            for rank in range(count)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
        codes = [process.exitcode for process in ranks]
        for process in ranks:
            process.kill()
        assert codes == [0] * count, f"exit codes {codes}: see above"
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(count)]


def _rank(folder: Path, rank: int, count: int, job: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), count)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=110))
    torch.save(job(*args), folder / str(rank))
    dist.barrier()
