"""The process group: set up once per process, with or without a launcher; and light data across ranks."""

from __future__ import annotations

import atexit
import datetime
import hashlib
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlkit import ranks
from rlkit.errors import ConfigError, DroppedError, LostRankError, RlkitError, StalledError
from rlkit.interfaces.progress import waiting
from rlkit.wording import counted
from rlkit.wording import ranges as in_ranges

T = TypeVar("T")

JOINING_S = 600.0
"""How long a rank waits for all to be there at the start: a node may have to read PyTorch from a slow disk."""
POLL_S = 0.2
LATER_S = 30.0
"""By which the process group waits longer than whoever watches the run: that one says what hangs, and where."""
GRACE_S = 1.0
"""In which whoever started the ranks ends those that are left when one has died, and says which."""

_store: Any = None
"""What the ranks know of each other before and beside the process group; None with one rank."""
_hosts: Sequence[str] = ()
"""Where each rank runs."""

_of_thread = threading.local()
"""`group`: through which this thread speaks with the other ranks; unset: through the first."""


def meet() -> None:
    """Find the other ranks, at MASTER_ADDR and MASTER_PORT; calling it again is harmless, and with one rank nothing is
    done. RlkitError, naming the ranks that are missing, where not all are there within JOINING_S.

    `init` does it too. Sooner, it lets ranks that all have the same error say it once (`first_to_say`).
    """
    global _store, _hosts
    world, rank = ranks.world_size(), ranks.rank()
    if world == 1 or _store is not None:
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun keeps the store itself.
    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        _store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            world,
            is_master=keeps,
            timeout=datetime.timedelta(seconds=JOINING_S),
            wait_for_workers=False,
            multi_tenant=True,
            # A store has no key, and would listen on all addresses of the machine.
            master_listen_fd=socket.create_server((host, port)).detach() if keeps and host == "127.0.0.1" else None,
        )
    except (RuntimeError, OSError) as error:
        raise RlkitError(
            f"rank {rank} of {world} does not find the others at {host}:{port} (MASTER_ADDR and MASTER_PORT): "
            f"{_first_line(error)}. The first must be a name of the machine that rank 0 runs on, which the others can "
            "reach; the second a port of it that is free, and open between the machines"
        ) from error
    _hosts = _everyone("host", socket.gethostname())


def has_met() -> bool:
    """Whether there are other ranks, and they are found."""
    return _store is not None


def _everyone(what: str, said: str) -> list[str]:
    """Every rank's word, in rank order, without a process group. RlkitError where some do not say it in JOINING_S."""
    assert _store is not None
    keys = [f"rlkit {what} {rank}" for rank in range(ranks.world_size())]
    count = f"rlkit {what} said by"
    limit = time.monotonic() + JOINING_S
    try:
        _store.set(keys[ranks.rank()], said)
        _store.add(count, 1)
        while _store.add(count, 0) < len(keys):
            if _known(_SAID):
                raise _lost("it has said why")
            if time.monotonic() > limit:
                missing = [rank for rank, key in enumerate(keys) if not _known(key)]
                raise RlkitError(
                    f"{counted(len(missing), 'rank')} of {len(keys)} ({in_ranges(missing)}) did not come within "
                    f"{JOINING_S / 60:.3g} minutes: they were not started, or have ended, or cannot reach "
                    f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
                )
            time.sleep(POLL_S)
        return [word.decode() for word in _store.multi_get(keys)]
    except dist.DistError as error:
        raise _lost(f"the first, through which the others find each other, has ended ({_first_line(error)})") from error


def init(timeout_minutes: float = 60) -> None:
    """Join the process group; calling it again is harmless.

    With RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in the environment the ranks find each other;
    without them this process is the only one. See rlkit/ranks.py for who sets them. NCCL where there is a GPU, else
    gloo. A rank waits `timeout_minutes` and LATER_S for the others. ConfigError where a rank has no GPU to itself.
    """
    if dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    # DeepSpeed's engine reads it, with one process too.
    os.environ.setdefault("LOCAL_RANK", "0")
    meet()
    if cuda:
        device = device_of(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device)  # what DeepSpeed and vLLM take for the device
    if has_met():
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid) if cuda else ""
        check_gpus(_hosts, _everyone("GPU", gpu))
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(
        backend,
        store=_store or dist.HashStore(),  # type: ignore[attr-defined]
        rank=ranks.rank(),
        world_size=ranks.world_size(),
        timeout=_patience(timeout_minutes),
    )

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


def another_group(timeout_minutes: float) -> dist.ProcessGroup | None:
    """A group of all ranks for a thread of its own, over the CPU: two threads that spoke through one group would take
    each other's messages. Collective. None: there is one rank, which needs none."""
    if world_size() == 1:
        return None
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_patience(timeout_minutes))
    return group


def _patience(timeout_minutes: float) -> datetime.timedelta:
    return datetime.timedelta(minutes=timeout_minutes, seconds=LATER_S)


@contextmanager
def speaking_through(group: dist.ProcessGroup | None) -> Iterator[None]:
    """What this thread sends and receives within goes through that group."""
    _of_thread.group = group
    try:
        yield
    finally:
        del _of_thread.group


def _group() -> dist.ProcessGroup | None:
    """This thread's; None: the first."""
    return getattr(_of_thread, "group", None)


def _device_of(group: dist.ProcessGroup | None) -> torch.device:
    """Where what goes through it must lie: a thread's own is over the CPU."""
    return device() if group is None else torch.device("cpu")


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@waiting("the other ranks")
def barrier() -> None:
    if world_size() > 1:
        dist.barrier(group=_group())


def first_ranks_first(action: Callable[[], None]) -> None:
    """Rank 0 does it, then the first rank of every other machine; all ranks wait until it is done. `action` must not
    raise. Collective."""
    first = hosts().index(hosts()[rank()]) == rank()
    for turn in (main_rank(), first and not main_rank()):
        if turn:
            action()
        barrier()


@waiting("the other ranks")
def gather_objects(item: T) -> list[T]:
    """Every rank's item, in rank order, on every rank. For light data: it is pickled."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item, group=_group())
    return items


def raise_everywhere(failure: RlkitError | DroppedError | None) -> None:
    """Raise on every rank what has gone wrong on one, the first's of several: else the others would wait for it, or all
    would save what is done but that one. `failure`: this rank's. Collective."""
    for of, error in enumerate(gather_objects(failure)):
        if error is not None:
            raise failure if of == rank() and failure is not None else error


def on_all(action: Callable[[], Any]) -> None:
    """Do it on every rank. RlkitError on all of them, with what was said on the first, where it fails on one: none then
    waits for another. `action` itself must not wait for other ranks."""
    failure = ""
    try:
        action()
    except Exception as error:  # the other ranks must not wait for this one, whatever it is
        failure = f"{type(error).__name__}: {error}"
    failures = gather_objects(failure)
    if failed := [number for number, said in enumerate(failures) if said]:
        where = f" (rank {failed[0]}, on {hosts()[failed[0]]})" if world_size() > 1 else ""
        raise RlkitError(f"{failures[failed[0]]}{where}")


def on_main(action: Callable[[], Any]) -> None:
    """Do it on the main rank; RlkitError on all of them where that fails. Collective."""
    on_all(lambda: action() if main_rank() else None)


@waiting("the other ranks")
def gather_objects_on_main(item: T) -> list[T] | None:
    """Every rank's item, in rank order, on the main rank; None on the others. For what only files and people need."""
    if world_size() == 1:
        return [item]
    items: list[Any] | None = [None] * world_size() if main_rank() else None
    dist.gather_object(item, items, dst=0, group=_group())
    return items


@waiting("the other ranks")
def gather_flat(mine: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Every rank's tensor of one dimension, in rank order, on every rank, on the CPU.

    sizes: how long each rank's is, which all of them know; any may be 0. The longest is what counts: shares should be
    level.
    """
    if world_size() == 1:
        return [mine.cpu()]
    group, longest = _group(), max(sizes)
    where = _device_of(group)
    padded = torch.zeros(longest, dtype=mine.dtype, device=where)
    padded[: len(mine)] = mine
    whole = torch.empty(longest * world_size(), dtype=mine.dtype, device=where)
    if longest:
        dist.all_gather_single(whole, padded, group=group)
    return [part[:size] for part, size in zip(whole.cpu().reshape(world_size(), longest), sizes, strict=True)]


_SAID = "rlkit has said an error"
"""The key under which the first rank that says one puts its number."""


def first_to_say(text: str) -> bool:
    """True on the first rank that asks it of this text: what several ranks find is for one of them to say."""
    if _store is None:
        return True
    if not _store_is_there():
        return False  # rank 0 has ended, and has said why
    key = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()
    try:
        _store.compare_set(_SAID, "", str(ranks.rank()))
        return int(_store.add(f"rlkit said {key}", 1)) == 1
    except (RuntimeError, ValueError):
        return False


def says_that_one_is_lost() -> bool:
    """Whether it is for this rank to say that another is lost: where that one has not said why it ended, since it was
    killed, and no other rank is quicker. Whoever started the ranks may end this one before it answers."""
    time.sleep(GRACE_S)
    if not _store_is_there():  # rank 0 is the one, and there is nowhere left to ask: one speaks on each machine
        left = [rank for rank, host in enumerate(_hosts) if rank and host == _hosts[ranks.rank()]]
        return not left or ranks.rank() == left[0]
    return not _known(_SAID) and first_to_say("one is lost")


def _store_is_there() -> bool:
    """Whether the process that keeps the store lives. Asked of a store that is gone, PyTorch prints pages."""
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=3).close()
    except OSError:
        return False
    return True


def _known(key: str) -> bool:
    assert _store is not None
    try:
        return bool(_store.check([key]))
    except RuntimeError:  # rank 0, which keeps the store, has ended
        return False


@contextmanager
def losing_ranks(then: str) -> Iterator[None]:
    """LostRankError where a rank that others wait for within has ended, StalledError where it does not come in time,
    and nobody who watches the run has ended it before. `then`: how it goes
    on, for the end of the message."""
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no type of their own.
        if _store is None or not (isinstance(error, dist.DistError) or "gloo/" in str(error)):
            raise
        said = _first_line(error).partition(". This is typically")[0].rpartition("] ")[2] or _first_line(error)
        late = "timed out" in str(error).lower()
        if late:
            why = f"it has not come within engine.timeout_minutes ({said}): where it was merely slow, raise that"
            raise _lost(why, then, StalledError) from error
        raise _lost(
            f"it has died, or the network between has failed ({said}); its own output, or that of what started it, "
            "says why",
            then,
        ) from error


def _lost(why: str, then: str = "", kind: type[LostRankError] = LostRankError) -> LostRankError:
    place = f"rank {ranks.rank()} of {ranks.world_size()}, on {socket.gethostname()}"
    return kind(f"{place}, has lost another rank: {why}{then and f'. {then[0].upper()}{then[1:]}'}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def device_of(local_rank: int, visible: int) -> int:
    """The number of this rank's GPU among those it sees. ConfigError where there is none for it."""
    if local_rank < visible:
        return local_rank
    if visible == 1:  # srun and mpirun can let each task see its own alone
        return 0
    raise ConfigError(
        f"rank {ranks.rank()}, on {socket.gethostname()}, is number {local_rank} there (LOCAL_RANK, from 0 on), but "
        f"sees {counted(visible, 'GPU')}: start as many ranks on a machine as it has GPUs, or let each see all of them"
    )


def check_gpus(hosts: Sequence[str], gpus: Sequence[str]) -> None:
    """ConfigError where two ranks have the same GPU. `gpus`: what each is called, "" for a rank without one."""
    first: dict[tuple[str, str], int] = {}
    for rank, place in enumerate(zip(hosts, gpus, strict=True)):
        if place[1] and first.setdefault(place, rank) != rank:
            raise ConfigError(
                f"ranks {first[place]} and {rank} have the same GPU of {place[0]} ({place[1]}): a rank needs one to "
                "itself. Start as many ranks on a machine as it has GPUs; under srun with --gpus-per-task=1, or let "
                "every task see all GPUs of its node (--gpus-per-node, no --gpu-bind)"
            )


def hosts() -> Sequence[str]:
    """Where each rank runs."""
    return _hosts or [socket.gethostname()]


def any_rank(flag: bool) -> bool:
    """True on every rank if it is on one."""
    return bool(sum_ranks(torch.tensor(float(flag))) > 0)


@waiting("the other ranks")
def sum_ranks(tensor: Tensor) -> Tensor:
    """The sum over ranks, on every rank, on the CPU. The tensor itself is left as it is."""
    if world_size() == 1:
        return tensor.cpu()
    group = _group()
    total = tensor.to(_device_of(group), copy=True)
    dist.all_reduce(total, group=group)
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
