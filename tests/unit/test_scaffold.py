"""`rlkit new`: what it writes works as it stands, and it writes over nothing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rlkit import distribution, registry, scaffold
from rlkit.cli import main
from rlkit.config import PluginRef
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey
from rlkit.scoring.checks import score
from rlkit.scoring.noise import apply_noise, build_noises


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    return tmp_path


def rlkit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def fresh_name() -> str:
    """Loaded files stay importable for as long as the process lives."""
    return f"own_{random.getrandbits(40):x}"


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_a_package_has_all_it_needs_under_its_name(kind: scaffold.Kind, place: Path) -> None:
    name = fresh_name()
    result = rlkit("new", kind, name)
    assert result.exit_code == 0, result.output
    files = {file.name for file in Path(name).iterdir()}
    assert files == {"pyproject.toml", "README.md", f"{name}.py", f"test_{name}.py"}
    for file in files:
        text = Path(name, file).read_text()
        assert "my_" not in text
        assert "MyPlugin" not in text
        assert name in text
    project = tomllib.loads(Path(name, "pyproject.toml").read_text())
    group = scaffold._GROUPS[kind]
    (point,) = project["project"]["entry-points"][f"rlkit.{group}"].values()
    assert f"rlkit.{group}" in {f"rlkit.{each}" for each in registry.KINDS}
    assert project["project"]["dependencies"] == [distribution.NAME]
    registry.load([f"{name}/{name}.py"])
    assert registry.find(group, name).factory.__name__ == point.partition(":")[2]
    assert registry.find(group, name).summary
    for said in (f"pip install -e {name}", f"python -m pytest {name}", "embedded"):
        assert said in result.output


def test_what_it_says_to_type_trains(place: Path) -> None:
    name = fresh_name()
    result = rlkit("new", "algorithm", name, "--single-file")
    assert [file.name for file in place.iterdir()] == [f"{name}.py"]
    (command,) = [line.partition("  #")[0].split() for line in result.output.splitlines() if "rlkit run" in line]
    small = ["-s", "batch.prompts_per_step=2", "-s", "batch.samples_per_prompt=4", "-s", "eval.problems=2"]
    assert rlkit(*command[1:], *small, "-s", "steps=1").exit_code == 0
    assert f"{name}/logprob" in (place / "runs" / name / "metrics.jsonl").read_text()


def test_the_reward_judges(place: Path) -> None:
    name = fresh_name()
    assert rlkit("new", "reward", name, "--single-file").exit_code == 0
    registry.load([f"{name}.py"])
    key = SampleKey("prompt", 1, 0, 0)
    samples = [
        Sample(key=key, prompt="47+85=", response=said, tokens=[], answer=gold, truncated=False)
        for said, gold in (("7+5=12;132", "132"), ("131", "132"), ("", "132"), ("1", ""))
    ]
    found = score(registry.build("rewards", name, {}), name, samples)
    assert [(each.value, each.status) for each in found] == [
        (1.0, "ok"),
        (0.0, "ok"),
        (0.0, "no_answer"),
        (None, "bad_gold"),
    ]


def test_the_noise_disturbs_as_often_as_asked(place: Path) -> None:
    name = fresh_name()
    assert rlkit("new", "noise", name, "--single-file").exit_code == 0
    registry.load([f"{name}.py"])
    noises = build_noises([PluginRef(kind=name, prob=0.25)])
    keys = [SampleKey(f"p{i}", 1, 0, 0) for i in range(4000)]
    noisy = apply_noise(noises, 3, keys, [RewardResult(value=1.0)] * len(keys), (-1.0, 1.0))
    assert set(noisy) == {-1.0, 1.0}
    assert 0.2 < noisy.count(-1.0) / len(keys) < 0.3


def test_the_suite_measures(place: Path) -> None:
    name = fresh_name()
    result = rlkit("new", "suite", name, "--single-file")
    (command,) = [line.partition("  #")[0].split() for line in result.output.splitlines() if "rlkit eval" in line]
    result = rlkit(*command[1:])
    assert result.exit_code == 0, result.output
    assert name in result.output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "my-reward",
            "give letters (a to z), digits and underscores, a letter first, and none of Python's own words; ",
        ),
        ("my-reward", "'my_reward' would do"),
        ("2x", "'x' would do"),
        ("lambda", "'my_lambda' would do"),
        ("größe", "cannot be the name of a plugin"),
        ("_", "cannot be the name of a plugin"),
        ("../up", "cannot be the name of a plugin"),
        ("math", "there is a reward 'math' already (`rlkit list rewards`): choose another name"),
        ("json", "there is a Python module 'json' already, which json.py would hide"),
        ("torch", "there is a Python module 'torch' already"),
    ],
)
@pytest.mark.parametrize("single", [[], ["--single-file"]])
def test_a_name_that_cannot_be_is_refused(name: str, said: str, single: list[str], place: Path) -> None:
    result = rlkit("new", "reward", name, *single)
    assert result.exit_code == 2
    assert said in result.output
    assert not list(place.iterdir())
    assert not (place.parent / "up").exists()


def test_a_name_of_another_kind_is_free(place: Path) -> None:
    assert rlkit("new", "noise", "grpo").exit_code == 0


def test_it_writes_over_nothing(place: Path) -> None:
    Path("own").mkdir()
    Path("own.py").write_text("mine\n")
    Path("gone.py").symlink_to("nowhere")
    for arguments in (["own"], ["own", "--single-file"], ["gone", "--single-file"]):
        result = rlkit("new", "algorithm", *arguments)
        assert result.exit_code == 2
        assert "exists already: choose another name, or remove it first" in result.output
    assert Path("own.py").read_text() == "mine\n"
    assert not list(Path("own").iterdir())


def test_a_folder_that_cannot_be_written_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "own.py")

    monkeypatch.setattr(Path, "write_text", refuse)
    result = rlkit("new", "algorithm", "own", "--single-file")
    assert result.exit_code == 2
    assert "cannot write own.py: No space left on device" in result.output


@pytest.mark.slow
def test_installed_they_are_known_and_their_tests_pass(place: Path) -> None:
    """From the folder above them, where folders of their names stand in the way of their modules."""
    names = {kind: f"new_{kind}" for kind in scaffold.KINDS}
    for kind, name in names.items():
        assert rlkit("new", kind, name).exit_code == 0
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation", "--target", "site"]
    subprocess.run([*pip, *(f"./{name}" for name in names.values())], check=True)
    paths = os.pathsep.join(filter(None, ["site", os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *names.values()],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    run = ["run", "embedded_xs", "--algo", names["algorithm"], "-s", f"reward={names['reward']}", "-s", "steps=1"]
    noise = ["--noise", f"{names['noise']}:0.25", "-s", f"eval.suites=[{names['suite']}]", "-s", "eval.problems=4"]
    done = subprocess.run(
        [sys.executable, "-m", "rlkit", *run, *noise], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
