"""wandb and TensorBoard mirror what a run logs: read back from the files they really write."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from wandb_files import wandb_records

from rlkit import registry
from rlkit.config import load
from rlkit.errors import ConfigError
from rlkit.tracking import RunInfo, wandb
from rlkit.tracking.tensorboard import tensorboard


def info(path: Path) -> RunInfo:
    path.mkdir()
    return RunInfo(name="a run", folder=path, config=load("embedded_xs", ["seed=7"], "grpo").dump(), steps=80)


SAMPLES = [{"prompt": "47+85=", "response": "#132", "reward": 1.0, "answer": "132"}]


@pytest.mark.usefixtures("no_wandb_key")
def test_wandb_without_a_key_writes_offline_what_was_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = info(tmp_path / "run")
    tracker = registry.build("trackers", "wandb", {"tags": ["smoke"]}, run)
    for step in (1, 2):
        tracker.log(step, {"reward/mean": step / 10, "eval/heldout/mean@1": 0.5})
        tracker.log_samples(step, SAMPLES)
    tracker.close()
    again = registry.build("trackers", "wandb", {}, run)
    again.close()

    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("wandb: offline (no key")
    assert "wandb sync" in said[0]
    first, second = sorted((run.folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    assert first.name == second.name, "a resumed run goes on under its id"
    records = list(wandb_records(first))
    begun = next(record.run for record in records if record.HasField("run"))
    assert begun.project == "rlkit"
    assert begun.display_name == "a run"
    assert begun.run_group == "grpo-embedded:xs-embedded:arithmetic"
    assert set(begun.tags) == {"grpo", "embedded:xs", "embedded:arithmetic", "noise=none", "seed=7", "smoke"}
    settings = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert settings["seed"] == 7
    assert settings["algo"]["kind"] == "grpo"
    steps = [
        {
            item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records
        if record.HasField("history")
    ]
    assert [(row["step"], row["reward/mean"]) for row in steps] == [(1, 0.1), (2, 0.2)]
    tables = list(first.parent.glob("files/media/table/samples_*.table.json"))
    rows = sorted(tuple(row) for table in tables for row in json.loads(table.read_text())["data"])
    assert rows == [(step, "47+85=", "#132", 1.0, "132") for step in (1, 2)]


def begun(folder: Path) -> Any:
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    give_up = time.monotonic() + 30  # wandb's own process writes it, and may be behind
    while True:
        for record in wandb_records(file):
            if record.HasField("run"):
                return record.run
        assert time.monotonic() < give_up
        time.sleep(0.1)


@pytest.mark.usefixtures("no_wandb_key")
def test_where_the_config_is_silent_wandbs_variables_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"PROJECT": "my-lab", "ENTITY": "our-team", "RUN_GROUP": "ablation", "NAME": "first"}
    given |= {"TAGS": "a, b", "MODE": "offline"}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    registry.build("trackers", "wandb", {}, info(tmp_path / "silent")).close()
    run = begun(tmp_path / "silent")
    assert (run.project, run.run_group, run.display_name) == ("my-lab", "ablation", "first")
    assert {"a", "b", "grpo", "seed=7"} <= set(run.tags)
    said = capsys.readouterr().out
    assert "offline (WANDB_MODE)" in said
    for name in (
        "my-lab (WANDB_PROJECT)",
        "our-team (WANDB_ENTITY)",
        "ablation (WANDB_RUN_GROUP)",
        "first (WANDB_NAME)",
        "a, b (WANDB_TAGS)",
    ):
        assert name in said

    settings = {"project": "mine", "group": "its own", "tags": ["c"]}
    monkeypatch.delenv("WANDB_NAME")
    registry.build("trackers", "wandb", settings, info(tmp_path / "says")).close()
    run = begun(tmp_path / "says")
    assert (run.project, run.run_group, run.display_name) == ("mine", "its own", "a run")
    assert "c" in run.tags
    assert "a" not in run.tags
    assert "WANDB_PROJECT" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_wandb_key")
def test_a_wandb_key_is_found_in_the_environment_and_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wandb.has_key()
    (tmp_path / "netrc").write_text("machine elsewhere.org login user password x\n")
    assert not wandb.has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert wandb.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not wandb.has_key()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb.has_key()


@pytest.mark.usefixtures("no_wandb_key")
def test_a_key_that_wandb_refuses_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    with pytest.raises(ConfigError, match=r"tracker wandb: .*WANDB_MODE=offline"):
        registry.build("trackers", "wandb", {}, info(tmp_path / "run"))


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_whose_package_is_missing_says_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"pip install 'rlkit-rlvr\[{name}\]'"):
        registry.build("trackers", name, {}, info(tmp_path / "run"))


def test_an_unknown_option_of_wandb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'projct'.*'project'"):
        registry.build("trackers", "wandb", {"projct": "x"}, info(tmp_path / "run"))


def test_tensorboard_reads_back_and_hides_what_is_made_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = info(tmp_path / "run")
    tracker = tensorboard(run)
    for step in range(1, 5):
        tracker.log(step, {"reward/mean": step / 10})
    tracker.log_samples(4, SAMPLES)
    tracker.close()
    again = tensorboard(run)
    again.log(3, {"reward/mean": 0.75})
    again.log_samples(3, SAMPLES)
    again.close()

    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    scalars = [(event.step, pytest.approx(event.value)) for event in events.Scalars("reward/mean")]
    assert scalars == [(1, 0.1), (2, 0.2), (3, 0.75)]
    said = events.Tensors("samples/0/text_summary")[-1]
    assert said.step == 3
    assert b"47+85=#132" in said.tensor_proto.string_val[0]


def test_tensorboard_takes_texts_that_have_no_utf_8(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = info(tmp_path / "run")
    tracker = tensorboard(run)
    tracker.log_samples(
        1, [{**SAMPLES[0], "prompt": "half \ud800 of a pair", "response": "\udfff", "answer": "\ud83d"}]
    )
    tracker.close()
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    said = events.Tensors("samples/0/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "half \\ud800 of a pair\\udfff" in said
    assert "answer \\ud83d" in said
