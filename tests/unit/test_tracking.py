"""A run's folder and the learning curve: what is written can be read back."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rlkit import registry
from rlkit.config import PluginRef, RewardRef, RunConfig, load
from rlkit.errors import ConfigError
from rlkit.interfaces.learning import Rollout, TokenStats
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey
from rlkit.records.folder import RunFolder
from rlkit.records.provenance import plugin_files
from rlkit.report import curve
from rlkit.tracking import RunInfo


@registry.reward("tracked_length")
def tracked_length(samples: list[Sample]) -> list[float]:
    """A reward for these tests."""
    return [float(len(sample.response)) for sample in samples]


CONFIG: dict[str, Any] = {
    "algo": {"kind": "grpo"},
    "model": {"path": "embedded:xs", "dtype": "float32"},
    "data": {"path": "embedded:arithmetic"},
    "reward": "tracked_length",
    "seed": 7,
}


@pytest.fixture
def config() -> RunConfig:
    return load(CONFIG)


@pytest.fixture
def folder(tmp_path: Path, config: RunConfig) -> RunFolder:
    return RunFolder.create(tmp_path / "run", config)


def info(path: Path, name: str = "grpo-xs-seed7") -> RunInfo:
    path.mkdir(parents=True, exist_ok=True)
    return RunInfo(name=name, folder=path, config=load(CONFIG).dump(), steps=80)


def random_rollout(rows: int = 6, longest: int = 9) -> tuple[Rollout, list[str], list[RewardResult]]:
    length = torch.randint(1, longest + 1, (rows,))
    there = torch.arange(longest) < length[:, None]
    mask = there & (torch.rand(rows, longest) < 0.8)
    rollout = Rollout(
        keys=[SampleKey(f"prompt{row // 2}", 12, 0, row % 2) for row in range(rows)],
        prompt_tokens=[torch.randint(0, 50, (int(torch.randint(1, 5, ())),)) for _ in range(rows)],
        tokens=torch.randint(0, 50, (rows, longest)),
        length=length,
        mask=mask,
        valid=torch.rand(rows) < 0.8,
        group=torch.arange(rows) // 2,
        reward=torch.rand(rows),
        clean_reward=torch.rand(rows),
        sampler_logprobs=torch.randn(rows, longest) * mask,
        version=torch.full((rows,), 11),
        truncated=torch.rand(rows) < 0.5,
    )
    results = [RewardResult(value=1.0, correct=True, parts={"format": 0.5}, info={"parsed": "132"})] * (rows - 1)
    return rollout, [f"answer {row} é" for row in range(rows)], [*results, RewardResult(value=None, status="timeout")]


def write(folder: RunFolder, step: int, rollout: Rollout, texts: list[str], *rest: Any) -> None:
    prompts, answers = [["1+1="] * len(texts), ["2"] * len(texts)]
    results, stats = [*rest, None][:2]
    said = {"prompts": prompts, "answers": answers, "texts": texts, "results": results, "stats": stats}
    folder.log_rollout(step, rollout, rewards=noisy(rollout, results), **said)


def noisy(rollout: Rollout, results: list[RewardResult]) -> list[float | None]:
    pairs = zip(rollout.reward.tolist(), results, strict=True)
    return [None if result.value is None else reward for reward, result in pairs]


def test_a_folder_that_holds_a_run_is_refused(folder: RunFolder, config: RunConfig) -> None:
    write(folder, 1, *random_rollout())
    with pytest.raises(ConfigError, match=r"run already holds a run: .*--name.*--resume"):
        RunFolder.create(folder.path, config)


def test_a_folder_of_a_run_that_made_no_step_is_begun_anew(folder: RunFolder, config: RunConfig) -> None:
    folder.log_metrics(0, {"eval/heldout/mean@1": 0.5})
    assert RunFolder.create(folder.path, config).read_metrics() == []


def test_a_folder_that_cannot_be_made_says_so(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"cannot make the run's folder .*--out"):
        RunFolder.create(Path("/proc/runs"), config)


def test_the_first_samples_keep_what_was_computed_of_their_tokens(folder: RunFolder) -> None:
    rollout, texts, results = random_rollout()
    stats = TokenStats(logprobs=torch.randn(rollout.mask.shape))
    write(folder, 1, rollout, texts, results, stats)
    kept = pq.read_table(folder.rollout_file(1)).to_pydict()["logprobs"]
    assert kept[0] == stats.get("logprobs")[0, : rollout.length[0]].tolist()
    assert len(kept) == len(texts)


def test_a_folder_without_a_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run's folder"):
        RunFolder.open(tmp_path)


def test_the_config_reads_back_as_it_was(folder: RunFolder, config: RunConfig) -> None:
    assert RunFolder.open(folder.path).read_config() == config


def test_provenance_names_versions_plugins_and_seed(folder: RunFolder) -> None:
    record = json.loads(folder.provenance_file.read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert record["plugins"]["algorithms/grpo"].startswith("rlkit-rlvr ")
    assert record["plugins"]["rewards/tracked_length"] == "registered in this process"
    assert record["seed"] == 7
    assert record["cores"] >= 1
    assert record["resumed"] == []


def test_provenance_has_the_commit_of_the_working_directory(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outside = RunFolder.create(tmp_path / "outside", config)
    assert json.loads(outside.provenance_file.read_text())["git"] is None
    me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    (tmp_path / "tracked").write_text("before")
    for command in (["init"], ["add", "tracked"], [*me, "commit", "-m", "first"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    (tmp_path / "tracked").write_text("after")
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    inside = RunFolder.create(tmp_path / "inside", config)
    assert json.loads(inside.provenance_file.read_text())["git"] == {"commit": head, "changed": True}


def test_the_files_of_plugins_have_digests_of_the_newest_start(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file, module, judge, tool = (
        tmp_path / name for name in ("mine.py", "digested_module.py", "judge.py", "digested_tool.py")
    )
    for each in (file, module, judge, tool):
        each.write_text("def good(prompts, completions):\n    return [1.0]\n")
    registry.load(["mine.py", "digested_module"])
    reward = RewardRef(kind="function", path=str(judge), name="good")
    acting = PluginRef(kind="tools", tools=["python", "calculator", "digested_tool.py:good"])
    config = config.model_copy(
        update={"plugins": ["mine.py", "digested_module"], "reward": [reward], "environment": acting}
    )
    made = RunFolder.create(tmp_path / "run", config)
    before = made.read_plugin_digests()
    assert before == plugin_files(config)
    assert before.keys() == {str(file), str(module), str(judge), str(tool)}
    assert len({*before.values()}) == 1
    file.write_text("# edited\n")
    assert [name for name, digest in plugin_files(config).items() if digest != before[name]] == [str(file)]
    made.cut_after(0, config)
    assert made.read_plugin_digests() == plugin_files(config) != before


def test_metrics_read_back_and_stay_json(folder: RunFolder) -> None:
    folder.log_metrics(0, {"eval/heldout/mean@1": 0.25})
    folder.log_metrics(1, {"reward/mean": 0.1 + 0.2, "policy/kl": math.nan, "policy/loss": -math.inf})
    folder.log_metrics(1, {"eval/heldout/mean@1": 0.5})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = folder.metrics_file.read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["step"] for line in lines] == [0, 1, 1]
    before, after = folder.read_metrics()
    assert before == {"step": 0, "eval/heldout/mean@1": 0.25}
    assert after["reward/mean"] == 0.1 + 0.2
    assert after["eval/heldout/mean@1"] == 0.5
    assert math.isnan(after["policy/kl"])
    assert math.isnan(after["policy/loss"])


def test_every_sample_of_a_step_reads_back(folder: RunFolder) -> None:
    rollout, texts, results = random_rollout()
    write(folder, 12, rollout, texts, results)
    file = folder.path / "rollouts" / "step-000012.parquet"
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"
    rows = pq.read_table(file).to_pylist()
    assert len(rows) == len(texts)
    for number, row in enumerate(rows):
        length = int(rollout.length[number])
        assert SampleKey(row["prompt_id"], row["rollout_step"], row["occurrence"], row["index"]) == rollout.keys[number]
        assert row["prompt_tokens"] == rollout.prompt_tokens[number].tolist()
        assert row["tokens"] == rollout.tokens[number, :length].tolist()
        assert row["mask"] == rollout.mask[number, :length].tolist()
        assert row["sampler_logprobs"] == rollout.sampler_logprobs[number, :length].tolist()
        assert row["reward"] == noisy(rollout, results)[number]
        assert row["clean_reward"] == results[number].value
        assert row["replaced"] is False
        assert row["version"] == row["last_version"] == 11
        assert row["turns"] == [[0, len(row["tokens"])]]
        assert row["truncated"] == rollout.truncated[number].item()
        assert row["response"] == texts[number]
        assert row["status"] == results[number].status
        assert row["correct"] is results[number].correct
        assert dict(row["parts"]) == results[number].parts
        assert json.loads(row["info"]) == results[number].info


def test_dense_rewards_are_kept(folder: RunFolder) -> None:
    rollout, texts, results = random_rollout()
    rollout.token_reward = torch.rand(rollout.tokens.shape)
    write(folder, 1, rollout, texts, results)
    first = pq.read_table(folder.rollout_file(1))["token_reward"].to_pylist()[0]
    assert first == rollout.token_reward[0, : int(rollout.length[0])].tolist()


def test_texts_that_do_not_fit_the_samples_are_refused(folder: RunFolder) -> None:
    rollout, texts, results = random_rollout()
    with pytest.raises(ValueError, match="6 samples, but 5 texts"):
        write(folder, 1, rollout, texts[:-1], results)


def test_after_a_resume_nothing_is_there_twice(folder: RunFolder) -> None:
    for step in range(1, 6):
        folder.log_metrics(step, {"reward/mean": step / 10})
        write(folder, step, *random_rollout())
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 6, ')
    folder.cut_after(3, folder.read_config())
    folder.log_metrics(4, {"reward/mean": 0.99})
    assert [(row["step"], row["reward/mean"]) for row in folder.read_metrics()] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 0.99),
    ]
    assert sorted(file.name for file in folder.rollouts.iterdir()) == [
        f"step-00000{step}.parquet" for step in (1, 2, 3)
    ]
    assert [entry["after_step"] for entry in json.loads(folder.provenance_file.read_text())["resumed"]] == [3]


def history(steps: int) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = [{"step": 0, "eval/heldout/mean@1": 0.291}]
    for step in range(1, steps + 1):
        reward = 1 - math.exp(-step / 20)
        rows.append(
            {"step": step, "reward/mean": reward, "response/length": 14 + reward, "sampler/gap_max": 1e-6 * step}
        )
    rows[-1]["eval/heldout/mean@1"] = 0.914
    return rows


def test_the_curve_in_words() -> None:
    reward, rate = curve.text(history(20)).splitlines()
    rewards = [1 - math.exp(-step / 20) for step in range(1, 21)]
    tenths = " ".join(f"{(a + b) / 2:.2f}".replace("0.", ".") for a, b in zip(rewards[::2], rewards[1::2], strict=True))
    assert tenths in reward
    assert "steps 1 to 20" in reward
    assert "held-out mean@1: 0.291 (step 0) -> 0.914 (step 20)" in rate
    assert curve.sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert curve.text([]) == ""
    assert "steps 1 to 20" in curve.text([*history(20), {"step": 21, "reward/mean": math.nan}])


@pytest.mark.usefixtures("own_pictures")
@pytest.mark.parametrize("steps", [1, 3, 80])
def test_the_curve_as_a_picture(tmp_path: Path, steps: int) -> None:
    from matplotlib.image import imread

    curve.draw(history(steps), tmp_path / "curve.png", "a run")
    pixels = imread(tmp_path / "curve.png")[..., :3]
    blue, orange = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in (curve.TRAIN, curve.HELD_OUT))
    assert (np.abs(pixels - blue).max(-1) < 0.02).sum() > 50, "no train reward is drawn"
    assert (np.abs(pixels - orange).max(-1) < 0.02).sum() > 50, "no held-out pass rate is drawn"


@pytest.mark.usefixtures("own_pictures")
def test_a_run_without_a_step_can_be_drawn(tmp_path: Path) -> None:
    curve.draw([], tmp_path / "curve.png", "nothing yet")
    assert (tmp_path / "curve.png").stat().st_size > 0
