"""What ZeRO-3 puts in the place of torch's linear layer is there for training alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_worker import engine_of, settings

from rlkit import registry, sampler
from rlkit.config import ModelConfig, PluginRef
from rlkit.generation import build_sampler
from rlkit.interfaces.generation import Completion, Request, SamplingParams

BUILTIN = torch._C._nn.linear
REQUESTS = [Request(prompt_tokens=[3], seed=seed, params=SamplingParams(max_tokens=1)) for seed in range(3)]


def linear() -> Any:
    return torch.nn.functional.linear


class Watching:
    """A sampler that notes which linear layer it would have used."""

    def __init__(self) -> None:
        self.met = [linear()]

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        try:
            for index in range(len(requests)):
                self.met.append(linear())
                yield index, Completion(tokens=[1], logprobs=[0.0], truncated=True, version=0)
        finally:
            self.met.append(linear())

    def sync(self, weights: Iterable[Any], version: int) -> None: ...

    def close(self) -> None: ...


class Beside(Watching):
    beside_training = True


@pytest.fixture
def replaced(models: dict[str, Path]) -> Iterator[Any]:
    """The one that ZeRO-3 has put there."""
    engine_of(settings(models["tied"], engine={"zero_stage": 3}))
    yield linear()
    torch.nn.functional.linear = BUILTIN


def test_a_sampler_is_built_and_stepped_with_torch_s_own(replaced: Any, models: dict[str, Path]) -> None:
    made: list[Watching] = []
    registry_name = "plain_linear_watching"

    @sampler(registry_name)
    def watching(model: ModelConfig, context: int, seed: int, *, beside: bool = False) -> Watching:
        """notes its linear layer"""
        made.append(Beside() if beside else Watching())
        return made[-1]

    assert replaced is not BUILTIN
    for beside in (False, True):
        ref = PluginRef(kind=registry_name, beside=beside)  # type: ignore[call-arg]
        named = build_sampler(ref, ModelConfig(path=str(models["tied"])), 8, 0)
        assert [linear() for _ in named.generate(REQUESTS)] == [replaced] * 3
        next(left := named.generate(REQUESTS))
        left.close()  # type: ignore[attr-defined]
        assert linear() is replaced
    alone, beside_training = made
    assert alone.met[:5] == [BUILTIN] * 5
    assert beside_training.met[1:5] == [replaced] * 4
    del registry._plugins["samplers", registry_name]


def test_one_that_fails_leaves_the_trainer_s_where_it_was(replaced: Any, models: dict[str, Path]) -> None:
    real = build_sampler(PluginRef(kind="transformers"), ModelConfig(path=str(models["tied"]), dtype="float32"), 8, 0)
    with pytest.raises(Exception, match="exceed the sampler's context"):
        list(real.generate([Request(prompt_tokens=[3], seed=0, params=SamplingParams(max_tokens=20))]))
    assert linear() is replaced
