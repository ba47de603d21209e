"""A run's stop texts, of several tokens, end what it samples in training, in its evaluations, and when it is asked
later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sampler_help import naive_end
from transformers import AutoTokenizer

import rlkit
from rlkit.assembly import run as runs
from rlkit.cli import main
from rlkit.config import load
from rlkit.embedded import resolve
from rlkit.generation.transformers import _Transformers
from rlkit.interfaces.generation import Completion

STOP = ["# 1", "# 2", "00"]
SUITE = """
from rlkit.evaluation.suites import Suite
from rlkit.registry import suite

@suite("sums")
def sums() -> Suite:
    "Sums"
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(60, 66) for b in (27, 48)]
    return Suite(load=lambda folder: rows, template="{prompt}", reward="final_answer", samples=4)
"""


def test_stop_texts_hold_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded:xs"))
    assert all(len(tokenizer.encode(text, add_special_tokens=False)) > 1 for text in STOP)
    drawn: list[Completion] = []
    generate = _Transformers.generate

    def listening(self: Any, requests: Any) -> Any:
        for index, completion in generate(self, requests):
            drawn.append(completion)
            yield index, completion

    monkeypatch.setattr(_Transformers, "generate", listening)

    def ended() -> int:
        """How many of those drawn since were ended by a stop text; none of them goes on past one."""
        ends = [naive_end(tokenizer, completion.tokens, STOP) for completion in drawn]
        for completion, end in zip(drawn, ends, strict=True):
            assert end in (None, len(completion.tokens))
            assert end is None or not completion.truncated
        drawn.clear()
        return len([end for end in ends if end is not None])

    file = tmp_path / "suite.py"
    file.write_text(SUITE)
    overrides = [
        *("algo=grpo", "steps=1", "sampler=transformers", "sampling.max_tokens=24", "eval.problems=12"),
        *("batch.prompts_per_step=8", "batch.samples_per_prompt=4", f"plugins=[{file}]", "eval.suites=[sums]"),
        *(f"out={tmp_path}", "name=r", f"sampling.stop={json.dumps(STOP)}"),
    ]
    run = runs.train(load("embedded_xs", overrides), quiet=True)
    assert ended() > 30

    rows = pq.read_table(run / "rollouts").to_pylist()
    found = [row for row in rows if naive_end(tokenizer, row["tokens"], STOP)]
    assert found
    for row in found:
        assert any(text in row["response"] for text in STOP), "what a reward reads holds the stop text"
        assert all(row["mask"]), "its last token is learnt from"
        assert not row["truncated"]

    rlkit.Run(run).sample("61+47=", n=8)
    assert ended() > 0

    evaluate = ["eval", "--model", str(run), "--suite", "sums", "--plugin", str(file), "--max-tokens", "24"]
    said = CliRunner().invoke(main, evaluate).output
    assert 'ended by "# 1", "# 2", "00"' in said
    assert ended() > 10
    (results,) = run.rglob("results.json")
    assert json.loads(results.read_text())["sums"]["settings"]["stop"] == STOP
    other = CliRunner().invoke(main, [*evaluate, "-s", 'stop=["00"]'])
    assert other.exit_code == 2
    assert "stop was ['# 1', '# 2', '00'] and is now ['00']" in other.output

    off = CliRunner().invoke(main, [*evaluate, "-s", "stop=[]", "--out", str(tmp_path / "off")])
    assert off.exit_code == 0
    assert "ended by" not in off.output
    assert any(naive_end(tokenizer, c.tokens, STOP) not in (None, len(c.tokens)) for c in drawn)
