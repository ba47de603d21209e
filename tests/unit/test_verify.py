"""Verifiers held against each other and against recorded verdicts, on runs and on files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from transformers import AutoTokenizer

import rlkit
from rlkit import config as configs
from rlkit import embedded
from rlkit.cli import main
from rlkit.commands.evaluate import evaluate as eval_command
from rlkit.commands.evaluate import verify as verify_command
from rlkit.config import RewardRef, ScoringConfig
from rlkit.errors import ConfigError, RlkitError, TokensUnknownError
from rlkit.evaluation import verify
from rlkit.evaluation.gold_check import bad_golds

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
    with verify.scorer([RewardRef(kind="final_answer")], one_worker) as verifier:
        assert [str(b) for b in bad_golds(verifier, golds)] == ["row 3: empty (bad_gold)"]
    with verify.scorer([RewardRef(kind="math")], one_worker) as verifier:
        assert [b.row for b in bad_golds(verifier, golds)] == [3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    small = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4", "steps=1", f"out={out}"]
    return rlkit.train(configs.load("embedded_xs", small), quiet=True).folder


def test_a_runs_rollouts_get_the_verdicts_they_had(run: Path) -> None:
    answered = verify.read(run)
    assert len(answered) == 16
    said = invoke(run, "--reward", "final_answer")
    assert said.exit_code == 0, said.exception
    assert "final_answer and recorded agree on 100.00%" in said.output


def test_a_run_s_plugins_are_imported_where_they_are_named(run: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "ones.py"
    plugin.write_text(
        "from rlkit import reward\n@reward('ones_verify')\ndef ones(samples): return [1.0] * len(samples)\n"
    )
    there = tmp_path / "run"
    shutil.copytree(run, there)
    config = yaml.safe_load((there / "config.yaml").read_text())
    (there / "config.yaml").write_text(yaml.safe_dump({**config, "plugins": [str(plugin)]}))
    unnamed = invoke(there, "--reward", "ones_verify")
    assert isinstance(unnamed.exception, ConfigError)
    assert "unknown reward 'ones_verify'. The run had plugins, which are not imported unless" in str(unnamed.exception)
    assert f"add --plugin {plugin}" in str(unnamed.exception)
    assert invoke(there, "--reward", "ones_verify", "--plugin", str(plugin)).exit_code == 0


def test_a_run_is_evaluated_by_its_newest_model(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"problem": f"{i}+1=", "answer": str(i + 1)} for i in range(30)]
    (folder / "aime25.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--suite", "aime25", "-n", "1", "--limit", "2", "--max-tokens", "8", "--data", str(folder)]
    said = CliRunner().invoke(eval_command, ["--model", str(run), *options])
    assert said.exit_code == 0, said.exception
    (results,) = (run / "eval").glob("*/results.json")
    found = json.loads(results.read_text())["aime25"]
    assert found["problems"] == 2
    assert str(run) in found["settings"]["model"]


def test_the_tokens_that_a_run_stored_are_the_samples(run: Path) -> None:
    stored = pq.read_table(run / "rollouts" / "step-000001.parquet", columns=["tokens"]).to_pydict()["tokens"]
    answered = verify.read(run)
    assert [list(a.sample.tokens) for a in answered] == stored
    assert all(stored)
    assert "tokens" not in answered[0].sample.columns


def test_the_readmes_reward_knows_long_responses(tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    plugin = tmp_path / "brief.py"
    plugin.write_text(readme.split("```python\n# brief.py\n")[1].split("```")[0])
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    rows = [
        {"prompt": "5+7=", "response": "12", "answer": "12", "correct": True, "tokens": [3] * n, "truncated": False}
        for n in (2, 20, 21, 400)
    ]
    pq.write_table(pa.Table.from_pylist(rows), run / "rollouts" / "step-000001.parquet")
    said = invoke(run, "--reward", "brief", "--plugin", plugin)
    assert said.exit_code == 0, said.exception
    assert "brief: 2 correct (50.0%)" in said.output
    assert "step-000001 row 3: brief wrong, recorded correct" in said.output
    assert "step-000001 row 4: brief wrong, recorded correct" in said.output


SHORT = """
from rlkit import reward


@reward("short")
def short(samples):
    return [float(len(s.tokens) <= 4) for s in samples]
"""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugin") / "short_reward.py"
    file.write_text(SHORT)
    return file


def test_a_file_without_tokens_needs_a_model_where_a_reward_reads_them(tmp_path: Path, short: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))
    file = write(tmp_path, [row | {"tokens": 3} for row in ROWS])  # how many is not which
    command = ["verify", str(file), "--reward", "short", "--reward", "exact", "--plugin", str(short)]
    said = CliRunner().invoke(main, command)
    assert said.exit_code == 2
    assert said.stderr == (
        f"rlkit: reward 'short' reads a response's tokens, which {file} does not hold: give the model whose tokens "
        "they are, with --model\n"
    )
    said = CliRunner().invoke(main, [*command, "--model", "embedded:xs"])
    assert said.exit_code == 0, said.output
    encoded = [tokenizer.encode(row["response"], add_special_tokens=False) for row in ROWS]
    few = sum(len(tokens) <= 4 for tokens in encoded)
    assert 0 < few < len(ROWS)
    assert f"short: {few} correct" in said.output
    assert [a.sample.tokens for a in verify.read(file, tokenizer=tokenizer)] == encoded


def test_a_file_may_hold_tokens(tmp_path: Path, short: Path) -> None:
    file = write(tmp_path, [{"response": "x", "answer": "", "tokens": [1] * n} for n in (3, 4, 5)])
    said = invoke(file, "--reward", "short", "--plugin", short)
    assert "short: 2 correct" in said.output
    # They are those of the column `response` alone.
    other = [{"said": "x", "response": "y", "answer": "", "tokens": [1]}]
    said = invoke(write(tmp_path, other), "--reward", "short", "--plugin", short, "--response", "said")
    assert isinstance(said.exception, TokensUnknownError)


def test_a_run_takes_no_model(run: Path) -> None:
    said = CliRunner().invoke(main, ["verify", str(run), "--reward", "exact", "--model", "embedded:xs"])
    assert said.exit_code == 2
    assert f"{run} is a run, and holds the tokens that were sampled: leave out --model" in said.stderr


def test_a_reward_that_reads_tokens_checks_no_golds(tmp_path: Path, short: Path) -> None:
    file = write(tmp_path, [{"prompt": "1+1=", "answer": "2"}])
    said = CliRunner().invoke(main, ["data", "check", str(file), "--reward", "short", "--plugin", str(short)])
    assert said.exit_code == 2
    assert said.stderr == (
        "rlkit: reward 'short' reads a response's tokens, and a gold has none: it cannot say which golds are sound\n"
    )


def test_a_verifier_that_fails_on_all_is_an_error(tmp_path: Path) -> None:
    plugin = tmp_path / "broken_reward.py"
    plugin.write_text(
        "from rlkit import reward\n\n@reward('text')\ndef text(samples):\n    return ['x' for _ in samples]\n"
    )
    said = invoke(write(tmp_path, ROWS), "--reward", "text", "--plugin", plugin)
    assert isinstance(said.exception, RlkitError)
    assert "reward 'text'" in str(said.exception)


def test_options_of_a_reward_and_the_mean_of_a_graded_one(tmp_path: Path) -> None:
    plugin = tmp_path / "graded.py"
    plugin.write_text(
        "from rlkit import reward\n@reward('verify_graded')\ndef graded(samples, *, share: float = 0.5):\n"
        "    return [1.0 if s.answer in s.response else share for s in samples]\n"
    )
    file = write(tmp_path, [{"response": "so 12", "answer": "12"}, {"response": "#### 1", "answer": "7"}])
    arguments = [file, "--plugin", plugin, "--reward", "verify_graded"]
    said = invoke(*arguments)
    assert "verify_graded: 1 correct (50.0%)" in said.output
    assert "verify_graded: 0.75 on average" in said.output
    assert "0.6 on average" in invoke(*arguments, "-s", "reward.share=0.2").output
    assert "0.6 on average" in invoke(*arguments, "--reward", "math", "-s", "verify_graded.share=0.2").output
    assert "average" not in invoke(file, "--reward", "math").output
    found = invoke(file, "--reward", "math", "-s", "reward.strict=true", "--json", tmp_path / "found.json")
    assert found.exit_code == 0
    assert json.loads((tmp_path / "found.json").read_text())["rewards"]["math"]["statuses"] == {"no_answer": 1, "ok": 1}
    for wrong, message in (
        ("reward.shre=1", "did you mean 'share'"),
        ("reward.share=much", "verify_graded.share"),
        ("share=1", "as in -s verify_graded.OPTION=VALUE"),
        ("math.strict=true", "as in -s verify_graded.OPTION=VALUE"),
    ):
        refused = invoke(*arguments, "-s", wrong)
        assert isinstance(refused.exception, ConfigError)
        assert message in str(refused.exception)
