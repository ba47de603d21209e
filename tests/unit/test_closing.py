"""What ends a run is what is said of it, and what the run holds is let go before it is closed."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit
from rlkit import config as configs
from rlkit.closing import closing
from rlkit.engine.deepspeed import Engine
from rlkit.errors import RlkitError
from rlkit.generation import transformers


def test_all_is_closed_and_the_first_error_is_raised() -> None:
    closed = []

    def fail() -> None:
        raise RuntimeError("CUDA error: out of memory")

    def run() -> None:
        with closing() as stack:
            stack.callback(closed.append, "first")
            stack.callback(fail)
            stack.callback(closed.append, "last")
            raise RlkitError("the step failed")

    with pytest.raises(RlkitError, match="the step failed") as caught:
        run()
    assert closed == ["last", "first"]
    assert caught.value.__notes__ == ["Then, while the run was closed: RuntimeError: CUDA error: out of memory"]
    with pytest.raises(RuntimeError, match="CUDA error"), closing() as stack:
        stack.callback(fail)


def test_closing_finds_the_memory_free_that_ran_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's tensors are held by the error's traceback, and so by whoever catches it."""
    held: list[weakref.ref[torch.Tensor]] = []
    left: list[bool] = []

    def greedy(self: Engine, *_: Any, **__: Any) -> Any:
        activations = torch.ones(1000)
        held.append(weakref.ref(activations))
        return torch.empty(2**60)

    def close(self: transformers._Transformers) -> None:
        left.extend(one() is not None for one in held)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(transformers._Transformers, "close", close)
    config = configs.load("embedded_xs", [f"out={tmp_path}", "steps=1", "eval.problems=2", "batch.prompts_per_step=2"])
    accumulate = Engine._accumulate

    def training(self: Engine, *args: Any) -> Any:
        monkeypatch.setattr(Engine, "_forward", greedy)
        return accumulate(self, *args)

    monkeypatch.setattr(Engine, "_accumulate", training)
    with pytest.raises(RlkitError, match=r"policy: out of memory with batch\.tokens_per_microbatch") as caught:
        rlkit.train(config, quiet=True)
    assert left == [False]
    assert "sampler 'transformers'" in caught.value.__notes__[0]
