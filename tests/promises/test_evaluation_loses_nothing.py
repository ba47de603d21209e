"""Whatever happens to an evaluation, what the run has learnt is there, and the evaluation can be made up for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlkit.assembly import run as runs
from rlkit.records.folder import RunFolder

pytestmark = pytest.mark.slow

STEPS = 2
SMALL = [
    "embedded_xs", "-s", f"steps={STEPS}", "-s", "batch.prompts_per_step=4", "-s", "batch.samples_per_prompt=4",
    "-s", "eval.problems=24", "-s", "checkpoint.every=0", "--name", "r",
]  # fmt: skip

LATE = """
import os
import time
from pathlib import Path
from rlkit import reward

RUN = Path(__file__).parent / "r"


@reward("late")
def late(samples, *, how: str):
    last = (RUN / "checkpoints" / "step-00000002").is_dir() and samples[0].key.rollout_step == 0
    if last and how == "third":
        assert all(int(s.key.prompt_id, 16) % 3 for s in samples), "the verifier broke"
    if last and how == "all":
        raise RuntimeError("the verifier broke")
    if last and how == "count":
        return []
    if last and how == "sleep" and not (RUN / "go").exists():
        (RUN / "asleep").touch()
        time.sleep(600)
    return [float(s.response.endswith(s.answer)) for s in samples]
"""


def start(*arguments: str, command: str = "run") -> subprocess.Popen[str]:
    command_line = [sys.executable, "-m", "rlkit.cli", command, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command_line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def with_reward(folder: Path, how: str) -> list[str]:
    (folder / "late.py").write_text(LATE)
    plugin = ["--plugin", str(folder / "late.py"), "-s", "reward.kind=late", "-s", f"reward.how={how}"]
    return [*SMALL, *plugin, "--out", str(folder)]


def is_whole(run: Path) -> bool:
    return all((run / name).is_file() for name in ("report.html", "learning_curve.png"))


@pytest.mark.parametrize("how", ["third", "all", "count"])
def test_a_verifier_that_fails_in_the_last_evaluation_does_not_end_the_run(how: str, tmp_path: Path) -> None:
    process = start(*with_reward(tmp_path, how))
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    first, *_, last = RunFolder.open(tmp_path / "r").read_metrics()
    assert (first["step"], last["step"]) == (0, STEPS)
    assert first["eval/heldout/no_value"] == 0
    lost = int(last["eval/heldout/no_value"])
    assert (0 < lost < 24) if how == "third" else lost == 24
    assert f"evaluation, heldout: {lost} of 24 answers have no value ({lost} error) and count as wrong" in said
    assert ("returned 0 results" if how == "count" else "the verifier broke") in said
    assert "Traceback" not in said
    assert (tmp_path / "r" / "checkpoints" / f"step-{STEPS:08d}" / "hf" / "model.safetensors").is_file()
    assert is_whole(tmp_path / "r")


def test_a_run_that_is_killed_in_its_last_evaluation_makes_it_when_resumed(tmp_path: Path) -> None:
    run = tmp_path / "r"
    process = start(*with_reward(tmp_path, "sleep"), "-s", "scoring.timeout_s=600")
    deadline = time.monotonic() + 120
    while not (run / "asleep").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not any("eval/heldout/no_value" in row for row in RunFolder.open(run).read_metrics() if row["step"] == STEPS)
    assert not is_whole(run)

    (run / "go").touch()
    process = start("--resume", str(run))
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "made what was missing: the last evaluation, the report, the picture" in said
    last = RunFolder.open(run).read_metrics()[-1]
    assert (last["step"], last["eval/heldout/no_value"]) == (STEPS, 0)
    assert "reward/mean" in last
    assert is_whole(run)

    process = start("--resume", str(run))
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "nothing to resume" in said


def test_an_evaluation_that_is_stopped_goes_on_with_the_same_command(tmp_path: Path) -> None:
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(10, 13) for b in (25, 38, 47)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--model", "embedded:xs", "--data", str(tmp_path / "test.jsonl"), "--reward", "final_answer"]
    asked += ["-n", "128", "--max-tokens", "64", "--out"]
    done, _ = (whole := start(*asked, str(tmp_path / "whole"), command="eval")).communicate(timeout=240)
    assert whole.returncode == 0, done

    out = tmp_path / "stopped"
    responses = out / "test" / "responses.jsonl"
    process = start(*asked, str(out), command="eval")
    deadline = time.monotonic() + 120
    while not (responses.is_file() and responses.stat().st_size > 0):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1] == f"rlkit: stopped. The same command goes on from the responses in {out}"
    assert "Traceback" not in said
    assert 0 < responses.read_text().count("\n") < 9 * 128
    assert not (out / "results.json").exists()

    done, _ = (process := start(*asked, str(out), command="eval")).communicate(timeout=240)
    assert process.returncode == 0, done
    for name in ("results.json", "test/responses.jsonl"):
        assert (out / name).read_text() == (tmp_path / "whole" / name).read_text()


FAILING_TRACKER = """
from rlkit import tracker


class Failing:
    def log(self, step, metrics):
        if step == 2:
            raise ConnectionError("the tracker's server is gone")

    def log_samples(self, step, rows): ...

    def close(self): ...


@tracker("failing")
def failing(run):
    return Failing()
"""


def test_a_tracker_that_fails_after_the_last_update_loses_no_weights(tmp_path: Path) -> None:
    from rlkit import config as configs

    (tmp_path / "failing_tracker.py").write_text(FAILING_TRACKER)
    own = [f"plugins=[{tmp_path / 'failing_tracker.py'}]", "trackers=[failing]", f"out={tmp_path}", "name=r"]
    small = ["steps=2", "batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4"]
    with pytest.warns(UserWarning, match=r"the tracker.s server is gone"):
        runs.train(configs.load("embedded_xs", [*small, *own]), quiet=True)
    run = RunFolder.open(tmp_path / "r")
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2]
    assert (run.checkpoints / "step-00000002").is_dir()
    assert "eval/heldout/mean@1" in run.read_metrics()[-1]
    assert run.report.is_file()
