"""States on disk: what torch.save writes of a run, and of DeepSpeed's. None of it is code.

A file of torch's is a pickle, which names the functions that make what is in it; so a file from a stranger could run
anything. Read here, it can name tensors, plain data, and the three classes that DeepSpeed's states hold, and no more.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rlkit.errors import RlkitError


def read(file: Path, *, mmap: bool = False, where: Any = "cpu") -> dict[str, Any]:
    """What `torch.save` wrote. With `mmap`, tensors stay in the file until they are used; `where` is torch's
    `map_location`. RlkitError for a file that is damaged, not there, or asks for anything but a state."""
    allowed = _of_deepspeed()
    try:
        with safe_globals(allowed):
            found: dict[str, Any] = torch.load(file, map_location=where, mmap=mmap, weights_only=True)
    except FileNotFoundError as error:
        raise RlkitError(f"{file} is missing: the checkpoint is damaged; resume from another") from error
    except pickle.UnpicklingError as error:
        if foreign := _foreign(file, allowed):
            raise RlkitError(
                f"{file} asks for {', '.join(foreign)}, which no checkpoint of rlkit's does: it was not loaded, since "
                "such a file can run any code. Take the checkpoint from someone you trust, or begin the run anew"
            ) from error
        raise _damaged(file, error) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(file, error) from error
    return found


def _foreign(file: Path, allowed: list[Any]) -> list[str]:
    """What it names that is not allowed; nothing of it is imported."""
    names = {f"{one.__module__}.{one.__qualname__}" for one in allowed}
    try:
        return [name for name in get_unsafe_globals_in_checkpoint(file) if name not in names]
    except Exception:  # whatever a damaged file makes of it
        return []


def _damaged(file: Path, error: Exception) -> RlkitError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RlkitError(f"{file} cannot be read ({first}): the checkpoint is damaged; resume from another")


def _of_deepspeed() -> list[Any]:
    """The classes that its states hold. They do nothing when they are made."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


class Files:
    """How a DeepSpeed engine reads and writes its files, in place of its own functions.

    It reads any pickle; and a write that fails raises on one rank, while the others wait for that one in the same call.
    So a failure is kept here until `check`.
    """

    def __init__(self) -> None:
        self._failure: Exception | None = None

    def take_over(self, engine: Any) -> None:
        """`engine` reads and writes through this one."""
        files = engine.checkpoint_engine
        make = files.makedirs
        files.load = lambda path, map_location=None: read(Path(path), where=map_location)
        files.save = lambda state_dict, path: self._tried(lambda: torch.save(state_dict, path))
        files.makedirs = lambda path, exist_ok=False: self._tried(lambda: make(path, exist_ok=exist_ok))
        # Programs that stand beside the weights, and read any pickle: `hf/` is the model for others.
        engine._copy_recovery_script = lambda folder: None

    def _tried(self, write: Callable[[], Any]) -> None:
        if self._failure is None:
            try:
                write()
            except (OSError, RuntimeError) as error:  # torch says a full disk by the latter
                self._failure = error

    def check(self) -> None:
        """Raise what went wrong since the last time."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
