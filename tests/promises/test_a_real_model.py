"""A real model (135 M parameters, a tokenizer of 49,152 tokens, a chat template) is sampled, trained and exported."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from sampler_help import ask, largest_gap
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit import registry
from rlkit.cli import main
from rlkit.config import ModelConfig
from rlkit.interfaces.generation import Completion
from rlkit.records.folder import RunFolder

pytestmark = pytest.mark.real_model

ROOT = Path(__file__).resolve().parents[2]
GAP = 1e-4
NEEDS_VLLM = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
QUESTIONS = [
    ("A box holds 6 pens. Ann buys 4 boxes and gives 5 away. How many pens has she left?", "4 * 6 - 5 = 19\n#### 19"),
    ("Tom walks 12 km in 3 hours. How far does he walk in 5 hours?", "12 / 3 = 4, 4 * 5 = 20\n#### 20"),
]
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LETTERS = """
def letters(completions, **columns):  # of a model that is mostly wrong, answers teach nothing
    return [sum(map(str.isalpha, text)) / 100 for text in completions]
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        import small_model
    place = small_model.home()
    if not place.is_dir():
        pytest.skip(f"there is no model at {place}: `python tools/small_model.py` makes it (93 MB to download)")
    return place


def sampled(kind: str, folder: Path, prompts: list[list[int]]) -> list[Completion]:
    """The likeliest 16 tokens, in float32."""
    sampler = registry.build("samplers", kind, {}, ModelConfig(path=str(folder), dtype="float32"), 256, 0)
    try:
        return ask(sampler, prompts, list(range(len(prompts))), max_tokens=16, temperature=0.0)
    finally:
        sampler.close()


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["What is the capital of France?", "Name three colours."]
    return [tokenizer.encode(CHAT.format(text), add_special_tokens=False) for text in texts]


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_its_tokenizer_reads_digits_and_the_space_before_them_one_by_one(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("a  12\n\n345") == ["a", "ĠĠ", "1", "2", "ĊĊ", "3", "4", "5"]


@pytest.mark.parametrize("kind", ["transformers", pytest.param("vllm", marks=NEEDS_VLLM)])
def test_a_sampler_says_what_it_knows(kind: str, folder: Path, prompts: list[list[int]], model: Any) -> None:
    completions = sampled(kind, folder, prompts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.decode(completion.tokens) for completion in completions]
    assert texts[0].startswith("The capital of France is Paris")
    assert [completion.truncated for completion in completions] == [False, len(completions[1].tokens) == 16]
    # transformers' greedy search, token for token: both samplers say the same.
    for prompt, completion in zip(prompts, completions, strict=True):
        given = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
        assert completion.tokens == given[0, len(prompt) :].tolist()
    assert largest_gap(model, prompts, completions, 1.0) <= GAP


@NEEDS_VLLM
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param("vllm", ["model.dtype=float32"], id="all weights"),
        pytest.param("transformers", ["model.dtype=bfloat16", "model.lora.rank=4"], id="LoRA"),
    ],
)
def test_an_update_and_its_export(
    kind: str, settings: list[str], folder: Path, prompts: list[list[int]], model: Any, tmp_path: Path
) -> None:
    rows = [{"question": question, "answer": answer} for question, answer in QUESTIONS]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "letters.py").write_text(LETTERS)
    settings = [
        *settings, f"sampler={kind}", f"model.path={folder}", f"data.path={tmp_path}/data.jsonl", "data.eval_path=null",
        f"reward={{kind: function, path: {tmp_path}/letters.py, name: letters}}", f"out={tmp_path}", "name=run",
        "steps=1", "batch.prompts_per_step=2", "batch.samples_per_prompt=2", "sampling.max_tokens=16",
        "optimizer.lr=1e-3", "optimizer.warmup_updates=0",
    ]  # fmt: skip
    said = rlkit("run", "gsm8k_smollm2", *(part for setting in settings for part in ("-s", setting)))
    assert "end tokens    <|im_end|> (2)" in said
    run = RunFolder.open(tmp_path / "run")
    (step,) = [row for row in run.read_metrics() if "policy/loss" in row]
    assert step["policy/grad_norm"] > 0
    assert step["sampler/gap_mean"] < {"float32": GAP, "bfloat16": 0.1}[settings[0].removeprefix("model.dtype=")]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    read = tokenizer.decode(pq.read_table(run.rollout_file(1))["prompt_tokens"][0].as_py())
    assert re.search(r"<\|im_start\|>user\n.*####.*<\|im_end\|>\n<\|im_start\|>assistant\n$", read, re.DOTALL)

    export = tmp_path / "export"
    rlkit("export", str(run.path), str(export), "--merged")
    trained = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    assert largest_change(model, trained) > 1e-4
    assert trained.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert AutoTokenizer.from_pretrained(export).chat_template == tokenizer.chat_template
    # Each sampler reads one: "all weights" were sampled by vLLM, LoRA's by transformers.
    other = {"vllm": "transformers", "transformers": "vllm"}[kind]
    assert largest_gap(trained, prompts, sampled(other, export, prompts), 1.0) <= GAP


def rlkit(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def largest_change(one: Any, other: Any) -> float:
    weights: dict[str, Tensor] = dict(other.named_parameters())
    return max(float((weight - weights[name]).detach().abs().max()) for name, weight in one.named_parameters())
