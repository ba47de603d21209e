"""A policy as a Hugging Face folder again, whatever stands in the settings of the one it began as."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import rlkit
from rlkit import embedded
from rlkit.assembly import run as runs
from rlkit.config import ModelConfig, load
from rlkit.engine.export import check_export
from rlkit.engine.models import load_policy
from rlkit.engine.modules import Policy
from rlkit.errors import ConfigError, RlkitError
from rlkit.records.folder import RunFolder


def shipped(folder: Path, generation: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Path:
    """The embedded model with other settings."""
    model = folder / "model"
    shutil.copytree(embedded.resolve("embedded:xs"), model)
    if generation is not None:
        (model / "generation_config.json").write_text(json.dumps(generation))
    if config is not None:
        there = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(there | config))
    return model


def settings(model: Path, out: Path, **more: Any) -> dict[str, Any]:
    overrides = [
        f"model.path={model}",
        f"out={out}",
        "name=r",
        "sampler=transformers",
        "eval.problems=2",
        "batch.prompts_per_step=2",
        "batch.samples_per_prompt=2",
        *(f"{key}={value}" for key, value in more.items()),
    ]
    return load("embedded_xs", overrides)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("generation", "config", "left_out", "kept"),
    [
        ({"do_sample": False, "top_k": 20, "min_p": 0.1}, None, {"top_k 20", "min_p 0.1"}, {"do_sample": False}),
        ({"eos_token_id": [1, 0], "typical_p": 0.5}, None, {"typical_p 0.5"}, {"eos_token_id": [1, 0]}),
        ({"length_penalty": 0.5, "eos_token_id": 1}, None, {"length_penalty 0.5"}, {"eos_token_id": 1}),
        ({"output_scores": True, "bos_token_id": 3}, None, {"output_scores True"}, {"bos_token_id": 3}),
        ({"pad_token_id": -1, "max_length": 99}, None, {"pad_token_id -1"}, {"max_length": 99}),
        ({"do_sample": True, "temperature": 0.6, "num_beams": 1, "early_stopping": True}, None,
         {"early_stopping True"}, {"do_sample": True, "temperature": 0.6}),
        ({"eos_token_id": 1}, {"temperature": 0.3, "num_beams": 4}, set(), {"eos_token_id": 1}),
        ({"do_sample": True, "temperature": 0.6}, None, set(), {"do_sample": True, "temperature": 0.6}),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_saved_are_left_out_and_the_others_stay(
    tmp_path: Path,
    generation: dict[str, Any],
    config: dict[str, Any] | None,
    left_out: set[str],
    kept: dict[str, Any],
) -> None:
    model = shipped(tmp_path, generation, config)
    policy = load_policy(ModelConfig(path=str(model), dtype="float32"))
    assert set(check_export(policy, AutoTokenizer.from_pretrained(model))) == left_out
    assert check_export(policy, None) == [], "said once"
    policy.write(tmp_path / "hf", {n: w for _, make in policy.weight_groups() for n, w in make().items()})
    written = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert {name: getattr(written, name) for name in kept} == kept
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert all(torch.equal(p, policy.lm.get_parameter(name)) for name, p in again.named_parameters())


def test_what_cannot_be_written_is_refused_before_anything_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise TypeError("Object of type Thing is not JSON serializable")

    monkeypatch.setattr("transformers.PreTrainedConfig.save_pretrained", refuses)
    with pytest.raises(ConfigError, match="could not be written as a model again: TypeError: Object of type Thing"):
        runs.train(settings(shipped(tmp_path), tmp_path, steps=1), quiet=True)
    assert not (tmp_path / "r").exists()


def test_a_failed_export_costs_no_checkpoint_and_a_resume_makes_up_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(shipped(tmp_path), tmp_path, steps=2, **{"checkpoint.every": 1})
    write = Policy.write

    def full(self: Policy, folder: Path, weights: Any) -> None:
        write(self, folder, weights)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Policy, "write", full)
    with pytest.warns(UserWarning, match=r"step-00000002 can be resumed from, but has no model.*No space left") as said:
        runs.train(config, quiet=True)
    run = RunFolder.open(tmp_path / "r")
    assert sum("can be resumed from" in str(w.message) for w in said) == 2
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-00000001", "step-00000002"]
    assert not (run.checkpoints / "step-00000002" / "hf").exists()
    with pytest.raises(RlkitError, match="step-00000002 holds no model: it could not be written"):
        rlkit.Run(run.path).sample("1+1=")
    with pytest.raises(RlkitError, match="could not be written to"):
        runs.train(config, resume=True, quiet=True)

    monkeypatch.setattr(Policy, "write", write)
    runs.train(config, resume=True, quiet=True)
    assert len(rlkit.Run(run.path).sample("1+1=")) == 1
    shutil.rmtree(run.checkpoints / "step-00000002" / "hf")
    shutil.rmtree(run.checkpoints / "step-00000001")
    runs.train(settings(tmp_path / "model", tmp_path, steps=3), resume=True, quiet=True)
    assert (run.checkpoints / "step-00000003" / "hf" / "model.safetensors").is_file()
