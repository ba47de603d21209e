"""A sweep in wandb: its runs, its comparison, and its definition as wandb's own agent reads it. All of it offline."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from click.testing import CliRunner
from wandb_files import wandb_records

from rlkit import config as configs
from rlkit import registry
from rlkit.assembly import ending
from rlkit.assembly import run as runs
from rlkit.cli import main
from rlkit.config import RunConfig
from rlkit.errors import ConfigError
from rlkit.records.folder import RunFolder
from rlkit.sweeps import spec as specs
from rlkit.sweeps.spec import SweepConfig
from rlkit.sweeps.sweep_folder import SweepFolder, SweepRun
from rlkit.sweeps.wandb_sweep import definition, grouped
from rlkit.sweeps.wandb_sweep import log_comparison as log_sweep_s_comparison
from rlkit.tracking import RunInfo
from rlkit.tracking.wandb import WandbConfig, log_comparison

SMALL = ["batch.prompts_per_step=2", "batch.samples_per_prompt=2", "eval.problems=2", "sampling.max_tokens=8"]


def read_back(folder: Path) -> tuple[Any, dict[str, Any], dict[str, Any], Path]:
    """wandb's record of the one run below `folder`, its config, what it logged last, and where its files are."""
    wandb.teardown()  # what a process does at its end: only then is the file whole
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(file))
    run = next(record.run for record in records if record.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    history = [record.history for record in records if record.HasField("history")]
    logged = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in history[-1].item}
    return run, config, logged, file.parent / "files"


@pytest.mark.usefixtures("no_wandb_key")
def test_the_runs_of_a_sweep_lie_over_each_other_in_wandb(tmp_path: Path) -> None:
    command = [
        *("sweep", "--algos", "vimpo,grpo", "--seeds", "3", "--noise", "group_flip:0.25", "--base", "embedded_xs"),
        *("-s", "trackers=[{kind: wandb, tags: [mine]}]", "-s", "steps=2", "--jobs", "2", "--name", "both"),
        *(part for setting in SMALL for part in ("-s", setting)),
    ]
    subprocess.run([sys.executable, "-m", "rlkit", *command, "--out", str(tmp_path)], check=True, timeout=200)
    sweep = SweepFolder.open(tmp_path / "both")
    for planned in sweep.runs:
        run, config, logged, _ = read_back(sweep.run_folder(planned))
        assert (run.project, run.run_group, run.display_name) == ("rlkit", "both", planned.name)
        assert (config["algorithm"], config["noise"], config["seed"]) == (planned.arm, "group_flip:0.25", 3)
        assert config["algo"]["kind"] == planned.arm
        given = {"noise=group_flip:0.25", "seed=3", "mine"}
        assert set(run.tags) == {planned.arm, "embedded:xs", "embedded:arithmetic"} | given
        assert logged["step"] == 2
    assert {planned.arm for planned in sweep.runs} == {"vimpo", "grpo"}

    run, _, logged, _ = read_back(sweep.path / "comparison")
    assert (run.project, run.run_group, run.job_type) == ("rlkit", "both", "comparison")
    assert set(run.tags) == {"comparison", "mine"}
    assert {"tables/arms", "pictures/comparison", "pages/comparison"} <= {
        name.rpartition("/_type")[0] or name for name in logged
    }


@pytest.mark.usefixtures("no_wandb_key")
def test_names_that_are_too_long_for_wandb_are_cut(tmp_path: Path) -> None:
    noise = [{"kind": "asymmetric", "false_positive": 0.125, "false_negative": 0.25}] * 4
    config = configs.load("embedded_xs").dump() | {"noise": noise, "name": "n" * 200}
    tracker = registry.build("trackers", "wandb", {}, RunInfo(name="n" * 200, folder=tmp_path, config=config, steps=1))
    tracker.log(1, {"reward/mean": 0.5})
    tracker.close()
    run, config, _, _ = read_back(tmp_path)
    assert run.display_name == "n" * 128
    assert max(map(len, run.tags)) == 64
    assert config["noise"] == "+".join(["asymmetric:0.125,0.25"] * 4)


@pytest.mark.usefixtures("no_wandb_key")
def test_a_comparison_s_files_are_a_run_of_the_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    page = "<!doctype html><html><head></head><body>who is ahead</body></html>"
    (tmp_path / "comparison.html").write_text(page)
    Image.new("RGB", (30, 20), "white").save(tmp_path / "comparison.png")
    (tmp_path / "arms.csv").write_text('arm,seeds,final,note\nvimpo,8,0.5,\n"grpo, lr=0.1",8,,0\n')
    (tmp_path / "pairs.csv").write_text("")
    log_comparison(tmp_path, WandbConfig(project="addition", tags=["mine"]), "noise")

    assert "upload with `wandb sync" in capsys.readouterr().out
    run, _, logged, files = read_back(tmp_path)
    assert (run.project, run.run_group, run.job_type) == ("addition", "noise", "comparison")
    assert run.display_name == "noise comparison"
    assert set(run.tags) == {"comparison", "mine"}
    assert {key: value for key, value in logged.items() if key.endswith("_type")} == {
        "tables/arms/_type": "table-file",
        "pictures/comparison/_type": "image-file",
        "pages/comparison/_type": "html-file",
    }
    table = json.loads((files / logged["tables/arms/path"]).read_text())
    assert table["columns"] == ["arm", "seeds", "final", "note"]
    assert table["data"] == [["vimpo", 8, 0.5, None], ["grpo, lr=0.1", 8, None, 0]]
    assert (logged["pictures/comparison/width"], logged["pictures/comparison/height"]) == (30, 20)
    picture = files / logged["pictures/comparison/path"]
    assert picture.read_bytes() == (tmp_path / "comparison.png").read_bytes()
    assert (files / logged["pages/comparison/path"]).read_text() == page


def test_the_comparison_of_a_sweep_without_wandb_stays_here(tmp_path: Path) -> None:
    runs = [SweepRun(name=name, arm="grpo", condition="none", seed=0) for name in ("died", "ended")]
    sweep = SweepFolder(tmp_path, runs)
    sweep.write_plan()
    RunFolder.create(sweep.run_folder(runs[1]), configs.load("embedded_xs", ["trackers=[tensorboard]"]))
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "arms.csv").write_text("arm,final\ngrpo,0.5\n")
    log_sweep_s_comparison(tmp_path)
    assert [file.name for file in (tmp_path / "comparison").iterdir()] == ["arms.csv"]


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no comparison"):
        log_comparison(tmp_path, WandbConfig(), "noise")


class Agent:
    """wandb's own agent, and what it would start or starts."""

    def __init__(self, sweep: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from wandb import wandb_agent

        self.sweep, self.module = sweep, wandb_agent
        self.started: list[tuple[list[str], str]] = []
        for name, value in {"SWEEP_ID": "s1", "DIR": str(folder), "RUN_ID": "", "SWEEP_PARAM_PATH": ""}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)  # the agent changes them
        self.agent = wandb_agent.Agent(None, None, sweep_id="s1")
        self.agent._sweep_command = sweep["command"]

    def run(self, run_id: str, values: dict[str, Any]) -> None:
        arguments = {key: {"value": value} for key, value in values.items()}
        self.agent._command_run({"run_id": run_id, "program": self.sweep["program"], "args": arguments})


def catch_runs(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """What `rlkit run` would train from here on."""
    caught: list[RunConfig] = []

    def train(config: RunConfig, **_: Any) -> Path:
        caught.append(config)
        return Path()

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(ending, "summary", lambda _: "")
    return caught


def combinations(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    values = [each["values"] for each in sweep["parameters"].values()]
    return [dict(zip(sweep["parameters"], row, strict=True)) for row in itertools.product(*values)]


def plain(config: RunConfig) -> dict[str, Any]:
    return configs.resolve(config).model_copy(update={"name": None, "out": Path()}).dump()


SWEEPS: dict[str, dict[str, Any]] = {
    "a preset, noises, a grid": {
        "algos": "vimpo,grpo", "seeds": "0-1", "noise": "none,asymmetric:0.1,0.2,flip:0.25+drop:0.1",
        "set": {"trackers": ["tensorboard", {"kind": "wandb", "project": "addition"}], "steps": 3},
        "grid": {"optimizer.lr": [1e-4, 1e-5], "eval.problems": [2, 4]},
    },
    "every kind of value": {
        "algos": {"grpo": {"algo.clip_low": 0.1}},
        "set": {"trackers": ["wandb"], "data.template": 'Say "${x}": {prompt}\n', "plugins": []},
        "grid": {
            "model.lora": [None, {"rank": 4}], "model.gradient_checkpointing": [True, False],
            "data.system": ["null", "1e3", "be brief: {", "plain"], "optimizer.betas": [[0.9, 0.99]],
        },
    },
    "a base of one's own, with options": {
        "base": {
            **yaml.safe_load(configs.presets()["embedded_xs"]),
            "algo": {"kind": "vimpo", "beta": 0.125}, "name": "mine",
        },
        "algos": "grpo,vimpo", "noise": "none,flip:0.25", "set": {"trackers": ["wandb"]},
    },
}  # fmt: skip


@pytest.mark.usefixtures("no_wandb_key")
@pytest.mark.parametrize("name", SWEEPS)
def test_an_agent_s_runs_are_those_of_the_sweep(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = specs.load(None, {"base": "embedded_xs", **SWEEPS[name]})
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", by_alias=True)))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["sweep", "spec.yaml", "--name", "mine", "--wandb-sweep", "wandb.yaml"])
    assert done.exit_code == 0, done.output
    assert "wandb sweep wandb.yaml" in done.output
    assert not Path("runs").exists()
    agent = Agent(yaml.safe_load(Path("wandb.yaml").read_text()), tmp_path, monkeypatch)
    assert (agent.sweep["method"], agent.sweep["name"]) == ("grid", "mine")

    class Process:
        def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
            agent.started.append((command, env["WANDB_RUN_ID"]))

    monkeypatch.setattr(agent.module, "AgentProcess", Process)
    begun = catch_runs(monkeypatch)
    for number, values in enumerate(combinations(agent.sweep)):
        agent.run(f"id{number}", values)
        (*start, rlkit), arguments = agent.started[-1][0][:2], agent.started[-1][0][2:]
        assert (start, rlkit) == (["/usr/bin/env"], "rlkit")
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output

    wanted = []
    for arm, seed in itertools.product(specs.arms(spec), spec.seeds):
        config = arm.config(spec, seed, tmp_path, "x", {})
        trackers = [grouped(ref, "mine") for ref in config.trackers]
        wanted.append(plain(config.model_copy(update={"trackers": trackers})))
    got = [plain(config) for config in begun]
    assert len(got) == len(wanted)
    assert sorted(map(json.dumps, got)) == sorted(map(json.dumps, wanted))
    assert {config.out for config in begun} == {Path("runs/mine")}
    assert len({config.run_name for config in begun}) == len(begun), "each has a folder of its own"


@pytest.mark.usefixtures("no_wandb_key")
def test_a_run_that_an_agent_starts_belongs_to_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"algos": "grpo", "base": "embedded_xs", "noise": "flip:0.25", "seeds": [4]}
    settings: dict[str, Any] = dict(specs.parse_values(setting) for setting in [*SMALL, "steps=1"])
    spec = specs.load(None, {**given, "set": {key: values[0] for key, values in settings.items()}})
    agent = Agent(definition(spec, tmp_path / "mine", "embedded_xs"), tmp_path, monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (values,) = combinations(agent.sweep)
    agent.run("abc123", values)
    assert agent.agent._run_processes["abc123"].wait(timeout=120) == 0

    run, config, logged, _ = read_back(tmp_path / "mine" / "grpo-xs-seed4-abc123")
    assert (run.run_id, run.sweep_id, run.run_group) == ("abc123", "s1", "mine")
    assert run.display_name == "grpo-xs-seed4-abc123"
    assert (config["algorithm"], config["seed"], config["algo.kind"]) == ("grpo", 4, "grpo")
    assert "noise=flip:0.25" in run.tags
    assert logged["step"] == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tune": {"optimizer.lr": [1, 2]}, "tune_seeds": [9]}, "cannot say tune"),
        ({"zip": {"steps": [1, 2]}, "list": [{"steps": 1}, {"steps": 2}]}, "cannot say zip, list"),
        ({"algos": {"vimpo": {"algo.beta": 0.1}, "grpo": {}}}, "cannot say settings of an algorithm's own"),
        ({"grid": {"trackers": [[], ["wandb"]]}}, "trackers cannot be a grid's"),
        ({"algos": "grpo,vimpa"}, "vimpa.*vimpo"),
        ({"grid": {"algo.beta": [1, 2]}}, "beta"),
    ],
)
def test_what_a_wandb_sweep_cannot_say_is_refused(given: dict[str, Any], said: str) -> None:
    spec: SweepConfig = specs.load(None, {"algos": "vimpo,grpo", "base": "embedded_xs", **given})
    with pytest.raises(ConfigError, match=said):
        definition(spec, Path("mine"), "embedded_xs")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run"], "--wandb-sweep makes no runs"),
        (["--jobs", "2"], "--wandb-sweep makes no runs"),
        ([], "there.yaml exists already"),
    ],
)
def test_a_definition_takes_nobody_s_place(arguments: list[str], said: str, tmp_path: Path) -> None:
    file = tmp_path / "there.yaml"
    file.write_text("mine")
    done = CliRunner().invoke(main, ["sweep", "--algos", "grpo", "--wandb-sweep", str(file), *arguments])
    assert done.exit_code == 2
    assert said in done.output
    assert file.read_text() == "mine"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> RunConfig:
    begun = catch_runs(monkeypatch)
    done = CliRunner().invoke(main, ["run", *words])
    assert done.exit_code == 0, done.output
    return begun[0]


def test_settings_may_stand_after_the_config_and_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch) == configs.load("embedded")
    assert run(monkeypatch, "steps=3", "seed=1") == configs.load("embedded", ["steps=3", "seed=1"])
    assert run(monkeypatch, "embedded_xs", "algo.kind=grpo", "-s", "steps=3") == configs.load(
        "embedded_xs", ["algo.kind=grpo", "steps=3"]
    )
    monkeypatch.chdir(tmp_path)
    Path("beta=0.1.yaml").write_text(configs.presets()["embedded_xs"])
    assert run(monkeypatch, "beta=0.1.yaml", "steps=3") == configs.load("embedded_xs", ["steps=3"])
    assert run(monkeypatch, "./beta=0.1.yaml") == configs.load("embedded_xs")


def test_a_second_config_is_a_usage_error() -> None:
    done = CliRunner().invoke(main, ["run", "embedded_xs", "steps=3", "embedded"])
    assert done.exit_code == 2
    assert "'embedded': expected KEY=VALUE, as in optimizer.lr=1e-4" in done.output
