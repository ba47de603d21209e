"""Weights travel under the names they have on disk, whatever a model calls them in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, make
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkit.config import ModelConfig
from rlkit.engine.models import load_policy
from rlkit.engine.weight_names import Intake
from rlkit.errors import RlkitError

MIXTURES = ["Mixtral", "Qwen3-MoE", "DeepSeek-V3"]


@pytest.fixture(params=[*MIXTURES, "Llama", "Qwen2, tied", "OPT-350m (projected)"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make(next(family for family in FAMILIES if family.name == request.param), tmp_path)
    return tmp_path


def weights_of(folder: Path) -> dict[str, Tensor]:
    policy = load_policy(ModelConfig(path=str(folder), dtype="float32"))
    return {name: weight for _, make in policy.weight_groups() for name, weight in make().items()}


def other(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.normal_()
    return model


def test_names_and_weights_are_those_of_the_file(folder: Path) -> None:
    found = weights_of(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == found.keys()
        assert all(torch.equal(file.get_tensor(name), weight) for name, weight in found.items())


def test_a_model_in_memory_takes_them_in(folder: Path) -> None:
    model = other(folder)
    # In no order: a rank may send what it has first.
    Intake(model).load(sorted(weights_of(folder).items(), key=lambda item: hash(item[0])))
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_weight_that_does_not_come_is_an_error(folder: Path) -> None:
    weights, model = weights_of(folder), other(folder)
    for name in list(weights)[:: max(1, len(weights) // 7)]:
        with pytest.raises(RlkitError, match=r"weights of the sampler were not sent"):
            Intake(model).load((n, w) for n, w in weights.items() if n != name)


def test_what_does_not_fit_is_an_error(folder: Path) -> None:
    weights, model = weights_of(folder), other(folder)
    name = next(iter(weights))
    with pytest.raises(RlkitError, match="has no weight 'elsewhere'"):
        Intake(model).load([("elsewhere", weights[name])])
    with pytest.raises(RlkitError, match=rf"'{name}' is \[3\], the sampler's is \[\d+"):
        Intake(model).load([(name, torch.zeros(3))])
