"""What is said of activations is what there is, counted while real numbers go through the model, on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, make

from rlkit.config import LoraConfig, ModelConfig
from rlkit.engine import activations
from rlkit.engine.activations import Alive, bytes_of_a_token
from rlkit.engine.models import load_policy, without_numbers
from rlkit.ops.packing import pack

LENGTHS = [220, 220, 260, 60]


def made(folder: Path, kind: str) -> Path:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Qwen3Config

    shape: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 128,
        "intermediate_size": 400,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    shared = {"num_key_value_heads": 2, "head_dim": 32}
    config = {
        "llama": lambda: LlamaConfig(**shape, **shared),
        "qwen3": lambda: Qwen3Config(**shape, **shared, tie_word_embeddings=True),
        "neox": lambda: GPTNeoXConfig(**shape),
    }[kind]()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "dtype", "checkpointing", "lora"),
    [
        ("qwen3", "float32", True, None),
        ("qwen3", "bfloat16", True, LoraConfig(rank=8)),
        ("qwen3", "bfloat16", False, None),
        ("llama", "bfloat16", True, None),
        ("llama", "float32", False, LoraConfig(rank=8)),
        ("neox", "bfloat16", True, None),
    ],
)
def test_what_a_micro_batch_leaves(
    kind: str, dtype: Any, checkpointing: bool, lora: LoraConfig | None, tmp_path: Path
) -> None:
    config = ModelConfig(path=str(made(tmp_path, kind)), dtype=dtype, gradient_checkpointing=checkpointing, lora=lora)
    policy = load_policy(config).train()
    assert policy.packs
    sequences = [torch.randint(300, (length,)) for length in LENGTHS]
    placed = pack([each[:4] for each in sequences], [each[4:] for each in sequences])
    count = sum(LENGTHS)
    for parameter in policy.parameters():  # whose gradients are no activations
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    at = torch.arange(count)
    with Alive(*policy.parameters(), *policy.buffers()) as alive:
        states = policy(**placed, rows=0 * at, columns=at, tokens=at, hidden_only=True)["hidden"]
        states.backward(torch.empty_like(states))
    said = bytes_of_a_token(config)
    assert said is not None
    # A CPU's attention keeps what it gives in two forms, a GPU's in one.
    assert 0.9 * alive.peak < count * said < 1.02 * alive.peak


def test_a_deep_model_is_reckoned_from_some_of_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(path=str(made(tmp_path, "llama")), dtype="bfloat16")
    whole = activations._peak(without_numbers(config))
    monkeypatch.setattr(activations, "LAYERS", 1)
    assert activations._peak(without_numbers(config)) == whole


@pytest.mark.parametrize("family", ["Gemma 2", "GPT-OSS", "Falcon", "Bloom", "Mamba"])
def test_what_cannot_be_known_is_not_said(family: str, tmp_path: Path) -> None:
    """All scores are held, by a soft cap or sinks; attention is the family's own; tokens follow each other."""
    make(next(each for each in FAMILIES if each.name == family), tmp_path)
    assert bytes_of_a_token(ModelConfig(path=str(tmp_path), dtype="float32")) is None
    assert bytes_of_a_token(ModelConfig(path=str(tmp_path / "nobody"), dtype="float32")) is None


def test_a_count_of_what_lives() -> None:
    with Alive() as alive:
        kept = torch.zeros(100)
        for _ in range(3):
            torch.zeros(50)
        view = kept[10:].view(torch.int32)
    assert (alive.now, alive.peak) == (400, 600)
    del kept
    assert alive.now == 400, "the view holds it"
    del view
    assert alive.now == 0
