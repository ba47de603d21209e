from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

import rlkit
from rlkit import config as configs
from rlkit.cli import main
from rlkit.records.folder import RunFolder

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ["steps=1", "batch.prompts_per_step=4", "eval.problems=8", f"out={tmp_path_factory.mktemp('runs')}"]
    return rlkit.train(configs.load("embedded_xs", settings), quiet=True).folder


def test_sample_answers_a_prompt_and_a_seed_repeats_it(run: Path) -> None:
    said = [invoke("sample", str(run), "47+85=", "-n", "3", "--seed", seed).output for seed in ("1", "1", "2")]
    assert said[0] == said[1] != said[2]
    assert len(said[0].splitlines()) == 3


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the suites' files in {SHARED}")
def test_suites_are_measured_during_training(tmp_path: Path) -> None:
    settings = ["steps=2", "batch.prompts_per_step=2", "eval.problems=4", "eval.every=1", f"out={tmp_path}"]
    suites = ["eval.suites=[math500, gsm8k]", f"eval.suite_data={SHARED}", "noise=[{kind: group_flip, prob: 1.0}]"]
    metrics = RunFolder.open(rlkit.train(configs.load("embedded_xs", settings + suites), quiet=True)).read_metrics()
    for row in metrics:
        assert {f"eval/{name}/mean@1" for name in ("heldout", "math500", "gsm8k")} <= row.keys()
        assert row["eval/math500/no_value"] == 0
    assert metrics[-1]["reward/disturbed"] == 1.0


def test_export_gives_a_folder_that_trains_further(run: Path, tmp_path: Path) -> None:
    assert invoke("export", str(run), str(tmp_path / "model")).exit_code == 0
    again = invoke("export", str(run), str(tmp_path / "model"))
    assert again.exit_code == 2
    assert "exists already" in again.output
    settings = [f"model.path={tmp_path / 'model'}", "steps=1", "batch.prompts_per_step=4", f"out={tmp_path}"]
    rlkit.train(configs.load("embedded_xs", [*settings, "eval.problems=8"]), quiet=True)


def test_what_a_run_has_made_may_be_garbage_when_it_is_over(run: Path) -> None:
    assert gc.get_freeze_count() == 0


def test_what_holds_no_checkpoint_cannot_be_sampled_from(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(configs.load("embedded").dump()))
    result = invoke("sample", str(tmp_path), "1+1=")
    assert result.exit_code == 1
    assert "holds no checkpoint" in result.output


def test_config_cp_makes_a_preset_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    assert invoke("config", "cp", "embedded", str(mine)).exit_code == 0
    assert invoke("config", "show", "embedded").output == mine.read_text()
    assert invoke("config", "cp", "embedded", str(mine)).exit_code == 2
    validated = invoke("config", "validate", str(mine), "-s", "steps=7")
    assert yaml.safe_load(validated.output)["steps"] == 7
    assert yaml.safe_load(validated.output)["algo"]["actor_ratio"] == 0.0125


def test_config_ls_has_a_line_for_each_preset() -> None:
    lines = invoke("config", "ls").output.splitlines()
    assert len(lines) == len(configs.presets())
    assert all(len(line.split()) > 3 for line in lines)


def test_config_schema_is_json() -> None:
    assert "optimizer" in json.loads(invoke("config", "schema").output)["properties"]


def test_list_shows_each_built_in_algorithm_with_its_paper() -> None:
    result = invoke("list", "algorithms")
    assert result.exit_code == 0
    assert "vimpo" in result.output
    assert "2606.20008" in result.output
    assert "[rlkit-rlvr 0.1.0]" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reward"], "no kind of plugins is called 'reward'; did you mean 'rewards'?"),
        (["algorithm", "grpo"], "did you mean 'algorithms'?"),
        (["math"], "did you mean `rlkit list rewards math`?"),
        (["foo"], "no kind of plugins is called 'foo'; known: advantages, algorithms, environments, losses"),
        (["presets"], "presets are no plugins: `rlkit config ls` lists them, and `rlkit config show NAME` prints one"),
        (["presets", "embedded"], "`rlkit config show NAME` prints one"),
        (["rewards", "mth"], "unknown reward 'mth'; did you mean 'math'?"),
    ],
)
def test_list_of_what_there_is_not_names_the_nearest(arguments: list[str], said: str) -> None:
    result = invoke("list", *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_a_dry_run_leaves_nothing_behind(tmp_path: Path) -> None:
    result = invoke("run", "--dry-run", "--out", str(tmp_path / "runs"), "--seed", "5")
    assert result.exit_code == 0
    assert "vimpo-s-seed5" in result.output
    assert not list(tmp_path.iterdir())
