"""What `rlkit data check` finds in a file: each fault planted, and found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from transformers import AutoTokenizer

from rlkit import embedded
from rlkit.commands.evaluate import data as data_commands
from rlkit.errors import ConfigError
from rlkit.evaluation import datacheck

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the suites' local copies (../shared/data) are not here")
LONG = "Find the sum of all the integer bases b for which it holds."


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A folder with one suite, whose problem 3 is LONG and whose problem 5 is short."""
    folder = tmp_path / "copies"
    folder.mkdir()
    texts = [f"Question number {i} of thirty, about nothing in particular?" for i in range(30)]
    texts[2], texts[4] = LONG, "What is $2+2$?"
    rows = [{"problem": text, "answer": "1"} for text in texts]
    (folder / "aime25.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(data_commands, ["check", *map(str, arguments)])


def test_planted_faults_are_found(tmp_path: Path, copies: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "1+1=", "answer": "2"},
        {"prompt": "1-1=", "answer": "0", "source": "mine"},
        {"prompt": " 1+1= ", "answer": ""},
        {"prompt": "", "answer": "3"},
        {"prompt": f"Solve this. {LONG.upper()} Answer in a box!", "answer": "4"},
        {"prompt": "what is 22", "answer": "5"},
        {"prompt": "Tell me, what is 2+2?", "answer": "6"},
    ]
    found = datacheck.check(write(tmp_path, rows), reward="final_answer", folder=copies)
    assert found["rows"] == 7
    assert found["columns"] == {"prompt": 7, "answer": 7, "source": 1}
    assert found["duplicates"] == [[1, 3]]
    assert found["empty_golds"] == [3]
    assert found["empty_prompts"] == [4]
    assert found["bad_golds"] == [{"row": 3, "gold": "", "status": "bad_gold"}]
    # Row 7 holds a problem of fewer than eight words, which is not looked for within others.
    assert found["overlap"]["aime25"] == [{"row": 5, "problem": 3}, {"row": 6, "problem": 5}]
    assert "math500" in found["suites_not_read"]
    text = datacheck.report(found)
    assert "overlap with aime25: 2: row 5 is problem 3; row 6 is problem 5" in text
    assert "overlap with aime24: NOT CHECKED" in text
    assert "nor with gsm8k, math500, olympiadbench" in text
    assert "give local copies with --data, or leave this out with --no-overlap" in text
    assert text.count("NOT CHECKED") == 1, "one reason is enough"
    assert "repeated prompts: 1: 1 = 3" in text
    assert "\n  empty golds in 1 row: 3\n" in text
    nothing = datacheck.report({**found, "empty_prompts": [], "empty_golds": [4, 6, 7]}, show=2)
    assert "\n  empty prompts: none\n  empty golds in 3 rows: 4, 6, ...\n" in nothing


def test_suites_can_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    result = CliRunner().invoke(data_commands, ["check", str(file), "--no-overlap"])
    assert result.exit_code == 0, result.output
    assert "rows" in result.output
    assert "overlap" not in result.output


def test_lengths_in_tokens_or_characters(tmp_path: Path, copies: Path) -> None:
    file = write(tmp_path, [{"prompt": "#### 1", "answer": "1"}, {"prompt": "12", "answer": "1"}])
    assert datacheck.check(file, folder=copies)["lengths"] == {
        "unit": "characters",
        "min": 2,
        "median": 2,
        "p95": 6,
        "max": 6,
    }
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))
    assert datacheck.check(file, folder=copies, tokenizer=tokenizer)["lengths"]["max"] == 2


def test_verls_parquet_is_read_unchanged(tmp_path: Path, copies: Path) -> None:
    rows = [
        {
            "data_source": "math",
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{LONG} Box it."}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "70"},
            "extra_info": {"index": 0},
        }
    ]
    file = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    said = invoke(file, "--data", copies, "--reward", "math", "--json", tmp_path / "found.json")
    assert said.exit_code == 0, said.exception
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["answer"] == "reward_model.ground_truth"
    assert found["bad_golds"] == []
    assert found["overlap"]["aime25"] == [{"row": 1, "problem": 3}]
    assert "overlap with aime25: 1: row 1 is problem 3" in said.output


def test_columns_that_are_not_there_are_named(tmp_path: Path, copies: Path) -> None:
    file = write(tmp_path, [{"prompt": "1", "gold": "1"}])
    with pytest.raises(ConfigError, match=r"none of the columns answer.*columns: prompt, gold.*Set --answer"):
        datacheck.check(file, folder=copies)
    with pytest.raises(ConfigError, match=r"no column 'promt'; did you mean 'prompt'.*Set --prompt"):
        datacheck.check(file, prompt="promt", answer="gold", folder=copies)
    assert datacheck.check(file, answer="gold", folder=copies)["rows"] == 1
    said = invoke(file, "--reward", "maths")
    assert isinstance(said.exception, ConfigError)
    assert "unknown reward 'maths'" in str(said.exception)
    with pytest.raises(ConfigError, match="does not exist"):
        datacheck.check(str(tmp_path / "nothing.jsonl"))


@needs_data
def test_clean_training_data_overlaps_nothing_and_planted_problems_are_found(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (DATA / "math_train_12k.jsonl").read_text().splitlines()[:2000]]
    planted = json.loads((DATA / "math500.jsonl").read_text().splitlines()[41])
    rows.insert(1000, {"problem": f"{planted['problem']}\nPut the answer into a box.", "answer": "1"})
    found = datacheck.check(write(tmp_path, rows), folder=DATA)
    assert found["suites_not_read"] == {}
    assert found["overlap"].pop("math500") == [{"row": 1001, "problem": 42}]
    assert set(map(len, found["overlap"].values())) == {0}


def test_prompts_that_the_model_goes_on_with_are_counted_and_golds_may_be_missing(tmp_path: Path, copies: Path) -> None:
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "So"}]
    file = write(tmp_path, [{"prompt": turns}, {"prompt": "2"}, {"prompt": turns[:1]}])
    found = datacheck.check(file, answer="null", folder=copies)
    assert (found["continued"], found["empty_golds"]) == (1, [])
    assert "prompts that end in an assistant's message, which the model goes on with: 1" in datacheck.report(found)
    some = write(tmp_path, [{"prompt": "1"}, {"prompt": "2", "answer": "3"}])
    found = datacheck.check(some, folder=copies)
    assert (found["answer"], found["empty_golds"], found["continued"]) == ("answer", [1], 0)
    assert "assistant's message" not in datacheck.report(found)
