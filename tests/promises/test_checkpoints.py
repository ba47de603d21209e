"""A checkpoint is complete or invisible; going on from one is going straight on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_worker import TwoRanks, engine_of, logprob_loss, random_batch, run, settings
from transformers import AutoModelForCausalLM

from rlkit.engine import checkpoint
from rlkit.errors import ConfigError

SEED = 7
LORA = {"lora": {"rank": 4}}


def check_resumed(found: dict[str, Any]) -> None:
    assert found["state"]["step"] == 2
    assert torch.equal(found["state"]["state"]["x"], torch.ones(2))
    for name, weight in found["saved"].items():
        assert torch.equal(found["loaded"][name], weight), name
    for name, weight in found["straight"].items():
        assert torch.equal(found["resumed"][name], weight), name
    assert any(not torch.equal(found["saved"][name], weight) for name, weight in found["straight"].items())
    assert found["metrics"][0] == found["metrics"][1]


@pytest.mark.parametrize(
    ("stage", "model"), [(0, {}), (2, {}), (3, {}), (0, LORA), (3, LORA), (1, {"dtype": "bfloat16"})]
)
def test_resuming_equals_going_straight_on(
    stage: int, model: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    config = settings(models["tied"], engine={"zero_stage": stage}, model=model)
    check_resumed(run("save_and_go_on", config, SEED, tmp_path))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_resuming_equals_going_straight_on_with_two_ranks(
    stage: int, models: dict[str, Path], two_ranks: TwoRanks, tmp_path: Path
) -> None:
    config = settings(models["tied"], engine={"zero_stage": stage})
    for found in two_ranks.run("save_and_go_on", config, SEED, tmp_path):
        check_resumed(found)


@pytest.mark.parametrize(
    ("model", "stage", "lora"),
    [("tied", 0, {}), ("tied", 3, {}), ("untied", 0, {}), ("tied", 0, LORA), ("tied", 3, LORA)],
)
def test_the_exported_folder_is_the_policy(
    model: str, stage: int, lora: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    config = settings(models[model], engine={"zero_stage": stage}, model=lora)
    found = run("save_and_go_on", config, SEED, tmp_path)
    path = checkpoint.latest(tmp_path)
    assert path is not None
    loaded, report = AutoModelForCausalLM.from_pretrained(path / "hf", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    weights = dict(loaded.named_parameters())
    assert weights.keys() == found["saved"].keys()
    for name, weight in found["saved"].items():
        assert torch.equal(weights[name], weight), name
    assert loaded.config.tie_word_embeddings == (model == "tied")


def test_what_is_half_written_is_not_seen_and_the_oldest_go(models: dict[str, Path], tmp_path: Path) -> None:
    policy = engine_of(settings(models["tied"]))
    assert checkpoint.latest(tmp_path / "none") is None
    (tmp_path / ".step-00000009").mkdir()
    assert checkpoint.latest(tmp_path) is None
    for step in (1, 2, 10, 10):
        checkpoint.save(tmp_path, step, {"policy": policy}, {"step": step}, keep=2)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000002", "step-00000010"]
    path = checkpoint.latest(tmp_path)
    assert path is not None
    assert checkpoint.load(path, {"policy": policy}) == {"step": 10}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (1, "float32"), (1, "bfloat16"), (3, "float32")])
def test_the_optimizer_s_settings_are_those_of_the_resume(
    stage: int, dtype: str, models: dict[str, Path], tmp_path: Path
) -> None:
    batch, targets = random_batch(SEED)

    def engine(**optimizer: Any) -> Any:
        return engine_of(
            settings(models["tied"], engine={"zero_stage": stage}, model={"dtype": dtype}, optimizer=optimizer)
        )

    policy = engine(weight_decay=0.0)
    policy.update(batch, targets, logprob_loss)
    path = checkpoint.save(tmp_path, 1, {"policy": policy}, {}, keep=1)
    resumed = engine(weight_decay=100.0, clip_norm=0.25, betas=[0.8, 0.9])
    checkpoint.load(path, {"policy": resumed})
    before = {name: weight.float() for name, weight in resumed.weights()}
    assert resumed.update(batch, targets, logprob_loss)["policy/lr"] == 1e-3
    for name, weight in resumed.weights():
        assert weight.float().norm() < 0.95 * before[name].norm(), name
    (group,) = resumed._engine.optimizer.param_groups
    assert tuple(group["betas"]) == (0.8, 0.9)
    assert resumed._engine.gradient_clipping() == getattr(resumed._engine.optimizer, "clip_grad", 0.25) == 0.25


def test_a_checkpoint_of_another_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"policy": engine_of(settings(models["tied"]))}, {}, keep=1)
    for other, said in [("deeper", "lm.model.layers.2"), ("untied", "lm.lm_head.weight"), ("reference", "model.path")]:
        with pytest.raises(ConfigError, match="is not of this run's policy") as error:
            checkpoint.load(path, {"policy": engine_of(settings(models[other]))})
        assert said in str(error.value)
        assert str(models[other]) in str(error.value)
    policy = engine_of(settings(models["tied"]))
    with pytest.raises(ConfigError, match="this run has critic, policy"):
        checkpoint.load(path, {"policy": policy, "critic": policy})
