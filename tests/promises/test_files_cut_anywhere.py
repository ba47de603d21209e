"""A run's files may end anywhere: its writer was killed, a disk was full, a copy broke off. What stands before the cut
is read, or the damage is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import HOSTILE, make_run

from rlkit.errors import RlkitError
from rlkit.records import samples
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import read_columns, read_lines, read_on, read_rows

METRICS = [{"reward/mean": at / 4, "policy/kl": 0.1, "eval/heldout/mean@1": float("nan")} for at in range(4)]

cuts = settings(max_examples=30)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", METRICS, HOSTILE)


def test_metrics_lose_only_the_line_that_is_cut(run: RunFolder) -> None:
    whole = run.metrics_file.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        run.metrics_file.write_bytes(whole[:cut])
        complete = sum(end < cut for end in ends)
        lines, half = read_lines(run.metrics_file)
        assert [line["step"] for line in lines] == list(range(1, complete + 1))
        assert half == (cut > 0 and cut - 1 not in ends)
        assert len(read_rows(run.metrics_file)) == complete
        assert len(read_columns(run.metrics_file).steps) == complete
        assert read_on(run.metrics_file, 0) == (lines, ends[complete - 1] + 1 if complete else 0)


def test_a_run_goes_on_behind_a_cut_line(run: RunFolder) -> None:
    whole = run.metrics_file.read_bytes()
    run.metrics_file.write_bytes(whole[:-9])
    run.cut_after(3, run.read_config())
    run.log_metrics(4, {"reward/mean": 0.5})
    assert [row["step"] for row in read_rows(run.metrics_file)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("rollouts/step-000002.parquet", lambda run: samples.read(run.rollout_file(2))),
        ("config.yaml", lambda run: run.read_config()),
        ("config.yaml", lambda run: run.read_settings()),
        ("provenance.json", lambda run: run.read_provenance()),
    ],
    ids=["rollouts", "config", "settings", "provenance"],
)
def test_other_files_are_read_or_the_damage_is_named(
    name: str, read: Callable[[RunFolder], object], run: RunFolder
) -> None:
    file = run.path / name
    whole = file.read_bytes()

    @cuts
    @given(st.integers(0, len(whole) - 1), st.binary(max_size=3))
    def cut(at: int, behind: bytes) -> None:
        file.write_bytes(whole[:at] + behind)
        assert file.name in (damage(lambda: read(run)) or file.name)

    cut()


def damage(read: Callable[[], object]) -> str | None:
    """What is said of it; None: it was read."""
    try:
        read()
    except RlkitError as error:
        return str(error)
    return None


@cuts
@given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=5))))
def test_a_line_of_metrics_is_read_or_its_number_is_named(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, object]
) -> None:
    file = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    file.write_text('{"step": 1}\n' + json.dumps(row) + '\n{"step": 2}\n')
    assert "line 2" in (damage(lambda: read_rows(file)) or "line 2")
