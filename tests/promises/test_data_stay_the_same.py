"""A run goes on with the data and the model it began with; a comparison says where one name stood for other data."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import hub_server
import pytest

from rlkit import hub
from rlkit.assembly import run as runs
from rlkit.assembly.inputs import check_same_model
from rlkit.comparison import compare
from rlkit.config import CriticConfig, ModelConfig, RunConfig, load
from rlkit.embedded import resolve
from rlkit.errors import ConfigError
from rlkit.records.folder import RunFolder

SMALL = ["batch.prompts_per_step=2", "batch.samples_per_prompt=2", "sampling.max_tokens=4", "sampler=transformers"]


def write(file: Path, add: int, wrong: int = 0) -> None:
    rows = [{"prompt": f"{a}+{add}=", "answer": str(a + add + wrong)} for a in range(10, 16)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(file: Path, name: str, steps: int, algo: str = "grpo") -> RunConfig:
    settings = [*SMALL, f"data.path={file}", f"out={file.parent}", f"name={name}", f"steps={steps}"]
    return load("embedded_xs", settings, algo)


@pytest.mark.parametrize("change", [{"add": 77}, {"add": 11, "wrong": 1}])
def test_a_run_goes_on_with_its_own_data_unless_told(tmp_path: Path, change: dict[str, int]) -> None:
    file, other = tmp_path / "d.jsonl", tmp_path / "e.jsonl"
    write(file, 11)
    folder = runs.train(config(file, "r", 1), quiet=True)
    before = RunFolder.open(folder).read_data_digests()
    write(file, **change)
    with pytest.raises(ConfigError, match=r"d.jsonl holds other prompts or golds.*-s data.path=FILE"):
        runs.train(config(file, "r", 2), resume=True, quiet=True)
    file.rename(other)
    runs.train(config(other, "r", 2), resume=True, quiet=True)
    assert RunFolder.open(folder).read_data_digests() != before
    runs.train(config(other, "r", 3), resume=True, quiet=True)


def test_a_comparison_finds_other_golds_unfair(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    write(file, 11)
    a = runs.train(config(file, "a", 1), quiet=True)
    b = runs.train(config(file, "b", 1, "rloo"), quiet=True)
    assert "prompts and golds of the data" in compare([a, b]).fairness.same
    write(file, 11, wrong=1)
    c = runs.train(config(file, "c", 1, "ppo"), quiet=True)
    found = [each.title for each in compare([a, c]).fairness.findings if each.level == "unfair"]
    assert "The data for training are not the same" in found


def test_a_run_goes_on_with_its_own_model(tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(resolve("embedded:xs"), model)
    write(tmp_path / "d.jsonl", 11)
    first = config(tmp_path / "d.jsonl", "r", 1)
    folder = runs.train(first.model_copy(update={"model": ModelConfig(path=str(model))}), quiet=True)
    resumed = load(str(folder / "config.yaml"), ["steps=2"])
    (model / "README.md").write_text("Only words.")
    (model / "generation_config.json").write_text("{}")
    check_same_model(resumed)

    file = model / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + bytes(4))  # one weight
    with pytest.raises(ConfigError, match=r"the model of .* has changed since it began: model\.safetensors in .*/m\. "):
        runs.train(resumed, resume=True, quiet=True)
    file.write_bytes(whole)
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has changed since it began: tokenizer\.json"):
        check_same_model(resumed)


def test_a_run_goes_on_with_its_own_critic(tmp_path: Path) -> None:
    critic = tmp_path / "c"
    shutil.copytree(resolve("embedded:xs"), critic)
    write(tmp_path / "d.jsonl", 11)
    first = config(tmp_path / "d.jsonl", "r", 1, "ppo")
    folder = runs.train(first.model_copy(update={"critic": CriticConfig(path=str(critic))}), quiet=True)
    resumed = load(str(folder / "config.yaml"), ["steps=2"])
    check_same_model(resumed)
    shape = json.loads((critic / "config.json").read_text())
    (critic / "config.json").write_text(json.dumps(shape | {"rms_norm_eps": 0.1}))
    with pytest.raises(ConfigError, match=r"the critic of .* has changed since it began: config\.json in .*/c\. "):
        runs.train(resumed, resume=True, quiet=True)


def test_a_run_that_goes_on_with_another_commit_of_the_hub_s_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {file.name: file.read_bytes() for file in Path(resolve("embedded:xs")).iterdir() if file.is_file()}
    with hub_server.hub(offers=files) as server:
        hub_server.used(server, tmp_path / "cache", monkeypatch)
        hub.fetch_model("org/there")
        write(tmp_path / "d.jsonl", 11)
        first = config(tmp_path / "d.jsonl", "r", 1)
        folder = runs.train(first.model_copy(update={"model": ModelConfig(path="org/there")}), quiet=True)
        resumed = load(str(folder / "config.yaml"), ["steps=2"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_same_model(resumed)
        monkeypatch.setattr(hub_server, "SHA", "1" * 40)
        hub.fetch_model("org/there")
        with pytest.warns(UserWarning, match=r"the hub's org/there is another .*: commit 0{40} then, 1{40} now"):
            runs.train(resumed, resume=True, quiet=True)
