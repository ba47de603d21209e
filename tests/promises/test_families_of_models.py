"""docs/models.md says which families of models train, with which sampler and which weights, and it is so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from families import COLUMNS, FAMILIES, Family, expected, outcome

SOME = {"Granite", "Gemma 2", "Qwen3-MoE", "GPT-J"}
"""One of each kind that needs care: the others are left for `make test-slow`."""
ADAPTED = {"Llama", "Qwen2, tied", "Qwen3-MoE", "Gemma 2", "GPT-2", "GPT-NeoX (Pythia)", "DeepSeek-V3", "CodeGen"}
"""What vLLM is tried on with LoRA: it takes merged weights as any others."""


def test_the_page_has_every_family() -> None:
    assert set(expected()) == {(family.name, *column) for family in FAMILIES for column in COLUMNS}


@pytest.mark.parametrize(
    ("sampler", "weights", "family"),
    [
        pytest.param(
            sampler, weights, family, id=f"{family.name}, {sampler}, {weights}",
            marks=() if family.name in SOME and (sampler, weights) == COLUMNS[0] else pytest.mark.slow,
        )
        for sampler, weights in COLUMNS
        for family in FAMILIES
        if (sampler, weights) != ("vllm", "LoRA") or family.name in ADAPTED
    ],
)  # fmt: skip
def test_a_family_trains_or_is_refused_as_the_page_says(
    sampler: str, weights: str, family: Family, tmp_path: Path
) -> None:
    if sampler == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    if torch.cuda.is_available():
        pytest.skip("the page tells what happens on a CPU")
    assert outcome(family, weights, sampler, tmp_path) == expected()[family.name, sampler, weights]
