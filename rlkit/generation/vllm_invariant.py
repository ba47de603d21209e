"""vLLM's kernels that compute a response alike whichever others it is sampled with, kept out of training.

vLLM puts them in the place of torch's for the whole process. Some have no gradient, and all are slower.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlkit.errors import ConfigError


def ask_for() -> None:
    """Have the engine that is made next use them. ConfigError where it cannot."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise ConfigError(
            "sampler.batch_invariant needs an NVIDIA GPU of compute capability 8.0 or more, for its quick kernels 9.0. "
            "Leave it out: on a CPU in float32 a seed decides its samples as it is"
        )
    os.environ["VLLM_BATCH_INVARIANT"] = "1"


@contextmanager
def in_place() -> Iterator[None]:
    """They are in torch's place within, and torch's own after it."""
    from vllm.model_executor.determinism import batch_invariant as kernels

    kernels.enable_batch_invariant_mode()  # nothing, where making the engine has done it
    try:
        yield
    finally:
        kernels._batch_invariant_LIB._destroy()
        kernels._batch_invariant_LIB, kernels._batch_invariant_MODE = None, False
