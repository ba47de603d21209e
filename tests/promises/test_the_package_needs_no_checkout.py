"""The wheel trains from any folder, where no checkout is; what an extra brings is asked for by name."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"rlkit": "rlkit", "algorithms": "rlkit_algorithms", "rewards": "rlkit_rewards", "configs": "rlkit_configs"}

ASKS = """
from click.testing import CliRunner
from rlkit.cli import main

for setting in ("sampler=vllm", "trackers=[wandb]", "trackers=[tensorboard]"):
    done = CliRunner().invoke(main, ["run", "embedded_xs", "-s", setting, "-s", "name=another", "--dry-run"])
    print(done.exit_code, done.stderr)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, ROOT / "tools" / "package.py", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def environment(
    built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Callable[..., subprocess.CompletedProcess[str]]]:
    """Makes a fresh environment with the wheel and all libraries of this one but some, and runs commands in an empty
    folder there."""

    def make(*without: str) -> Callable[..., subprocess.CompletedProcess[str]]:
        folder = tmp_path_factory.mktemp("fresh")
        home = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
        site = next(home.glob("lib/python*/site-packages"))
        for library in Path(sysconfig.get_path("purelib")).iterdir():
            if not library.name.startswith(without) and "rlkit" not in library.name:
                (site / library.name).symlink_to(library)
        pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "-q", "--no-deps"]
        subprocess.run([*pip, str(built[1])], check=True)
        empty = folder / "empty"
        empty.mkdir()
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            program = home / "bin" / command[0]
            return subprocess.run([program, *command[1:]], cwd=empty, env=clean, capture_output=True, text=True)

        return run

    return make


def test_archive_and_wheel_hold_every_file(built: tuple[Path, Path]) -> None:
    archive, wheel = built
    with tarfile.open(archive) as packed:
        sources = {name.partition("/")[2] for name in packed.getnames()}
    with zipfile.ZipFile(wheel) as packed_wheel:
        installed = set(packed_wheel.namelist())
    files = [
        path.relative_to(ROOT)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert len(files) > 200
    assert [str(path) for path in files if str(path) not in sources] == []
    names = ["/".join((FOLDERS[path.parts[0]], *path.parts[1:])) for path in files]
    assert [name for name in names if name not in installed] == []


def test_it_trains_from_an_empty_folder(
    environment: Callable[..., Callable[..., subprocess.CompletedProcess[str]]],
) -> None:
    run = environment()
    where = run("python", "-c", "import rlkit, rlkit_algorithms; print(rlkit.__file__, rlkit_algorithms.__file__)")
    assert str(ROOT) not in where.stdout
    assert where.stdout.count("site-packages") == 2
    assert run("rlkit", "--version").stdout.startswith("rlkit, version ")
    listed = run("rlkit", "list", "algorithms")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("[rlkit-rlvr ") >= 9
    presets = run("rlkit", "config", "ls").stdout
    assert all(path.stem in presets for path in (ROOT / "configs").glob("*.yaml"))
    done = run("rlkit", "run", "embedded_xs", "--algo", "vimpo", "-s", "steps=1", "-s", "eval.problems=2")
    assert done.returncode == 0, done.stderr
    done = run("rlkit", "run", "embedded_countdown", "--algo", "grpo", "--dry-run")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not here to be left out")
def test_without_the_extras_it_trains_and_says_what_to_install(
    environment: Callable[..., Callable[..., subprocess.CompletedProcess[str]]],
) -> None:
    run = environment("vllm", "wandb", "tensorboard")
    done = run("rlkit", "run", "embedded_xs", "-s", "steps=1", "-s", "eval.problems=2")
    assert done.returncode == 0, done.stderr
    assert "vLLM is not installed" in done.stdout
    done = run("python", "-c", ASKS)
    for what, extra in (("sampler", "vllm"), ("tracker", "wandb"), ("tracker", "tensorboard")):
        said = f"2 rlkit: {what} {extra}: the package is not installed. Run: pip install 'rlkit-rlvr[{extra}]'"
        assert said in done.stdout
    said = run("rlkit", "doctor").stdout
    for extra in ("vllm", "wandb", "tensorboard"):
        assert f"pip install 'rlkit-rlvr[{extra}]'" in said
