"""A new run begins where another was: the same settings make the same run, and what differs is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from rlkit import config as configs
from rlkit.assembly import run as runs
from rlkit.assembly.fork import settings_of
from rlkit.cli import main
from rlkit.errors import RlkitError
from rlkit.records import checkpoints
from rlkit.records.folder import RunFolder

SMALL = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4", "checkpoint.every=2"]


def trained(out: Path, name: str, steps: int, algo: str = "ppo", *more: str) -> Path:
    config = configs.load("embedded_xs", [*SMALL, "checkpoint.keep=9", f"steps={steps}", f"out={out}", *more], algo)
    return runs.train(config.model_copy(update={"name": name}), quiet=True)


def forked(path: Path, name: str, *settings: str, algo: str | None = None) -> Path:
    run = RunFolder(checkpoints.parted(path)[0])
    config = configs.load(settings_of(run, algo, name), list(settings), algo)
    return runs.train(config, fork=path, quiet=True)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoints.path_of(run / "checkpoints", step) / "hf" / "model.safetensors")


def untimed(run: Path, *also: str) -> list[dict[str, float]]:
    left_out = {"time", "throughput", "memory", *also}
    return [
        {name: value for name, value in row.items() if name.partition("/")[0] not in left_out}
        for row in RunFolder.open(run).read_metrics()
    ]


def check_equal(one: Path, other: Path, step: int, *but: str) -> None:
    assert untimed(one, *but) == untimed(other, *but)
    theirs = weights(other, step)
    for name, weight in weights(one, step).items():
        assert torch.equal(weight, theirs[name]), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), "straight", 4)


def rlkit(*arguments: str, code: int) -> str:
    result = CliRunner().invoke(main, ["run", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_a_fork_with_the_same_settings_is_the_run_gone_on_and_leaves_it_as_it_was(straight: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in straight.rglob("*") if file.is_file()}
    fork = forked(straight / "checkpoints" / "step-00000002", "same")
    check_equal(fork, straight, 4)
    assert {file: file.stat().st_mtime_ns for file in straight.rglob("*") if file.is_file()} == before
    origin = RunFolder.open(fork).read_provenance()["from"]
    said = {"run": str(straight), "how": "fork", "checkpoint": "step-00000002", "step": 2, "differs": {}}
    assert origin == said


@pytest.mark.slow
def test_more_steps_are_the_longer_run(straight: Path, tmp_path: Path) -> None:
    longer = trained(tmp_path, "longer", 6)
    shutil.copytree(straight, tmp_path / "more")
    further = configs.load(str(straight / "config.yaml"), ["steps=6", f"out={tmp_path}", "name=more"])
    # Both are evaluated at their end, which for the shorter was step 4.
    check_equal(runs.train(further, resume=True, quiet=True), longer, 6, "eval")


@pytest.mark.slow
def test_a_fork_with_another_algorithm_takes_over_what_both_have(straight: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "-s", "steps=6"]
    said = rlkit("--fork", str(straight), "--algo", "grpo", "--name", "a", "-s", "optimizer.lr=1e-4", *out, code=0)
    assert f"a fork of {straight} after step 4\n  steps: 4 -> 6\n  algo.kind: ppo -> grpo\n" in said
    assert "\n  optimizer.lr: 0.0003 -> 0.0001\n" in said
    run = RunFolder.open(tmp_path / "a")
    assert run.read_provenance()["from"]["differs"]["algo.kind"] == ["ppo", "grpo"]
    assert [row["step"] for row in run.read_metrics()] == list(range(7))
    assert checkpoints.read_manifest(run.checkpoints / "step-00000006").engines.keys() == {"policy"}
    said = rlkit(
        "--fork", str(tmp_path / "a"), "--algo", "ppo", "--out", str(tmp_path), "-s", "steps=7", "--plain", code=0
    )
    assert "\n  the critic begins anew: the checkpoint holds none\n" in said
    again = RunFolder.open(tmp_path / "a-fork")
    assert checkpoints.read_manifest(again.checkpoints / "step-00000007").engines.keys() == {"policy", "critic"}


def test_what_cannot_be_is_refused(straight: Path, tmp_path: Path) -> None:
    first, last = (str(straight / "checkpoints" / f"step-0000000{step}") for step in (2, 4))
    said = rlkit("--resume", first, code=2)
    assert "the run has gone on to step-00000004, which would be lost" in said
    assert f"`rlkit run --fork {first}` begins another run from this one" in said
    assert "has done its 4 steps already: nothing to resume" in rlkit("--resume", last, code=2)
    said = rlkit("--resume", str(straight / "checkpoints" / "step-00000003"), code=2)
    assert "there is no such checkpoint; there are: step-00000002, step-00000004" in said
    assert "step-00000004 is after step 4, and the run would end after steps: 4: nothing to do" in rlkit(
        "--fork", str(straight), code=2
    )
    assert not straight.with_name("straight-fork").exists()
    assert "already holds a run" in rlkit("--fork", first, "--name", "straight", code=2)
    assert "no run is there" in rlkit("--fork", str(tmp_path), code=2)
    assert "give one of them" in rlkit("--fork", first, "--resume", first, code=2)
    assert "leave CONFIG out" in rlkit("embedded_xs", "--fork", first, code=2)
    said = rlkit("--fork", first, "-s", "model.path=embedded:s", code=2)
    assert "is not of this run's policy" in said


def test_a_run_of_another_rlkit_is_refused_with_its_version(straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    with (run / "config.yaml").open("a") as file:
        file.write("novelty: 1\n")
    assert "was made by rlkit" not in rlkit("--resume", str(run), code=2)
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["versions"]["rlkit"] = "9.1"
    (run / "provenance.json").write_text(json.dumps(provenance))
    for option in ("--resume", "--fork"):
        said = rlkit(option, str(run), code=2)
        assert "novelty" in said
        assert f"{run} was made by rlkit 9.1, and this is rlkit " in said


@pytest.mark.parametrize(("rank", "says"), [("0", True), ("1", False)])
def test_a_mistyped_command_is_said_by_one_rank(rank: str, says: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert ("No such option" in rlkit("--no-such-option", code=2)) == says


def test_a_run_that_was_killed_before_it_saved_begins_anew(straight: Path, tmp_path: Path) -> None:
    again = tmp_path / "straight"
    shutil.copytree(straight, again)
    shutil.rmtree(again / "checkpoints")
    rows = RunFolder(again).metrics_file.read_text().splitlines(keepends=True)
    RunFolder(again).metrics_file.write_text("".join(rows[:3]) + rows[3][:9])  # it was writing a line
    config = configs.load(RunFolder(again).config_file).model_copy(update={"out": tmp_path})
    runs.train(config, resume=True, quiet=True)
    check_equal(again, straight, 4)


def test_but_not_where_it_began_from_another_s(straight: Path) -> None:
    run = RunFolder(forked(checkpoints.path_of(straight / "checkpoints", 2), "forked-and-killed", "steps=3"))
    shutil.rmtree(run.checkpoints)
    with pytest.raises(RlkitError, match="began with another run's: delete the folder and type again what began it"):
        runs.train(configs.load(run.config_file), resume=True, quiet=True)
