"""Who this process is among the ranks of a run, as whoever started it says; and the GPUs that there are for ranks.

torchrun and DeepSpeed's launcher set what PyTorch reads (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), and
so does `rlkit run --nproc`. srun and mpirun have words of their own, which are translated here.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from rlkit.errors import ConfigError

STARTER = "RLKIT_STARTED_BY"
"""In the environment of ranks that PyTorch's variables alone do not say it of."""
NPROC = "--nproc"
"""Its value for ranks that `rlkit run` has started itself."""


class LaunchError(ConfigError):
    """A start in which the ranks do not find each other. The one with `rank` 0 says it, where all of them know it."""

    def __init__(self, text: str, rank: int) -> None:
        super().__init__(text)
        self.rank = rank


def adopt() -> None:
    """Put what srun or mpirun says into the variables that PyTorch reads. Calling it again is harmless. LaunchError for
    tasks that cannot find each other."""
    os.environ.update(_translated(os.environ))
    _check(os.environ)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def starter() -> str:
    """What has started the ranks, as it is called at the command line; "" where this process is the only one."""
    if "RANK" not in os.environ:
        return ""
    return os.environ.get(STARTER) or ("torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "the launcher")


@dataclass(frozen=True)
class _Tasks:
    """What a program that starts tasks says to one of them."""

    by: str
    rank: int
    count: int
    local_rank: int
    host: str | None
    """Where task 0 runs, as far as it is said."""
    job: str
    """Names this start: no other one at the same time has it."""
    give: str
    """How MASTER_ADDR is given to all of its tasks."""


def _translated(said: Mapping[str, str]) -> dict[str, str]:
    if "RANK" in said or "WORLD_SIZE" in said:
        return {}
    # An mpirun may have started its own helpers by srun, and then all tasks of a node have a helper's SLURM variables.
    tasks = _open_mpi(said) or _hydra(said) or _srun(said)
    if tasks is None and said.get("PMI_SIZE", "1") != "1":
        raise LaunchError(
            f"something has started {said['PMI_SIZE']} tasks of this command (PMI_SIZE), and does not say which of its "
            "machine's each is. Start ranks by torchrun, srun or mpirun (docs/several-nodes.md); for one process "
            "alone: unset PMI_SIZE",
            int(said.get("PMI_RANK", "0")),
        )
    if tasks is None or tasks.count == 1:
        return {}
    host = said.get("MASTER_ADDR") or tasks.host
    if host is None:
        raise LaunchError(
            f"{tasks.by} has started {tasks.count} tasks of this command, and nothing says on which machine the first "
            f"one runs: without that they cannot find each other. Give it to all: {tasks.give}; or let {tasks.by} "
            "start one torchrun on each node (docs/several-nodes.md)",
            tasks.rank,
        )
    return {
        "RANK": str(tasks.rank),
        "WORLD_SIZE": str(tasks.count),
        "LOCAL_RANK": str(tasks.local_rank),
        "MASTER_ADDR": host,
        # Below the ports that systems give away by themselves.
        "MASTER_PORT": said.get("MASTER_PORT") or str(10000 + zlib.crc32(tasks.job.encode()) % 20000),
        STARTER: tasks.by,
    }


def _check(said: Mapping[str, str]) -> None:
    """LaunchError for variables of a launcher's of which one is missing, or makes no sense."""
    if "RANK" not in said and said.get("WORLD_SIZE", "1") == "1":
        return
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    rank = int(said["RANK"]) if said.get("RANK", "").isdigit() else 0
    if missing := [name for name in needed if not said.get(name)]:
        there = [name for name in needed if said.get(name)]
        raise LaunchError(
            f"the environment has {', '.join(f'{name}={said[name]}' for name in there)}, but no "
            f"{' and no '.join(missing)}: ranks need all four to find each other. Start them by torchrun, srun, mpirun "
            f"or `rlkit run --nproc`, which set them; for one process alone: unset {' '.join(there)}",
            rank,
        )
    for name, limit in (("WORLD_SIZE", 2**31), ("RANK", said["WORLD_SIZE"]), ("MASTER_PORT", 2**16)):
        if not said[name].isdigit() or int(said[name]) >= int(limit):
            text = f"the environment has {name}={said[name]}: it must be a number below {limit}"
            raise LaunchError(text, 0 if name == "RANK" else rank)


def _open_mpi(said: Mapping[str, str]) -> _Tasks | None:
    if "OMPI_COMM_WORLD_SIZE" not in said:
        return None
    count, rank = int(said["OMPI_COMM_WORLD_SIZE"]), int(said["OMPI_COMM_WORLD_RANK"])
    here = int(said.get("OMPI_COMM_WORLD_LOCAL_SIZE", "0"))
    return _Tasks(
        by="mpirun",
        rank=rank,
        count=count,
        local_rank=int(said.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")),
        host="127.0.0.1" if here == count else None,
        job=said.get("PMIX_NAMESPACE", ""),
        give="mpirun -x MASTER_ADDR=HOST ..., HOST being the first of its hosts",
    )


def _hydra(said: Mapping[str, str]) -> _Tasks | None:
    """MPICH's and Intel's mpirun."""
    if "PMI_SIZE" not in said or "MPI_LOCALRANKID" not in said:
        return None
    count, rank = int(said["PMI_SIZE"]), int(said["PMI_RANK"])
    return _Tasks(
        by="mpirun",
        rank=rank,
        count=count,
        local_rank=int(said["MPI_LOCALRANKID"]),
        host="127.0.0.1" if said.get("MPI_LOCALNRANKS") == said["PMI_SIZE"] else None,
        job="",
        give="mpirun -genv MASTER_ADDR HOST ..., HOST being the first of its hosts",
    )


def _srun(said: Mapping[str, str]) -> _Tasks | None:
    # Not SLURM_NTASKS, which a batch script and a shell of salloc have too, where there is one process.
    if "SLURM_PROCID" not in said or "SLURM_STEP_NUM_TASKS" not in said:
        return None
    nodes = said.get("SLURM_STEP_NODELIST") or said.get("SLURM_JOB_NODELIST") or said.get("SLURM_NODELIST")
    return _Tasks(
        by="srun",
        rank=int(said["SLURM_PROCID"]),
        count=int(said["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(said.get("SLURM_LOCALID", "0")),
        host="127.0.0.1" if said.get("SLURM_STEP_NUM_NODES") == "1" else first_host(nodes) if nodes else None,
        job=f"{said.get('SLURM_JOB_ID')}.{said.get('SLURM_STEP_ID')}",
        give="export MASTER_ADDR=HOST before srun, HOST being the first of its nodes",
    )


def first_host(nodes: str) -> str:
    """The first of a list as SLURM writes it: node07 of `node[07-09,12],big1`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else nodes


def visible_gpus() -> list[str]:
    """CUDA's device names: those that CUDA_VISIBLE_DEVICES leaves, else all that nvidia-smi knows; none for a PyTorch
    that was built for CPUs."""
    if _built_for_cpus():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number, line in enumerate(li for li in listed.splitlines() if li.startswith("GPU"))]


def _built_for_cpus() -> bool:
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
