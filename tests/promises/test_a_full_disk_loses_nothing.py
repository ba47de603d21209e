"""A disk that takes no more ends a run with a sentence; when there is room again it goes on as if nothing had been."""

from __future__ import annotations

import errno
import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_run import healthy, make_run
from safetensors.torch import load_file

from rlkit import files
from rlkit.assembly import ending
from rlkit.assembly import run as runs
from rlkit.config import RunConfig, load
from rlkit.errors import DiskError, RlkitError
from rlkit.records import checkpoints
from rlkit.records.folder import RunFolder
from rlkit.records.samples import step_files

SMALL = ["batch.prompts_per_step=4", "batch.samples_per_prompt=2", "eval.problems=4", "steps=4", "checkpoint.every=2"]


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    """A limit on how large a file may become, as the system itself keeps it."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("fits", range(0, 40, 3))
def test_a_line_is_there_whole_or_not_at_all(fits: int, tmp_path: Path, largest_file: Callable[[int], None]) -> None:
    run = make_run(tmp_path / "r", healthy(3))
    before = run.metrics_file.read_bytes()
    largest_file(len(before) + fits)
    with pytest.raises(OSError, match=r"metrics\.jsonl") as raised:
        run.log_metrics(4, healthy(1)[0])
    assert raised.value.errno == errno.EFBIG
    assert run.metrics_file.read_bytes() == before


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, largest_file: Callable[[int], None]) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    largest_file(10)
    with pytest.raises(OSError, match=r"a\.json"):
        files.write_text(file, "x" * 100)
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "old"


def test_a_run_that_cannot_begin_says_so(tmp_path: Path, largest_file: Callable[[int], None]) -> None:
    largest_file(100)
    with pytest.raises(RlkitError, match=r"provenance\.json cannot be written: File too large \(its disk has .* free"):
        RunFolder.create(tmp_path / "r", load("embedded_xs", ["steps=2"], "grpo"))


def weights(run: RunFolder) -> Any:
    newest = checkpoints.latest(run.checkpoints)
    assert newest is not None
    return load_file(newest / "hf" / "model.safetensors")


def lines(run: RunFolder) -> list[dict[str, float]]:
    """Without what a clock says."""
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    timed = ("time/", "throughput/", "memory/")
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows]


def config(folder: Path) -> RunConfig:
    return load("embedded_xs", [*SMALL, f"out={folder.parent}", f"name={folder.name}"], "grpo")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("straight") / "r"
    runs.train(config(folder), quiet=True)
    return RunFolder(folder)


@pytest.mark.parametrize(
    ("method", "saved"),
    [
        ("log_rollout", 2),
        pytest.param("log_metrics", 2, marks=pytest.mark.slow),
        pytest.param("log_credit", 3, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_bit_for_bit_when_there_is_room(
    method: str, saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: RunFolder
) -> None:
    real = getattr(RunFolder, method)

    def full(self: RunFolder, step: int, *rest: Any, **named: Any) -> None:
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.rollout_file(step)))
        real(self, step, *rest, **named)

    run = RunFolder(tmp_path / "r")
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, method, full)
        with pytest.raises(DiskError) as raised:
            runs.train(config(run.path), quiet=True)
    said = str(raised.value)
    assert said.startswith(f"{run.rollout_file(3)} cannot be written: No space left on device (its disk has ")
    assert f"The run is saved up to step-0000000{saved}: when there is room, go on with: rlkit run --resume" in said
    assert raised.value.exit_code == 1

    runs.train(run.read_config(), resume=True, quiet=True)
    assert lines(run) == lines(straight)
    ours, theirs = weights(run), weights(straight)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_run_that_has_saved_nothing_yet_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "log_rollout", full)
    folder = tmp_path / "r"
    with pytest.raises(DiskError) as raised:
        runs.train(config(folder), quiet=True)
    said = f"Nothing of the run is saved yet: when there is room, go on with: rlkit run --resume {folder}"
    assert str(raised.value).endswith(said)
    monkeypatch.undo()
    assert len(step_files(RunFolder(runs.train(config(folder), resume=True, quiet=True)).rollouts)) == 4


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path: Path, largest_file: Callable[[int], None]) -> None:
    run = make_run(tmp_path / "r", healthy(3))
    largest_file(2000)
    with pytest.warns(UserWarning, match=r"its picture or its report could not be written: .*png"):
        ending.draw(run.path)
    assert not run.learning_curve.exists()
    assert not list(run.path.glob("*.part"))
