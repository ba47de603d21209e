"""What the plan says of memory is what DeepSpeed holds, the tensors counted that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rank_worker import TwoRanks, run, settings

from rlkit.engine.memory import checkpoint_bytes, engine_bytes
from rlkit.engine.models import adapter_parameters, model_shape
from rlkit.ops.head import peak_bytes

SEED = 5
VOCABULARY = 2048
WIDTH = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 million parameters, few of them in its head: what passes through it is small beside them."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("model")
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


ONE = [
    (0, "float32", {}),
    (1, "float32", {}),
    (1, "bfloat16", {}),
    (2, "float32", {}),
    (2, "bfloat16", {}),
    (3, "bfloat16", {}),
    (2, "bfloat16", {"lora": {"rank": 8}}),
    (1, "bfloat16", {"offload_optimizer": True}),
    (2, "bfloat16", {"offload_optimizer": True}),
    (3, "float32", {"offload_optimizer": True, "offload_parameters": True}),
]
TWO = [(1, "bfloat16", {}), (2, "bfloat16", {}), (2, "float32", {}), (3, "bfloat16", {})]


@pytest.mark.parametrize(
    ("ranks", "stage", "dtype", "more"), [(1, *case) for case in ONE] + [(2, *case) for case in TWO]
)
def test_what_deepspeed_holds(
    ranks: int, stage: int, dtype: str, more: dict[str, Any], model: Path, tmp_path: Path, two_ranks: TwoRanks
) -> None:
    engine = {key: value for key, value in more.items() if key != "lora"}
    config = settings(
        model,
        model={"dtype": dtype, "lora": more.get("lora")},
        engine={"zero_stage": stage, **engine},
        optimizer={"warmup_updates": 0},
    )
    found = (run if ranks == 1 else two_ranks.run)("held", config, SEED, tmp_path)
    shape, adapters = model_shape(config.model), adapter_parameters(config.model)
    assert shape is not None
    trained, frozen = (adapters, shape.parameters) if adapters else (shape.parameters, 0)
    said = engine_bytes(config, ranks, trained, frozen)
    # What a micro-batch of 60 tokens leaves between the layers is little beside it.
    passing = peak_bytes(60, VOCABULARY, learns=0 if adapters else WIDTH, width=2 if dtype == "bfloat16" else 4)
    passing += 60 * 1536 * 3 * 6 * 4
    for each in found if ranks == 2 else [found]:
        assert each["trained"] == trained
        if not said.host:  # where it is held apart, it is at its peak: here all is the host's
            # A gradient of one tensor may be left, and ZeRO-3 shares out no weight of fewer than 1e5 numbers: some
            # hundredths of a model as small as this.
            assert each["stays"] == pytest.approx(said.sampling, rel=0.06)
        peak = said.training + said.host
        assert 0.87 * peak < each["peak"] < 1.03 * peak + passing
        assert each["saved"] == pytest.approx(
            checkpoint_bytes(config, needs_reference=False, has_critic=False) - _exported(config, trained + frozen),
            rel=0.02,
        )


def _exported(config: Any, numbers: int) -> int:
    """Bytes of the folder for `from_pretrained`, and of the adapters' own."""
    return (2 if config.model.dtype == "bfloat16" else 4) * numbers
