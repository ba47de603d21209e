"""Folders that are not the model one took them for: refused in a sentence that says what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from families import FAMILIES, make
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit.cli import main
from rlkit.config import ModelConfig
from rlkit.embedded import resolve
from rlkit.engine.models import load_policy, load_tokenizer
from rlkit.errors import ConfigError


def model(name: str, folder: Path) -> Path:
    make(next(family for family in FAMILIES if family.name == name), folder)
    return folder


def adapter(base: Path, folder: Path, tokenizer: bool = True) -> Any:
    """A LoRA adapter as peft saves it. Returns the model under it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    adapted.save_pretrained(folder)
    if tokenizer:
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("tokenizer", [True, False], ids=["with a tokenizer", "without"])
def test_an_adapters_folder_names_its_base_and_how_to_merge_them(tokenizer: bool, tmp_path: Path) -> None:
    base = model("Llama", tmp_path / "base")
    adapted = adapter(base, tmp_path / "adapter", tokenizer)
    config = ModelConfig(path=str(tmp_path / "adapter"), dtype="float32")
    for load in (load_policy, load_tokenizer):
        with pytest.raises(ConfigError, match=f"holds an adapter of '{base}', and no model. Merge the two") as refused:
            load(config)
    command = str(refused.value).splitlines()[1].strip()
    code = re.fullmatch('python -c "(.*)"', command)
    assert code is not None, command
    subprocess.run([sys.executable, "-c", code.group(1)], cwd=tmp_path, check=True, capture_output=True)
    merged = ModelConfig(path=str(tmp_path / "merged"), dtype="float32")
    ids = torch.randint(3, 25, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(load_policy(merged).lm(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
    assert load_tokenizer(merged).get_vocab() == load_tokenizer(ModelConfig(path=str(base))).get_vocab()


def test_an_adapter_beside_a_config_is_not_taken_for_the_model(tmp_path: Path) -> None:
    """transformers would load base and adapter, unmerged; vLLM would not."""
    base = model("Llama", tmp_path / "base")
    adapter(base, tmp_path / "adapter")
    shutil.copy(base / "config.json", tmp_path / "adapter")
    with pytest.raises(ConfigError, match="holds an adapter of"):
        load_policy(ModelConfig(path=str(tmp_path / "adapter"), dtype="float32"))


def test_a_folder_without_a_model_says_where_there_is_one(tmp_path: Path) -> None:
    for inner in ("checkpoint-20", "checkpoint-40"):
        shutil.copytree(resolve("embedded:xs"), tmp_path / "trainer" / inner)
    (tmp_path / "quantized").mkdir()
    (tmp_path / "quantized" / "model.Q4.gguf").touch()
    for folder, said in [
        ("trainer", r"no config.json \(there is one in its folder checkpoint-20 and in checkpoint-40\)"),
        ("quantized", r"no config.json \(a .gguf file is for inference alone"),
    ]:
        with pytest.raises(ConfigError, match=f"{folder}' is a folder without a model: {said}"):
            load_policy(ModelConfig(path=str(tmp_path / folder)))


def dry_run(*settings: str) -> Any:
    return CliRunner().invoke(main, ["run", "--dry-run", "--algo", "ppo", "embedded_xs", *settings])


def renamed(folder: Path, changes: dict[str, str]) -> Path:
    """The embedded model with other words for its tokens."""
    shutil.copytree(resolve("embedded:xs"), folder)
    file = folder / "tokenizer.json"
    read = json.loads(file.read_text())
    vocabulary = read["model"]["vocab"]
    read["model"]["vocab"] = {changes.get(text, text): token for text, token in vocabulary.items()}
    file.write_text(json.dumps(read))
    return folder


def test_a_critic_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    critic = renamed(tmp_path / "critic", {"1": "2", "2": "1"})
    result = dry_run(f"critic.path={critic}")
    assert result.exit_code == 2
    assert (
        f"critic.path '{critic}' has another vocabulary than model.path 'embedded:xs': 2 tokens differ" in result.output
    )
    assert dry_run("critic.path=embedded:s").exit_code == 0


def test_a_critic_with_too_few_embeddings_is_refused(tmp_path: Path) -> None:
    critic = tmp_path / "critic"
    shutil.copytree(resolve("embedded:xs"), critic)
    config = json.loads((critic / "config.json").read_text())
    (critic / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 5}))
    result = dry_run(f"critic.path={critic}")
    assert result.exit_code == 2
    assert "has embeddings for 20 tokens, too few for the 25 of model.path" in result.output


def test_a_critic_with_too_few_positions_is_refused(tmp_path: Path) -> None:
    critic = tmp_path / "critic"
    shutil.copytree(resolve("embedded:xs"), critic)
    config = json.loads((critic / "config.json").read_text())
    (critic / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 24}))
    result = dry_run(f"critic.path={critic}", "sampling.max_tokens=24")
    assert result.exit_code == 2
    assert f"exceed the 24 positions of {critic}" in result.output
    assert "The prompt: " in result.output


def test_a_critic_that_is_not_there_is_named_by_its_own_setting(tmp_path: Path) -> None:
    result = dry_run(f"critic.path={tmp_path}/nowhere")
    assert result.exit_code == 2
    assert f"critic.path '{tmp_path}/nowhere' does not exist" in result.output
