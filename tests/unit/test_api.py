"""rlkit from Python: runs, sweeps and comparisons as objects, and messages that speak Python."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_run import healthy, make_run
from synthetic_runs import write_run

import rlkit
from rlkit import config as configs
from rlkit import registry, sweeps
from rlkit.api.messages import in_python, speaking_python
from rlkit.api.run import trained
from rlkit.comparison import compare
from rlkit.comparison import write as write_comparison
from rlkit.errors import ConfigError, RlkitError, StoppedError
from rlkit.sweeps import spec as specs
from rlkit.sweeps.sweep_folder import SweepFolder, SweepRun, Trial, Tuning

ROOT = Path(rlkit.__file__).parents[1]
SMALL: dict[str, Any] = {
    "steps": 2,
    "batch": 2,
    "settings": {"batch.samples_per_prompt": 2, "eval.problems": 2},
    "quiet": True,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rlkit.Run:
    return rlkit.train("embedded_xs", algo="grpo", out=tmp_path_factory.mktemp("runs"), name="r", **SMALL)


def copied(run: rlkit.Run, out: Path) -> Path:
    """The run, to be changed by a test. A copy's weights are shared with it."""
    shutil.copytree(run.folder, out / run.name)
    return out


# A run


def test_a_run_is_tables_and_a_picture_and_stands_for_its_folder(run: rlkit.Run) -> None:
    assert (run.name, run.step, run.steps, run.finished) == ("r", 2, 2, True)
    assert run.metrics["step"].tolist() == [0, 1, 2]
    assert run.samples([2])["step"].tolist() == run.samples(2)["step"].tolist() == [2] * 4
    assert set(run.credit([1])["row"]) == {0, 1, 2, 3}
    assert {*run.evaluation["suite"]} == {"heldout"}
    assert run.plot().axes[0].get_title(loc="left") == "r"
    assert run.plot()._repr_png_().startswith(b"\x89PNG")
    assert Path(run) == run.folder == rlkit.Run(run).folder
    assert repr(run) == f"<rlkit.Run {str(run.folder)!r}: grpo, 2 of 2 steps>"
    page = run._repr_html_()
    assert "grpo, 2 of 2 steps" in page
    assert "data:image/png;base64," in page


def test_what_a_run_says_of_itself_is_no_markup(tmp_path: Path) -> None:
    page = rlkit.Run(make_run(tmp_path / "<b>run</b>", healthy(3)).path)._repr_html_()
    assert "<b>run</b>" not in page
    assert "&lt;b&gt;run&lt;/b&gt;" in page


def test_tables_show_what_a_run_has_done_since(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy(3))
    run = rlkit.Run(folder.path)
    assert run.step == 3
    folder.log_metrics(4, {"reward/mean": 0.5})
    assert run.step == 4
    assert run.metrics["reward/mean"].tolist()[-1] == 0.5


def test_without_pandas_tables_are_pyarrow_s(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy(3)).path
    script = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pandas': raise ImportError\n"
        "sys.meta_path.insert(0, Without())\n"
        "import rlkit\n"
        f"run = rlkit.Run({str(folder)!r})\n"
        "print(type(run.metrics).__module__, run.metrics['step'].to_pylist(), run.samples().num_rows)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "pyarrow.lib [1, 2, 3] 0\n"


def test_a_run_is_asked_and_measured(run: rlkit.Run, tmp_path: Path) -> None:
    said = run.sample("47+85=", n=3, seed=1)
    assert len(said) == 3
    assert said == run.sample("47+85=", n=3, seed=1)
    assert len(run.sample("47+85=", max_tokens=1, seed=1)[0]) < len(said[0])
    (tmp_path / "test.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "12+13=", "answer": "25"}\n')
    rates = run.evaluate(data=tmp_path / "test.jsonl", n=2, max_tokens=8, out=tmp_path / "out", quiet=True)
    result = json.loads((tmp_path / "out" / "results.json").read_text())["test"]
    assert rates["suite"].tolist() == ["test"] * len(result["metrics"])
    values = dict(zip(rates["metric"], rates["value"], strict=True))
    assert values == {name: each["value"] for name, each in result["metrics"].items()}
    assert "mean@2" in values
    assert run.report() == run.folder / "report.html"


def test_a_config_may_be_an_object_with_arguments_in_its_place(tmp_path: Path) -> None:
    config = configs.load("embedded_xs", ["steps=7", "optimizer.eps=1e-5"], "grpo")
    config.optimizer.weight_decay = 0.25
    made = rlkit.train(config, out=tmp_path, name="r", noise="group_flip:0.5", **SMALL)
    assert (made.steps, made.config["optimizer"]["eps"], made.config["optimizer"]["weight_decay"]) == (2, 1e-5, 0.25)
    assert made.config["noise"] == [{"kind": "group_flip", "prob": 0.5}]
    assert made.config["batch"]["prompts_per_step"] == 2


# The same cell twice


def test_a_cell_that_is_run_again_says_so_by_default(run: rlkit.Run) -> None:
    said = r'holds a run already: exist="resume" goes on with it, exist="new" trains another in .*/r-2, and rlkit\.Run'
    with pytest.raises(ConfigError, match=said):
        rlkit.train("embedded_xs", algo="grpo", out=run.folder.parent, name="r", **SMALL)
    with pytest.raises(ConfigError, match='exist=\'old\': give "error", "resume" or "new"'):
        rlkit.train("embedded_xs", out=run.folder.parent, name="r", exist="old", **SMALL)  # type: ignore[arg-type]


def test_new_trains_another_beside_it_with_another_algorithm_in_the_same_process(
    run: rlkit.Run, tmp_path: Path
) -> None:
    out = copied(run, tmp_path)
    made = [rlkit.train("embedded_xs", algo=a, out=out, name="r", exist="new", **SMALL) for a in ("ppo", "vimpo")]
    assert [each.name for each in made] == ["r-2", "r-3"]
    assert [each.config["algo"]["kind"] for each in made] == ["ppo", "vimpo"]
    assert [len(each.samples()) for each in made] == [8, 8]
    assert len(rlkit.compare(*made).arms) > 1


def test_resume_hands_back_a_run_that_is_done(run: rlkit.Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run.folder / "metrics.jsonl").stat().st_mtime_ns
    loud = {**SMALL, "quiet": False}
    again = rlkit.train("embedded_xs", algo="grpo", out=run.folder.parent, name="r", exist="resume", **loud)
    assert again.folder == run.folder
    assert (run.folder / "metrics.jsonl").stat().st_mtime_ns == before
    assert "has done its 2 steps: it is taken as it is" in capsys.readouterr().out


@pytest.mark.slow
def test_resume_goes_further_and_makes_what_is_missing(run: rlkit.Run, tmp_path: Path) -> None:
    again = {"algo": "grpo", "out": copied(run, tmp_path), "name": "r", "exist": "resume"}
    (tmp_path / "r" / "learning_curve.png").unlink()
    made = rlkit.train("embedded_xs", **again, **SMALL)
    assert (tmp_path / "r" / "learning_curve.png").is_file()
    assert rlkit.train("embedded_xs", **again, **{**SMALL, "steps": 3}).metrics["step"].tolist() == [0, 1, 2, 3]
    assert made.step == 3
    assert made.resume(steps=4, settings={"optimizer.lr": 1e-5}, quiet=True) is made
    assert (made.step, made.config["optimizer"]["lr"]) == (4, 1e-5)
    with pytest.raises(ConfigError, match=r"nothing to resume\. To go further, add steps=8$"):
        made.resume(quiet=True)


def test_resume_under_other_settings_is_refused(run: rlkit.Run) -> None:
    again = {"out": run.folder.parent, "name": "r", "exist": "resume", **SMALL}
    said = r'it differs in optimizer\.lr\): exist="new" trains another beside it; rlkit\.Run\(.*\)\.resume\(settings='
    with pytest.raises(ConfigError, match=said):
        rlkit.train("embedded_xs", algo="grpo", lr=1e-5, **again)
    with pytest.raises(ConfigError, match=r"it differs in algo\."):
        rlkit.train("embedded_xs", algo="rloo", **again)


def test_an_interrupt_is_one(run: rlkit.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop ends the step in hand and all is saved; who called must stop all the same."""
    short = make_run(tmp_path / "run", healthy(2)).path
    (short / "config.yaml").write_text((short / "config.yaml").read_text().replace("steps: 2", "steps: 5"))

    def stopped(*_: Any, **__: Any) -> Path:
        raise StoppedError("ended by SIGINT", short, signal.SIGINT)

    monkeypatch.setattr("rlkit.assembly.run.train", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 2 of 5, .*rlkit\.Run\('.*run'\)\.resume\(\) goes"):
        trained(configs.load("embedded_xs"), resume=False, quiet=True)


def test_a_plugin_that_trains_when_it_is_imported_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import rlkit\nrlkit.train('embedded_xs')\n")
    with pytest.raises(ConfigError, match=r"while .*mine\.py was being imported as a plugin\. Put what trains under"):
        registry.load([str(tmp_path / "mine.py")])


# Arguments and messages


def test_the_arguments_are_the_short_names_of_the_command_line() -> None:
    for function in (rlkit.train, rlkit.sweep):
        assert {*configs.SHORT} <= {*inspect.signature(function).parameters}


def test_what_is_given_twice_or_unknown_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr is given twice, by an argument and in `settings`"):
        rlkit.train("embedded_xs", lr=1e-4, settings={"lr": 1e-5}, out=tmp_path)
    with pytest.raises(ConfigError, match="unknown key 'lrr' in 'optimizer'; did you mean 'lr'"):
        rlkit.train("embedded_xs", settings={"optimizer.lrr": 1}, out=tmp_path)
    with pytest.raises(ConfigError, match=r"there is no folder .*r0"):
        rlkit.Run(tmp_path / "r0")


@pytest.mark.parametrize(
    ("shell", "python"),
    [
        ("choose another with --out", "choose another with out="),
        ("To go further, add -s steps=160", "To go further, add steps=160"),
        ("continue it with --resume, or", 'continue it with exist="resume", or'),
        ("finish it with --resume /a/b, or take", 'finish it with exist="resume", or take'),
        ("`rlkit run --resume /a/run` writes it", '`exist="resume"` writes it'),
        ("as in --tune lr=1e-4,2e-4 --tune-seeds 100-101", 'as in tune={"lr": [1e-4,2e-4]} tune_seeds=100-101'),
        ("name suites with --suite (`rlkit list suites`)", "name suites with suites= (`rlkit list suites`)"),
        (
            "--max-tokens 9 leaves no room; or leave --max-tokens out",
            "max_tokens=9 leaves no room; or leave max_tokens= out",
        ),
        ("take -s sampler=transformers", 'take settings={"sampler": "transformers"}'),
        ("Try `-s sampler=transformers`, and", 'Try `settings={"sampler": "transformers"}`, and'),
        ("Try -s batch.minibatches=8, or a", 'Try settings={"batch.minibatches": 8}, or a'),
        ("say it: -s data.path=FILE (or", 'say it: settings={"data.path": "FILE"} (or'),
        ("as in -s 'trackers=[a, b]' (got", 'as in settings={"trackers": ["a", "b"]} (got'),
        ("-s reward={math: expected", 'settings={"reward": "{math"}: expected'),
        ("as in -s 'name=\"no\"'", 'as in settings={"name": "no"}'),
        ("--noise group_flip:2: 'prob': input", "noise=\"group_flip:2\": 'prob': input"),
        ("start as many with --nproc", "start as many with --nproc"),
    ],
)
def test_messages_speak_python(shell: str, python: str) -> None:
    assert in_python(shell) == python


def test_warnings_speak_python_as_errors_do(recwarn: pytest.WarningsRecorder) -> None:
    before = warnings.showwarning
    said = "`rlkit report /a/run` tries again; try -s optimizer.lr=0.5"
    file = str(ROOT / "rlkit" / "assembly" / "run.py")
    with speaking_python():
        warnings.warn_explicit(said, UserWarning, file, 1)
        warnings.warn_explicit(said, UserWarning, "/another/package.py", 1)
    assert [str(each.message) for each in recwarn] == [
        '`rlkit.Run("/a/run").report()` tries again; try settings={"optimizer.lr": 0.5}',
        said,
    ]
    assert warnings.showwarning is before


def test_no_message_of_what_python_calls_keeps_an_option_of_the_shell() -> None:
    folders = ("records", "assembly", "sweeps", "comparison", "evaluation", "generation", "config")
    files = [file for name in folders for file in (ROOT / "rlkit" / name).glob("*.py")]
    said = [text for file in files for text in re.findall(r"[\"'( ](--[a-z][\w-]*[^\"\n]{0,30})", file.read_text())]
    assert len(said) > 20
    for text in said:
        assert not re.search(r"--(?!nproc)[a-z]", in_python(text)), text


def test_every_public_name_has_a_page() -> None:
    for name in rlkit.__all__:
        thing = getattr(rlkit, name)
        if isinstance(thing, types.GenericAlias):
            continue  # an abbreviation of a type
        page = inspect.getdoc(thing) or ""
        assert "Example" in page, name
        if inspect.isfunction(thing):
            said = set(re.findall(r"^    (\w+): ", page.partition("Args:\n")[2].partition("\n\n")[0], re.MULTILINE))
            assert said == {*inspect.signature(thing).parameters}, name
            assert "Returns:\n" in page, name
            assert "Raises:\n" in page, name
        for method, function in vars(thing).items():
            if name in ("Run", "Sweep", "Comparison") and not method.startswith("_"):
                assert inspect.getdoc(function), f"{name}.{method}"
                own = {*inspect.signature(function).parameters} - {"self"} if inspect.isfunction(function) else set()
                assert not own or all(f"    {each}: " in (inspect.getdoc(function) or "") for each in own), method


# Many runs


def test_a_comparison_s_tables_are_its_files(tmp_path: Path) -> None:
    import pandas

    runs = [write_run(tmp_path / f"{a}{s}", a, seed=s) for a in ("vimpo", "grpo") for s in range(3)]
    compared = rlkit.compare(*runs, metrics="reward/clean", threshold=0.5)
    for file in compared.write(tmp_path / "comparison"):
        if file.suffix == ".csv":
            table = getattr(compared, file.stem)
            there = pandas.read_csv(file)
            pandas.testing.assert_frame_equal(table, there, check_dtype=False)
    assert {*compared.arms["arm"]} == {"vimpo", "grpo"}
    assert "vimpo" in str(compared)
    assert "\x1b" not in str(compared)
    assert "data:image/png" in compared._repr_html_()
    assert repr(compared) == "<rlkit.Comparison of 6 runs: vimpo, grpo>"


def test_comparing_what_is_none_is_said_in_python(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare: give runs, a sweep, or their folders"):
        rlkit.compare()
    runs = [write_run(tmp_path / each, each) for each in ("vimpo", "grpo")]
    write_comparison(compare([write_run(tmp_path / "ppo", "ppo")]), tmp_path / "out")
    with pytest.raises(ConfigError, match="choose another folder with out="):
        rlkit.compare(*runs).write(tmp_path / "out")


def written_sweep(folder: Path) -> Path:
    """A sweep of two arms and two seeds, of which one has not begun."""
    runs = [SweepRun(name=f"{a}-seed{s}", arm=a, condition="none", seed=s) for s in (0, 1) for a in ("vimpo", "grpo")]
    folder.mkdir()
    place = SweepFolder(folder, runs)
    place.write_plan()
    for run in runs[:3]:
        write_run(place.run_folder(run), run.arm, seed=run.seed, steps=12)
    trials = [Trial(settings={"optimizer.lr": lr}, scores={"9": score}) for lr, score in ((1e-4, 0.5), (2e-4, 0.7))]
    tuned = Tuning(arm="vimpo", condition="none", metric="m", seeds=[9], trials=trials, chosen={"optimizer.lr": 2e-4})
    place.write_tuning([tuned])
    return folder


def test_a_sweep_is_read_back_as_tables(tmp_path: Path) -> None:
    sweep = rlkit.Sweep(written_sweep(tmp_path / "sweep"))
    assert sweep.runs["name"].tolist() == ["vimpo-seed0", "grpo-seed0", "vimpo-seed1", "grpo-seed1"]
    assert sweep.runs["step"].tolist() == [12, 12, 12, 0]
    metrics = sweep.metrics
    assert metrics.groupby("name").size().to_dict() == {"vimpo-seed0": 12, "grpo-seed0": 12, "vimpo-seed1": 12}
    one = metrics[metrics["name"] == "grpo-seed0"]["reward/clean"].tolist()
    assert one == sweep.run("grpo-seed0").metrics["reward/clean"].tolist()
    assert sweep.tuning[["optimizer.lr", "score", "chosen"]].values.tolist() == [[1e-4, 0.5, False], [2e-4, 0.7, True]]
    assert {*sweep.compare().arms["arm"]} == {"vimpo", "grpo"}
    assert sweep.plot().axes
    with pytest.raises(ConfigError, match="has no run 'vimpo-seed7'; did you mean"):
        sweep.run("vimpo-seed7")
    with pytest.raises(ConfigError, match="is not a sweep's folder"):
        rlkit.Sweep(tmp_path)


def test_a_sweep_that_cannot_be_is_refused_in_python(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"base": "embedded_xs", "out": tmp_path, "quiet": True}
    with pytest.raises(ConfigError, match="the sweep has no arms: name the algorithms, as in algos="):
        rlkit.sweep(**asked)
    with pytest.raises(ConfigError, match="tune and tune_seeds go together"):
        rlkit.sweep(algos="vimpo", tune={"lr": [1e-4, 2e-4]}, **asked)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thing").touch()
    with pytest.raises(ConfigError, match="is no sweep's: choose another name with name="):
        rlkit.sweep(algos="vimpo", **asked)


def test_a_sweep_s_arguments_make_its_arms_and_its_cell_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runs are written, and not trained; docs/examples trains some."""
    asked_for: list[sweeps.SweepConfig] = []
    died: list[str] = []

    def made(spec: sweeps.SweepConfig, folder: Path, **_: Any) -> sweeps.Outcome:
        asked_for.append(spec)
        arms = specs.arms(spec)
        place = SweepFolder(
            folder, [SweepRun(name=f"{at}", arm=a.name, condition="none", seed=0) for at, a in enumerate(arms)]
        )
        folder.mkdir(exist_ok=True)
        place.write_plan()
        (folder / "sweep.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", by_alias=True)))
        for run in place.runs:
            if not place.run_folder(run).exists():
                make_run(place.run_folder(run), healthy(12))
        return sweeps.Outcome(folder=folder, failed=died, interrupted=0, scored=len(arms))

    monkeypatch.setattr(sweeps, "sweep", made)
    given: dict[str, Any] = {"algos": {"grpo": {"algo.kl_coef": 0.01}}, "base": "embedded_xs", "lr": [1e-4, 2e-4]}
    given |= {"steps": 2, "settings": {"batch": 4, "eval.problems": 2}, "tune": {"algo.clip_low": [0.1, 0.2]}}
    given |= {"tune_seeds": [9], "out": tmp_path}
    sweep = rlkit.sweep(**given)
    (spec,) = asked_for
    assert spec.set == {"steps": 2, "batch.prompts_per_step": 4, "eval.problems": 2}
    assert spec.grid == {"optimizer.lr": [1e-4, 2e-4]}
    assert (spec.algos, spec.seeds, spec.tune_seeds) == ({"grpo": {"algo.kl_coef": 0.01}}, [0], [9])
    assert sweep.runs["arm"].tolist() == ["grpo lr=0.0001", "grpo lr=0.0002"]
    assert (sweep.folder / "comparison" / "comparison.html").is_file()

    with pytest.raises(ConfigError, match='holds this sweep already: finish it with exist="resume"'):
        rlkit.sweep(**given)
    assert rlkit.sweep(exist="resume", **given).folder == sweep.folder
    with pytest.raises(ConfigError, match=r'another sweep \(it differs in seeds\): exist="new" makes one beside it'):
        rlkit.sweep(exist="resume", seeds=[3], **given)
    assert rlkit.sweep(exist="new", seeds=[3], **given).folder.name == "sweep-2"
    died.append("grpo-seed0")
    with pytest.raises(RlkitError, match=r'1 run died: grpo-seed0\. .* when it is mended, exist="resume" makes'):
        rlkit.sweep(exist="resume", **given)
