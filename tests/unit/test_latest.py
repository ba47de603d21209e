"""tools/latest.py: what it says of versions and of tests that failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import latest

    return latest


def test_drift_is_said_by_package(tool: ModuleType) -> None:
    tested = {"torch": "2.13.0", "transformers": "5.19.0", "vllm": "0.32.0"}
    lines = tool.drift(tested, {"torch": "2.13.0+cpu", "transformers": "5.20.1"})
    assert [line.split(maxsplit=2) for line in lines[:2]] == [
        ["torch", "2.13.0+cpu", "as tested"],
        ["transformers", "5.20.1", "tested: 5.19.0"],
    ]
    assert "not installed" in lines[2]


def test_what_failed_is_named_with_its_reason(tool: ModuleType, tmp_path: Path) -> None:
    pytest_file = tmp_path / "test_some.py"
    pytest_file.write_text(
        "def test_a(): pass\ndef test_b(): assert 1 == 2, 'no longer\\nso'\ndef test_c(gone): pass\n"
    )
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", str(pytest_file)]
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, check=False)
    failed = tool.failures(report)
    assert len(failed) == 2
    assert failed[0].startswith("test_some::test_b: AssertionError: no longer")
    assert "test_c: failed on setup" in failed[1]
