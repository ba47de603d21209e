"""A run's folder is read in one place: what every reader makes of files that are whole, and of such that are not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inspected import letters, write
from made_run import healthy, make_run
from synthetic_runs import write_rollout, write_run

import rlkit
from rlkit import report
from rlkit.comparison import compare
from rlkit.comparison.runs import read_runs
from rlkit.errors import ConfigError, RlkitError
from rlkit.evaluation import verify
from rlkit.interfaces.names import STATS
from rlkit.records import checkpoints, samples, tables
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import evaluation_of, read_columns, read_curves, read_lines, read_on, read_rows

ROOT = Path(__file__).resolve().parents[2]
LINES = ['{"step": 1, "a": 0.5}', '{"step": 2, "a": null, "b": 1}', '{"step": 2, "a": 0.25}', '{"step": 1, "b": 3}']


def by_rows(file: Path) -> dict[int, dict[str, float]]:
    return {
        int(row["step"]): {name: value for name, value in row.items() if name != "step" and math.isfinite(value)}
        for row in read_rows(file)
    }


def by_columns(file: Path) -> dict[int, dict[str, float]]:
    columns = read_columns(file)
    return {
        int(step): {name: float(v[at]) for name, v in columns.values.items() if math.isfinite(v[at])}
        for at, step in enumerate(columns.steps)
    }


def by_curves(file: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for name, curve in read_curves(file)[0].items():
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
            found.setdefault(int(step), {})[name] = value
    return dict(sorted(found.items()))


def by_watching(file: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in read_on(file, 0)[0]:
        found.setdefault(int(line["step"] or 0), {}).update({n: v for n, v in line.items() if n != "step" and v})
    return dict(sorted(found.items()))


READERS: list[Callable[[Path], dict[int, dict[str, float]]]] = [by_rows, by_columns, by_curves]


@pytest.mark.parametrize("reader", [*READERS, by_watching])
@pytest.mark.parametrize("end", ["\n", '\n{"step": 3, "a', '\n{"step": 3, "a": 1}', '\n{"step": 3, "a\n'])
def test_every_reader_reads_the_same_and_leaves_out_a_half_written_end(
    end: str, reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(LINES) + end)
    assert reader(file) == {1: {"a": 0.5, "b": 3.0}, 2: {"a": 0.25, "b": 1.0}}
    assert read_lines(file)[1] == (end != "\n")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"step": 2, "a', "is not a JSON object with a step: "),
        ("", "is not a JSON object with a step: "),
        ("[2, 3]", r"is not a JSON object with a step \(a whole number\)"),
        ('{"a": 1}', r"is not a JSON object with a step \(a whole number\)"),
        ('{"step": "2"}', r"is not a JSON object with a step \(a whole number\)"),
        ('{"step": 1.5}', r"is not a JSON object with a step \(a whole number\)"),
        ('{"step": true}', r"is not a JSON object with a step \(a whole number\)"),
        ('{"step": NaN}', r"is not a JSON object with a step \(a whole number\)"),
        ('{"step": 2, "a": "0.5"}', "holds a metric that is not a number: a is '0.5'"),
        ('{"step": 2, "a": [1]}', r"holds a metric that is not a number: a is \[1\]"),
        ("\x00\x00\x00", "is not a JSON object with a step: "),
        ("\xff", "is not a JSON object with a step: "),
    ],
)
def test_every_reader_names_a_damaged_line(line: str, said: str, reader: Callable[[Path], Any], tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes("\n".join([LINES[0], line, *LINES[1:], ""]).encode("latin-1"))
    with pytest.raises(RlkitError, match=rf"metrics\.jsonl, line 2 {said}") as caught:
        reader(file)
    assert caught.value.exit_code == 1
    # Who only watches goes on.
    assert by_watching(file)[2] == {"a": 0.25, "b": 1.0}


@pytest.mark.parametrize("reader", READERS)
def test_a_last_line_that_is_whole_and_no_step_is_damage(reader: Callable[[Path], Any], tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"reward/mean": 1}\n')
    with pytest.raises(RlkitError, match="line 2 is not a JSON object with a step"):
        reader(file)


def test_a_line_broken_before_a_half_written_one_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"ste\n{"step": 3')
    with pytest.raises(RlkitError, match="line 2 is not a JSON object"):
        read_rows(file)


def test_a_half_written_end_is_said_by_who_can_say_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "reward/cle')
    assert read_curves(run / "metrics.jsonl")[1] == [
        "a: the last line of metrics.jsonl is half written; it is left out"
    ]


def test_who_watches_reads_on_where_it_stopped_and_anew_where_the_file_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_on(file, 99) == ([], 0)
    file.write_text('{"step": 1}\n{"step": 2')
    lines, at = read_on(file, 0)
    assert (lines, at) == ([{"step": 1}], 12)
    with file.open("a") as more:
        more.write('}\ndamaged\n{"step": 3}\n')
    lines, at = read_on(file, at)
    assert [line["step"] for line in lines] == [2, 3]
    assert read_on(file, at) == ([], at)
    file.write_text('{"step": 1}\n')
    assert read_on(file, at) == ([{"step": 1}], 12)


def test_what_was_logged_stays_to_the_digit_when_a_run_is_cut(tmp_path: Path) -> None:
    rows = [{"reward/mean": 0.1 + 0.2, "policy/kl": math.nan, "policy/lr": 1e-300}] * 3
    folder = make_run(tmp_path / "run", rows)
    before = folder.metrics_file.read_text().splitlines()
    folder.cut_after(2, folder.read_config())
    assert folder.metrics_file.read_text().splitlines() == before[:2]


def test_names_of_evaluations() -> None:
    assert evaluation_of("eval/heldout/mean@1") == ("heldout", "mean@1")
    assert evaluation_of("eval/a/b/length") == ("a/b", "length")
    assert evaluation_of("eval/problems") == ("problems", "problems")
    assert evaluation_of("time/eval_s") is None


# Samples and credit


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_one_error_for_a_damaged_file_whoever_reads_it(tmp_path: Path) -> None:
    said = r"rollouts/step-000020\.parquet is damaged \(.*\): delete it, and rlkit does without"
    runs = [write_run(tmp_path / name, name) for name in ("vimpo", "grpo")]
    for run in runs:
        write_rollout(run, 20, ["1+1="])
    damage(runs[1] / "rollouts/step-000020.parquet")
    with pytest.raises(RlkitError, match=said):
        compare(runs)
    with pytest.raises(RlkitError, match=said):
        verify.read(runs[1])
    with pytest.raises(RlkitError, match=said):
        rlkit.Run(runs[1]).samples()
    (runs[1] / "rollouts/step-000020.parquet").unlink()
    assert compare(runs).arms == ["vimpo", "grpo"]


def test_columns_are_chosen_by_the_caller(tmp_path: Path) -> None:
    file = tmp_path / "run" / "rollouts" / "step-000001.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"a": [1], "b": [2], "c": [3]}), file)
    assert samples.read(file).column_names == samples.column_names(file) == ["a", "b", "c"]
    assert samples.read(file, ["c", "a"], optional=["b", "x"]).column_names == ["c", "a", "b"]
    with pytest.raises(
        RlkitError, match=r"has no x, y: it was made by an older rlkit. .*`rlkit run .*/run/config.yaml"
    ):
        samples.read(file, ["x", "a", "y"])
    with pytest.raises(RlkitError, match=r"step-000002\.parquet is not there"):
        samples.read(file.with_name("step-000002.parquet"))


def test_a_page_of_an_older_run_does_without_its_samples(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy(3), ["a", "b"])
    file = folder.rollout_file(2)
    pq.write_table(pq.read_table(file).drop_columns(["prompt"]), file)
    assert "has no prompt: it was made by an older rlkit" in report.write(folder.path).read_text()


def test_every_statistic_of_the_one_list_is_written_and_shown(tmp_path: Path) -> None:
    from rlkit.inspection.steps import SERIES

    assert {*STATS} - {"values"} < {*SERIES}
    folder = make_run(tmp_path / "run", healthy(1))
    write(folder, 1, [[letters("ab", value=[0.5, 0.25, 0.0])]], values=True)
    assert "values" in samples.column_names(folder.rollout_file(1))


# Names


def test_checkpoints_by_name(tmp_path: Path) -> None:
    assert checkpoints.complete(tmp_path / "none") == []
    assert checkpoints.latest(tmp_path / "none") is None
    steps = [7, 120, 99_999_999, 100_000_000]
    for name in (*(checkpoints.path_of(tmp_path, step).name for step in steps), ".step-00000200", "step-3", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / checkpoints.MANIFEST).write_text(checkpoints.Manifest().text())
    names = ["step-00000007", "step-00000120", "step-99999999", "step-100000000"]
    assert [path.name for path in checkpoints.complete(tmp_path)] == names
    (tmp_path / names[1] / checkpoints.MANIFEST).unlink()
    assert [path.name for path in checkpoints.complete(tmp_path)] == [names[0], *names[2:]]
    assert [path.name for path in checkpoints.named(tmp_path)] == names
    assert checkpoints.latest(tmp_path) == checkpoints.path_of(tmp_path, 100_000_000)


def test_the_best_checkpoint_is_that_of_the_best_step_that_has_one(tmp_path: Path) -> None:
    def best(by: str) -> str | None:
        found = checkpoints.best(tmp_path, rows, by)
        return found and found.name

    for step in (2, 4, 6, 8):
        path = checkpoints.path_of(tmp_path, step)
        path.mkdir()
        (path / checkpoints.MANIFEST).write_text(checkpoints.Manifest().text())
    rows = [
        {"step": 2, "eval/a/mean@1": 0.5, "kl": 2.0},
        {"step": 3, "eval/a/mean@1": 0.9, "kl": 0.5},
        {"step": 4, "eval/a/mean@1": 0.5, "kl": 1.0},
        {"step": 6, "eval/a/mean@1": math.nan, "kl": 3.0},
        {"step": 8, "kl": math.inf},
    ]
    assert best("eval/a/mean@1") == "step-00000004"
    assert best("kl") == "step-00000006"
    assert best("-kl") == "step-00000004"
    (checkpoints.path_of(tmp_path, 4) / checkpoints.MANIFEST).unlink()
    assert best("-kl") == "step-00000002"
    assert best("none") is None


def test_a_run_that_goes_on_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy())
    for step in (2, 4, 6):
        (checkpoints.path_of(folder.checkpoints, step) / "policy").mkdir(parents=True)
    (folder.checkpoints / "damaged-step-00000006" / "critic").mkdir(parents=True)
    folder.cut_after(2, folder.read_config())
    names = ["damaged-step-00000004", "damaged-step-00000006", "step-00000002"]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == names
    assert all((folder.checkpoints / name / "policy").is_dir() for name in names)


def test_a_folder_with_a_checkpoint_is_not_free_and_one_with_half_of_it_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (folder.checkpoints / ".step-00000004").mkdir(parents=True)
    RunFolder.check_free(tmp_path)
    with pytest.raises(RlkitError, match="holds no checkpoint"):
        folder.newest_model()
    path = checkpoints.path_of(folder.checkpoints, 4)
    path.mkdir()
    with (
        pytest.warns(UserWarning, match=r"step-00000004 is damaged: manifest\.json is missing\. It is passed over"),
        pytest.raises(RlkitError, match="holds no checkpoint"),
    ):
        folder.newest_model()
    (path / checkpoints.MANIFEST).write_text(checkpoints.Manifest(files={"hf/a": (3, "352441c2")}).text())
    with pytest.raises(RlkitError, match=r"step-00000004 holds no model: it could not be written.*rlkit run --resume"):
        folder.newest_model()
    (path / checkpoints.MODEL).mkdir()
    with pytest.raises(RlkitError, match=r"step-00000004 is damaged: a is missing\. Delete .*run --resume .*anew"):
        folder.newest_model()
    (path / checkpoints.MODEL / "a").write_text("abc")
    assert folder.newest_model() == tmp_path / "checkpoints" / "step-00000004" / "hf"
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder.check_free(tmp_path)


def test_names_in_a_runs_folder_are_known_here_only() -> None:
    """And by engine and loop, which write there."""
    names = ("metrics.jsonl", "config.yaml", "provenance.json", "report.html", "learning_curve.png")
    own = {ROOT / "rlkit" / part for part in ("records", "engine")}
    found = []
    for file in sorted((ROOT / "rlkit").rglob("*.py")):
        if own.isdisjoint(file.parents):
            text = file.read_text()
            found += [(file.name, name) for name in names if f'"{name}"' in text]
            found += [(file.name, name) for name in ("rollouts", "credit", "checkpoints") if f'/ "{name}"' in text]
            found += [(file.name, "step-") for _ in range(text.count('"step-'))]
    assert not found


# A run as tables


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = make_run(tmp_path / "run", healthy(20))
    folder.log_metrics(0, {"eval/heldout/mean@1": 0.25, "eval/math500/mean@4": math.nan})
    for step in (1, 2, 20):
        write(folder, step, [[letters("ab", credit=[0.5, 0.25, -0.5]), letters("c", credit=[0.1, 0.2])]])
    return folder


def test_metrics_are_a_table_with_a_row_a_step(run: RunFolder) -> None:
    table = tables.metrics(run)
    assert table["step"].to_pylist() == list(range(21))
    assert table["step"].type == pa.int64()
    logged = run.read_metrics()
    assert {*table.column_names} == {name for row in logged for name in row}
    for name in table.column_names:
        values = [row.get(name, math.nan) for row in logged]
        assert table[name].to_pylist() == [value if math.isfinite(value) else None for value in values]
    assert table["reward/mean"][0].as_py() is None


def test_evaluations_are_tidy(run: RunFolder) -> None:
    table = tables.evaluation(run)
    assert table.column_names == ["step", "suite", "metric", "value"]
    rewards = {row["step"]: row["reward/mean"] for row in run.read_metrics() if "reward/mean" in row}
    assert table.to_pylist() == [
        {"step": 20, "suite": "heldout", "metric": "length", "value": 20.0},
        {"step": 0, "suite": "heldout", "metric": "mean@1", "value": 0.25},
        {"step": 20, "suite": "heldout", "metric": "mean@1", "value": rewards[20]},
    ]


def test_samples_and_credit_of_the_steps_asked_for(run: RunFolder) -> None:
    assert tables.samples(run)["step"].to_pylist() == [1, 1, 2, 2, 20, 20]
    assert tables.samples(run, [20, 1])["response"].to_pylist() == ["ab", "c"] * 2
    credit = tables.credit(run, steps=[2])
    assert (credit["step"].to_pylist(), credit["row"].to_pylist()) == ([2, 2], [0, 1])
    assert credit["credit"].to_pylist() == [[0.5, 0.25, -0.5], pytest.approx([0.1, 0.2])]
    with pytest.raises(RlkitError, match=r"has no samples of step 3, 19; it has those of 1, 2, 20$"):
        tables.samples(run, [19, 2, 3])
    with pytest.raises(RlkitError, match="has no record of the credit of step 4; it has those of"):
        tables.credit(run, [4])


def test_steps_that_kept_other_columns_are_one_table(run: RunFolder) -> None:
    write(run, 3, [[letters("ab", value=[0.5, 0.25, 0.0])]], values=True)
    table = tables.samples(run, [2, 3])
    assert table["values"].to_pylist() == [None, None, [0.5, 0.25, 0.0]]


def test_a_run_that_made_no_step_has_empty_tables(tmp_path: Path) -> None:
    loaded = rlkit.Run(make_run(tmp_path / "run", []).path)
    found = (loaded.metrics, loaded.evaluation, loaded.samples(), loaded.credit())
    assert [len(table) for table in found] == [0] * 4
    assert loaded.config["algo"]["kind"] == "grpo"
    assert loaded.provenance["seed"] == loaded.config["seed"]


def test_what_is_no_run_or_damaged_is_named(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*rum; did you mean 'run'"):
        rlkit.Run(tmp_path / "rum")
    run.metrics_file.write_text("damaged\n{}\n")
    with pytest.raises(RlkitError, match="line 1 is not a JSON object"):
        _ = rlkit.Run(run.path).metrics
    run.metrics_file.unlink()
    with pytest.raises(RlkitError, match=r"metrics\.jsonl does not exist"):
        _ = rlkit.Run(run.path).metrics
    run.config_file.write_text("steps: 3\n")
    with pytest.raises(RlkitError, match="it names no algorithm"):
        _ = rlkit.Run(run.path).config


def test_a_config_of_a_plugin_that_is_not_here_is_plain_data(run: RunFolder) -> None:
    run.config_file.write_text("algo: {kind: strangers_own, knob: 3}\n")
    assert rlkit.Run(run.path).config["algo"] == {"kind": "strangers_own", "knob": 3}


def test_data_frames(run: RunFolder) -> None:
    pytest.importorskip("pandas")
    loaded = rlkit.Run(run.path)
    frame = loaded.metrics
    assert frame["reward/mean"].isna().tolist() == [True] + [False] * 20
    assert loaded.samples().groupby("step").size().to_dict() == {1: 2, 2: 2, 20: 2}
    assert loaded.credit([1])["credit"][0].tolist() == [0.5, 0.25, -0.5]
    assert loaded.evaluation["suite"].unique().tolist() == ["heldout"]


def test_reading_and_comparing_need_no_torch(run: RunFolder) -> None:
    script = (
        "import sys, rlkit\n"
        f"run = rlkit.Run({str(run.path)!r})\n"
        "run.config, run.provenance, run.metrics, run.evaluation, run.samples(), run.credit()\n"
        "import rlkit.records.statistics, rlkit.sweeps, rlkit.comparison, rlkit.tracking.console\n"
        "print(sorted({'torch', 'matplotlib', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_notebook_runs_and_its_outputs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import notebook

    made = make_run(tmp_path / "runs" / "first", healthy(20))
    write(made, 20, [[letters("ab", credit=[0.5, 0.25, -0.5], value=[0.5, 1.0, 1.25]), letters("c")]] * 2)
    monkeypatch.chdir(tmp_path)
    page = json.loads((ROOT / "docs/examples/reading_a_run.ipynb").read_text())
    assert (page["nbformat"], page["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in page["cells"]}) == len(page["cells"])
    kept = [cell["outputs"] for cell in page["cells"] if cell["cell_type"] == "code"]
    notebook.execute(page)
    made_now = [cell["outputs"] for cell in page["cells"] if cell["cell_type"] == "code"]
    assert all(kept)

    def kinds(outputs: list[list[dict[str, Any]]]) -> list[list[tuple[str, list[str]]]]:
        return [[(each["output_type"], sorted(each.get("data", {}))) for each in cell] for cell in outputs]

    assert kinds(kept) == kinds(made_now)
    assert "image/png" in str(kinds(kept))


def test_comparison_reads_what_a_run_reads(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=12)
    (read,) = read_runs([run]).runs
    table = tables.metrics(RunFolder.open(run))
    assert {*read.curves} == {*table.column_names} - {"step"}
    assert read.curves["reward/mean"].values.tolist() == table["reward/mean"].to_pylist()
    assert read.last == 12
