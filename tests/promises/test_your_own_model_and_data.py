"""Any causal model folder and any file of questions train by config alone."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from byte_model import byte_model
from click.testing import CliRunner
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3ForCausalLM

from rlkit.cli import main
from rlkit.records.folder import RunFolder

GSM8K = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_model(tmp_path_factory.mktemp("byte_level"))


def train(tmp_path: Path, settings: dict[str, object]) -> RunFolder:
    common = {
        "algo": "grpo", "steps": 2, "reward": "final_answer", "out": str(tmp_path), "name": "mine",
        "batch": {"prompts_per_step": 4, "samples_per_prompt": 2}, "sampling": {"max_tokens": 24},
        "optimizer": {"lr": 1e-3}, "eval": {"problems": 8},
    }  # fmt: skip
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(common | settings))
    result = CliRunner().invoke(main, ["run", str(file)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return RunFolder.open(tmp_path / "mine")


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"needs GSM8K's train set at {GSM8K}")
def test_gsm8k_with_a_byte_level_tokenizer(byte_level: Path, tmp_path: Path) -> None:
    run = train(
        tmp_path,
        {
            "model": {"path": str(byte_level), "dtype": "float32"},
            "data": {
                "path": str(GSM8K), "prompt": "question", "answer": "answer", "max_prompt_tokens": 400,
                "template": "Question: {prompt}\nAnswer (the number after ####):",
            },
            "sampling": {"max_tokens": 24, "stop": ["\n"]},
        },
    )  # fmt: skip
    table = pq.read_table(run.rollout_file(2)).to_pydict()
    assert len(table["tokens"]) == 8
    prompt = bytes_of(table["prompt_tokens"][0])
    assert prompt.startswith("Question: ")
    assert prompt.endswith("####):")
    assert all(len(tokens) <= 400 for tokens in table["prompt_tokens"])
    newline = sorted(pre_tokenizers.ByteLevel.alphabet()).index("Ċ") + 1
    assert all(newline not in tokens[:-1] for tokens in table["tokens"])
    assert [m["sampler/gap_max"] < 1e-4 for m in run.read_metrics() if "sampler/gap_max" in m] == [True, True]
    # What it trained loads again as any other model.
    AutoModelForCausalLM.from_pretrained(sorted(run.checkpoints.glob("step-*"))[-1] / "hf")


def test_prompts_over_length_are_dropped_and_counted(byte_level: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{i}?", "answer": "1"} for i in range(5)] + [{"prompt": "long " * 100, "answer": "2"}] * 3
    data.write_text("\n".join(map(json.dumps, rows)))
    result = CliRunner().invoke(
        main,
        ["run", "--dry-run", "-s", f"data.path={data}", "-s", f"model.path={byte_level}", "-s",
         "data.max_prompt_tokens=50"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "5 problems (3 with prompts over the length limit dropped)" in result.output


def test_a_chat_model_reads_its_template(byte_level: Path, tmp_path: Path) -> None:
    model = tmp_path / "chat"
    Qwen3ForCausalLM.from_pretrained(byte_level).save_pretrained(model)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(byte_level)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"prompt": "1+1?", "answer": "2"}, {"prompt": "2+2?", "answer": "4"}]))
    run = train(
        tmp_path,
        {
            "model": {"path": str(model), "dtype": "bfloat16"},
            "engine": {"zero_stage": 2},
            "data": {"path": str(data), "system": "Be brief.", "eval_path": str(data)},
        },
    )
    prompts = {bytes_of(p) for p in pq.read_table(run.rollout_file(1)).to_pydict()["prompt_tokens"]}
    assert prompts == {f"<system>Be brief.\n<user>{n}+{n}?\n<assistant>" for n in (1, 2)}
    assert "eval/heldout/mean@1" in run.read_metrics()[-1]


def bytes_of(tokens: list[int]) -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return decoders.ByteLevel().decode([alphabet[token - 1] for token in tokens])
