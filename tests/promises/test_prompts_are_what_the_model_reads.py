"""What the plan says of prompts is what stands in the rollouts, and what `rlkit sample` and `eval` give a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import rlkit
from rlkit.assembly import run as runs
from rlkit.cli import main
from rlkit.config import load
from rlkit.generation.transformers import _Transformers
from rlkit.records.folder import RunFolder

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}{% if add_generation_prompt %}"
    "[assistant]{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


def model(folder: Path, chat: str | None) -> Path:
    """A byte-level model whose tokenizer puts <s> before a text and </s> behind it."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = chat
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=1024, tie_word_embeddings=True,
            eos_token_id=257, bos_token_id=None, pad_token_id=None,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def settings(tmp_path: Path, prompts: list[Any], *more: str) -> list[str]:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return [
        "embedded_xs",
        f"model.path={tmp_path / 'model'}",
        f"data.path={data}",
        "data.answer=null",
        "sampler=transformers",
        "sampling.max_tokens=4",
        "batch.prompts_per_step=4",
        "batch.samples_per_prompt=2",
        "steps=1",
        "reward.kind=length",
        "reward.max_tokens=4",
        "reward.buffer=2",
        f"out={tmp_path}",
        "name=r",
        *more,
    ]


def seen(run: Path) -> set[str]:
    """The prompts in a run's rollouts, special tokens and all."""
    tokenizer = AutoTokenizer.from_pretrained(RunFolder(run).newest_model())
    return {tokenizer.decode(list(tokens)) for tokens in pq.read_table(run / "rollouts")["prompt_tokens"].to_pylist()}


def test_base_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model(tmp_path / "model", None)
    preset, *overrides = settings(tmp_path, ["a\nb", "<s>c" + "x" * 400])
    config = load(preset, overrides)
    runs.train(config)
    said = " ".join(capsys.readouterr().out.split())
    assert r"first prompt <s>a\n b its gold" in said
    assert "prompts <s> begins each, once where it came twice (1); </s>, which the tokenizer adds behind" in said
    assert "end tokens </s> (257)" in said
    assert seen(tmp_path / "r") == {"<s>a\nb", "<s>c" + "x" * 400}


def test_a_long_first_prompt_is_cut_in_the_middle(tmp_path: Path) -> None:
    model(tmp_path / "model", None)
    asked = settings(tmp_path, ["first" + "\n" * 99 + "x" * 700 + "last"])
    planned = CliRunner().invoke(main, ["run", "--algo", "grpo", "--dry-run", *asked]).output
    lines = [line.strip() for line in planned.splitlines()]
    at = lines.index("first prompt  <s>first\\n")
    assert lines[at + 1 : at + 25] == ["\\n"] * 15 + ["[... 76 lines ...]"] + ["\\n"] * 7 + ["x" * 700 + "last"]


def test_chat_models_and_their_template_s_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "model", CHAT)
    prefill = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "So"}]
    suite = tmp_path / "suite.py"
    suite.write_text(
        "from rlkit.evaluation.suites import Suite\n"
        "from rlkit.registry import suite\n"
        "@suite('pair')\n"
        "def pair() -> Suite:\n"
        "    'Two'\n"
        "    rows = [{'prompt': 'p', 'answer': '1'}, {'prompt': 'q', 'answer': '2'}]\n"
        "    return Suite(load=lambda folder: rows, template='{prompt}?', reward='exact')\n"
    )
    arguments = "data.chat_template_kwargs={enable_thinking: false}"
    preset, *overrides = settings(
        tmp_path, ["q", prefill], arguments, f"plugins=[{suite}]", "eval.suites=[pair]", "eval.problems=2"
    )
    asked: list[str] = []
    generate = _Transformers.generate
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")

    def listening(self: Any, requests: Any) -> Any:
        asked.extend(tokenizer.decode(list(request.prompt_tokens)) for request in requests)
        return generate(self, requests)

    monkeypatch.setattr(_Transformers, "generate", listening)
    runs.train(load(preset, overrides), quiet=True)
    off = "[/][assistant]<think></think>"
    assert seen(tmp_path / "r") == {f"<s>[user]q{off}", "<s>[user]a[/][assistant]So"}
    assert {f"<s>[user]p?{off}", f"<s>[user]q?{off}"} <= set(asked)

    asked.clear()
    rlkit.Run(tmp_path / "r").sample("hello")
    assert asked == [f"<s>[user]hello{off}"]

    evaluate = ["eval", "--suite", "pair", "--plugin", str(suite), "--max-tokens", "4", "-s", "sampler=transformers"]
    for of, more, end in [
        ("r", [], off),
        ("r", ["-s", "chat_template_kwargs={}"], "[/][assistant]"),
        ("model", [], "[/][assistant]"),
        ("model", ["-s", "chat_template_kwargs={enable_thinking: false}"], off),
    ]:
        asked.clear()
        out = tmp_path / f"eval-{of}-{len(more)}"
        done = CliRunner().invoke(main, [*evaluate, "--model", str(tmp_path / of), "--out", str(out), *more])
        assert done.exit_code == 0, done.output
        assert set(asked) == {f"<s>[user]p?{end}", f"<s>[user]q?{end}"}, (of, more)
