"""Verifiers held against each other and against recorded verdicts, on runs and on files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import rlkit
from rlkit import config as configs
from rlkit.commands.evaluate import evaluate as eval_command
from rlkit.commands.evaluate import verify as verify_command
from rlkit.config import PluginRef, ScoringConfig
from rlkit.errors import ConfigError, RlkitError
from rlkit.evaluation import verify
from rlkit.evaluation.golds import bad_golds

ROWS = [
    {"response": "so #### 12", "answer": "12", "expected": True},
    {"response": "12", "answer": "12", "expected": True},
    {"response": "so #### 12.0", "answer": "12", "expected": 0},
    {"response": "no idea", "answer": "7", "expected": "false"},
]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(verify_command, [str(a) for a in arguments])


def test_agreement_and_disagreements_of_two_verifiers_and_the_data(tmp_path: Path) -> None:
    answered = verify.read(write(tmp_path, ROWS), expected="expected")
    found = verify.compare(answered, ["final_answer", "exact"])
    assert found["rewards"]["final_answer"] == {
        "correct": 2,
        "no_value": 0,
        "statuses": {"ok": 2, "no_answer": 2},
    }
    assert found["rewards"]["exact"]["correct"] == 1
    pairs = {tuple(p["between"]): p for p in found["agreement"]}
    assert pairs["final_answer", "exact"]["share"] == 0.25
    assert pairs["final_answer", "exact"]["only_final_answer"] == 2
    assert pairs["final_answer", "exact"]["only_exact"] == 1
    assert pairs["final_answer", "expected"]["share"] == 0.5
    assert pairs["exact", "expected"] == {
        "between": ["exact", "expected"],
        "share": 0.75,
        "both_correct": 1,
        "both_wrong": 2,
        "only_exact": 0,
        "only_expected": 1,
    }
    assert [row["where"] for row in found["disagreements"]] == ["row 1", "row 2", "row 3"]
    assert found["disagreements"][2]["verdicts"] == {"final_answer": True, "exact": False, "expected": False}


def test_the_command_lists_disagreements_and_writes_json(tmp_path: Path) -> None:
    file, out = write(tmp_path, ROWS), tmp_path / "out.json"
    said = invoke(file, "--reward", "final_answer", "--reward", "exact", "--show", 1, "--json", out)
    assert said.exit_code == 0, said.output
    assert "final_answer and exact agree on 25.00%" in said.output
    assert "3 disagreements, the first 1" in said.output
    assert "row 1: final_answer correct, exact wrong; gold '12'" in said.output
    assert json.loads(out.read_text())["rows"] == 4


def test_other_column_names(tmp_path: Path) -> None:
    rows = [{"prediction": "#### 1", "extra": {"gold": "1"}}]
    said = invoke(
        write(tmp_path, rows), "--reward", "final_answer", "--response", "prediction", "--answer", "extra.gold"
    )
    assert "1 correct (100.0%)" in said.output


def test_no_value_counts_as_wrong_and_is_reported(tmp_path: Path) -> None:
    rows = [{"response": "#### 1", "answer": ""}] * 4
    said = invoke(write(tmp_path, rows), "--reward", "final_answer")
    assert "0 correct (0.0%); status: 4 bad_gold" in said.output
    assert "4 without a value, counted as wrong" in said.output


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, ROWS)
    for options, message in [
        (["--answer", "anser"], "no column 'anser'; did you mean 'answer'.*Set --answer"),
        (["--response", "text"], "no column 'text'.*Set --response"),
        (["--expected", "verdict"], "no column 'verdict'.*Set --expected"),
        (["--expected", "response"], "expected a verdict"),
        (["--reward", "final_answer"], "each only once"),
        (["--reward", "maths"], "unknown reward 'maths'; did you mean 'math'"),
    ]:
        said = invoke(file, "--reward", "final_answer", *options)
        assert isinstance(said.exception, ConfigError), (options, said.output)
        assert said.exception.exit_code == 2
        assert re.search(message, str(said.exception)), (message, str(said.exception))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="is no run: it holds no rollouts"):
        verify.read(tmp_path / "empty")


def test_a_gold_is_sound_in_one_form_or_another() -> None:
    golds: list[tuple[str, dict[str, Any]]] = [("12", {}), ("worked out: #### 12", {}), ("", {}), (r"\frac{1}{2}", {})]
    one_worker = ScoringConfig(workers=1)
    with verify.scorer(PluginRef(kind="final_answer"), one_worker) as verifier:
        assert [str(b) for b in bad_golds(verifier, golds)] == ["row 3: empty (bad_gold)"]
    with verify.scorer(PluginRef(kind="math"), one_worker) as verifier:
        assert [b.row for b in bad_golds(verifier, golds)] == [3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    small = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4", "steps=1", f"out={out}"]
    return rlkit.train(configs.load("embedded_xs", small), quiet=True)


def test_a_runs_rollouts_get_the_verdicts_they_had(run: Path) -> None:
    answered = verify.read(run)
    assert len(answered) == 16
    said = invoke(run, "--reward", "final_answer")
    assert said.exit_code == 0, said.exception
    assert "final_answer and recorded agree on 100.00%" in said.output


def test_a_run_is_evaluated_by_its_newest_model(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"problem": f"{i}+1=", "answer": str(i + 1)} for i in range(30)]
    (folder / "aime25.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--suite", "aime25", "--n", "1", "--limit", "2", "--max-tokens", "8", "--data", str(folder)]
    said = CliRunner().invoke(eval_command, ["--model", str(run), *options])
    assert said.exit_code == 0, said.exception
    (results,) = (run / "eval").glob("*/results.json")
    found = json.loads(results.read_text())["aime25"]
    assert found["problems"] == 2
    assert str(run) in found["settings"]["model"]


def test_a_verifier_that_fails_on_all_is_an_error(tmp_path: Path) -> None:
    plugin = tmp_path / "broken_reward.py"
    plugin.write_text(
        "from rlkit import reward\n\n@reward('text')\ndef text(samples):\n    return ['x' for _ in samples]\n"
    )
    said = invoke(write(tmp_path, ROWS), "--reward", "text", "--plugin", plugin)
    assert isinstance(said.exception, RlkitError)
    assert "reward 'text'" in str(said.exception)
