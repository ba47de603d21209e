"""`rlkit export`: folders that others load, what their card says, and how they get to the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from hub_server import hub
from huggingface_hub import ModelCard
from made_run import healthy
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlkit
from rlkit import config as configs
from rlkit.assembly.export import export
from rlkit.cli import main
from rlkit.records.checkpoints import Manifest
from rlkit.records.folder import RunFolder
from rlkit.report.card import Exported, card, hub_id


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run of two steps on a model in a folder."""
    folder = tmp_path_factory.mktemp("lora")
    shutil.copytree(rlkit.embedded.resolve("embedded:xs"), folder / "base")
    (folder / "base" / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# Base\n")
    settings = [
        "steps=2", "batch.prompts_per_step=4", "eval.problems=8", "optimizer.lr=1e-2", f"model.path={folder}/base",
        "model.lora.rank=4", f"out={folder}", "name=run", "noise=[{kind: group_flip, prob: 0.25}]",
    ]  # fmt: skip
    return rlkit.train(configs.load("embedded_xs", settings, algo="grpo"), quiet=True).folder


def test_a_lora_run_gives_its_adapter_or_the_merged_model(lora: Path, tmp_path: Path) -> None:
    assert invoke("export", str(lora), str(tmp_path / "adapter")).exit_code == 0
    assert invoke("export", str(lora), str(tmp_path / "merged"), "--merged").exit_code == 0
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "adapter")("47+85=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours = adapter(input_ids=tokens).logits
        torch.testing.assert_close(ours, merged(input_ids=tokens).logits)
        with adapter.disable_adapter():
            assert (adapter(input_ids=tokens).logits - ours).abs().max() > 1e-3


def test_a_card_says_where_a_model_comes_from(lora: Path, tmp_path: Path) -> None:
    there = ModelCard.load(export(lora, tmp_path / "mine", base="org/base") / "README.md")
    metadata = there.data.to_dict()
    assert metadata["license"] == "mit"
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("org/base", "adapter")
    assert metadata["library_name"] == "peft"
    assert {"rlkit", "grpo", "lora"} <= set(metadata["tags"])
    assert "datasets" not in metadata
    before, after = (row["eval/heldout/mean@1"] for row in RunFolder.open(lora).read_metrics() if row["step"] in (0, 2))
    for said in (
        "[org/base](https://huggingface.co/org/base)",
        "| noise on the reward | `group_flip` (prob 0.25) |",
        "[arXiv 2402.03300](https://arxiv.org/abs/2402.03300)",
        "LoRA of rank 4, alpha 32 |",
        "| 2, each of 4 prompts x 8 samples, and 1 update |",
        f"| held-out mean@1 | {before:.3f} | {after:.3f} (step 2) | 8 problems x 1 sample |",
        "rlkit 0.1.0",
        "@software{rlkit,",
    ):
        assert said in there.text, said
    assert (tmp_path / "mine" / "learning_curve.png").stat().st_size > 1000
    assert json.loads((tmp_path / "mine" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"


def test_a_card_has_the_settings_without_what_is_private(lora: Path, tmp_path: Path) -> None:
    text = (export(lora, tmp_path / "mine", base="org/base") / "README.md").read_text()
    settings = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert settings["model"]["path"] == "base"
    assert settings["batch"]["prompts_per_step"] == 4
    assert str(lora.parent) not in "".join(file.read_text() for file in (tmp_path / "mine").glob("*.[mj]*"))
    assert configs.resolve(configs.load({**settings, "model": {"path": "embedded:xs"}})).algo.kind == "grpo"


def test_a_card_has_what_eval_found_and_names_what_is_on_the_hub(tmp_path: Path) -> None:
    settings = [
        "model.path=org/base", "data={path: org/data, subset: main, template: 'Q: {prompt}', eval_path: org/other}",
        "sampling.stop=['|']", "steps=80", "reward=[{kind: math, weight: 0.5}, length]",
    ]  # fmt: skip
    run = RunFolder.create(tmp_path / "run", configs.load("embedded_xs", settings, algo="vimpo_auto"))
    for step, row in enumerate(healthy(), 1):
        run.log_metrics(step, row)
    (run.checkpoints / "step-00000080" / "hf").mkdir(parents=True)
    (run.checkpoints / "step-00000080" / "manifest.json").write_text(Manifest().text())
    result = {
        "problems": 500, "samples": 4, "metrics": {"mean@4": {"value": 0.5, "low": 0.45, "high": 0.55}},
    }  # fmt: skip
    (run.evaluations / "step-00000080").mkdir(parents=True)
    (run.evaluations / "step-00000080" / "results.json").write_text(json.dumps({"math500": result}))
    exported = Exported(name="me/mine", base="org/base", license=None, adapter=False, chat=True)
    there = ModelCard(card(run, exported))
    metadata = there.data.to_dict()
    assert metadata["datasets"] == ["org/data", "org/other"]
    assert (metadata["base_model_relation"], metadata["library_name"]) == ("finetune", "transformers")
    assert "license" not in metadata
    for said in (
        "# mine",
        'AutoModelForCausalLM.from_pretrained("me/mine", dtype="float32")',
        'as plain text, temperature 1, at most 32 tokens a response, which "|" ends too',
        "```text\nQ: {prompt}\n```",
        "| math500 | mean@4 | 0.5 | 0.45 to 0.55 | 500 problems x 4 samples |",
        "0.5 x `math`",
        "| not measured |",
    ):
        assert said in there.text, said
    assert "arxiv" not in there.text, "vimpo_auto has no paper"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("openai/gsm8k", "openai/gsm8k"),
        ("hf://datasets/LLM360/guru-RL-92k/train/math.parquet", "LLM360/guru-RL-92k"),
        ("data/train.jsonl", None),
        ("/home/me/model", None),
        ("embedded:s", None),
        ("tests/unit", None),
        ("gpt2", None),
    ],
)
def test_what_has_a_name_on_the_hub(path: str, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert hub_id(path) == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--push", "a b/c"], "--push a b/c: Repo id must use alphanumeric chars"),
        (["--push", "mine"], "--push mine: give whose it is too, as in ORG/mine"),
        (["--push", "org/mine", "--base", "x/y/z"], "--base x/y/z: Repo id"),
        (["--push", "org/mine"], "which nobody who loads the adapter has. Say what that model is called on the hub"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_it_is_written(
    arguments: list[str], said: str, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = invoke("export", str(lora), str(tmp_path / "mine"), *arguments)
    assert (result.exit_code, said in result.output) == (2, True), result.output
    assert not (tmp_path / "mine").exists()


def test_nothing_is_pushed_without_a_token(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    result = invoke("export", str(lora), str(tmp_path / "mine"), "--push", "org/mine", "--merged")
    assert result.exit_code == 2
    assert "--push needs a token of the Hugging Face hub: `hf auth login`, or set HF_TOKEN" in result.output


def test_a_run_whose_checkpoint_has_no_adapter_is_told_to_merge(lora: Path, tmp_path: Path) -> None:
    shutil.copytree(lora, tmp_path / "run")
    for adapter in (tmp_path / "run" / "checkpoints").glob("*/adapter"):
        shutil.rmtree(adapter)
    result = invoke("export", str(tmp_path / "run"), str(tmp_path / "mine"))
    assert result.exit_code == 1
    assert "holds no adapter alone" in result.output
    assert "Give --merged" in result.output
    assert not (tmp_path / "mine").exists()


def pushed(lora: Path, folder: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """By a process of its own: huggingface_hub reads where the hub is when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret", "HF_HOME": str(folder.parent)}
    command = [sys.executable, "-m", "rlkit", "export", str(lora), str(folder), "--push", "org/mine", "--base", "a/b"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_push_uploads_all_of_the_folder(lora: Path, tmp_path: Path) -> None:
    with hub() as server:
        done = pushed(lora, tmp_path / "mine", server.url)
    assert done.returncode == 0, done.stderr
    assert f"{server.url}/org/mine (public where it is new" in done.stdout
    assert server.made == [{"name": "mine", "organization": "org"}], "as visible as the hub makes it"
    assert server.tokens == {"Bearer hf_secret"}
    assert server.files == {file.name: file.read_bytes() for file in (tmp_path / "mine").iterdir()}
    assert '.from_pretrained("org/mine"' in server.files["README.md"].decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the hub does not take the token: `hf auth login`, or set HF_TOKEN"),
        (403, "the token may not write there: it needs the right to write to org"),
        (500, "the hub answers 500: "),
        (0, "the hub cannot be reached, or HF_HUB_OFFLINE forbids it"),
    ],
)
def test_a_push_that_fails_leaves_the_folder(status: int, said: str, lora: Path, tmp_path: Path) -> None:
    with hub(refuse=status) as server:
        if status == 0:
            server.close()
        done = pushed(lora, tmp_path / "mine", server.url)
    assert done.returncode == 1
    assert f"org/mine cannot be pushed: {said}" in done.stderr
    assert f"hf upload org/mine {tmp_path / 'mine'}" in done.stderr
    assert (tmp_path / "mine" / "README.md").is_file()


@pytest.mark.parametrize("part", ["adapter", "hf"])
def test_weights_that_have_rotted_are_not_exported(part: str, lora: Path, tmp_path: Path) -> None:
    shutil.copytree(lora, tmp_path / "run")
    (weights,) = (tmp_path / "run" / "checkpoints").glob(f"*/{part}/*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = invoke("export", str(tmp_path / "run"), str(tmp_path / "mine"))
    assert result.exit_code == 1, result.output
    assert f"{weights.name} is not what was written" in result.output
    assert f"Delete {weights.parent}, and `rlkit run --resume {tmp_path / 'run'}` writes it anew" in result.output
    assert not (tmp_path / "mine").exists()
