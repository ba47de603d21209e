"""What a shell offers after a TAB, by click's own classes, and by ours for bash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import FishComplete, ShellComplete, ZshComplete

from rlkit import config as configs
from rlkit import registry
from rlkit.cli import main
from rlkit.commands.completion import Bash


def offered(*words: str) -> list[str]:
    """What is offered for the last word, which is being typed; types of files and folders in brackets."""
    *before, incomplete = words
    items = ShellComplete(main, {}, "rlkit", "_RLKIT_COMPLETE").get_completions(before, incomplete)
    return [item.value if item.type == "plain" else f"<{item.type}>" for item in items]


def in_bash(words: str, monkeypatch: pytest.MonkeyPatch, new_word: bool = False) -> list[str]:
    """The same, of words as bash parts them."""
    given = words.split()
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(given) if new_word else len(given) - 1))
    return Bash(main, {}, "rlkit", "_RLKIT_COMPLETE").complete().splitlines()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two runs, and a folder that is none."""
    monkeypatch.chdir(tmp_path)
    for run in ("runs/grpo-s-seed0", "runs/vimpo-s-seed0", "other/mine"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.yaml").touch()
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path


def test_commands_and_options() -> None:
    assert "sample" in offered("sa")
    assert offered("run", "--l") == ["--lr"]
    assert {"ls", "show", "cp", "validate", "schema"} <= {*offered("config", "")}


def test_presets_and_files() -> None:
    assert offered("run", "emb") == ["<file>", *(name for name in sorted(configs.presets()) if name.startswith("emb"))]
    assert "gsm8k_qwen3" in offered("config", "cp", "gsm")
    assert "embedded_xs" in offered("sweep", "--base", "embedded_")
    assert "noise" in offered("sweep", "no")
    assert offered("run", "--plugin", "x") == ["<file>"]


@pytest.mark.parametrize("before", [("run", "-s"), ("run", "embedded"), ("run", "a=1"), ("sweep", "--tune")])
def test_keys(before: tuple[str, ...]) -> None:
    assert offered(*before, "optimizer.l") == ["optimizer.lr="]
    assert offered(*before, "lr") == ["lr="]
    assert {"batch=", "batch.epochs=", "batch.minibatches="} <= {*offered(*before, "batch")}
    assert offered(*before, "optimizer.schedule=co") == ["optimizer.schedule=constant", "optimizer.schedule=cosine"]
    assert offered(*before, "algo=vimpo") == ["algo=vimpo", "algo=vimpo_auto"]
    assert offered(*before, "model.gradient_checkpointing=") == [
        "model.gradient_checkpointing=true",
        "model.gradient_checkpointing=false",
    ]
    assert offered(*before, "steps=") == []


def test_the_first_word_of_a_run_is_a_config_or_a_key() -> None:
    assert {"embedded", "eval.every=", "<file>"} <= {*offered("run", "e")}
    assert "embedded" not in offered("run", "embedded_xs", "e")


def test_names_of_plugins() -> None:
    assert offered("run", "--algo", "") == registry.names("algorithms")
    assert offered("run", "--reward", "ma") == ["math"]
    assert offered("list", "rewards", "ma") == ["math"]
    assert offered("list", "noise", "") == registry.names("noise")
    assert offered("sweep", "--algos", "ppo,gr") == ["ppo,grpo"]
    assert offered("eval", "--suite", "math500,aime2") == ["math500,aime24", "math500,aime25"]
    assert "optimizer.lr" in offered("config", "show", "opt")


def test_runs(place: Path) -> None:
    both = ["<dir>", "runs/grpo-s-seed0", "runs/vimpo-s-seed0"]
    for command in ("inspect", "report", "compare", "export", "verify"):
        assert offered(command, "") == both, command
    assert offered("run", "--resume", "runs/v") == ["<dir>", "runs/vimpo-s-seed0"]
    assert offered("compare", "runs/grpo-s-seed0", "ru") == both
    assert offered("inspect", "other/") == ["<dir>", "other/mine"]
    assert offered("sample", "") == [*both, "embedded:s", "embedded:xs"]
    assert offered("sample", "embedded:s", "") == []
    assert offered("eval", "--model", f"{place}/other/m") == ["<dir>", f"{place}/other/mine"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rlkit run --alg", ["plain,--algo"]),
        ("rlkit run -s optimizer.schedule = co", ["plain,constant", "plain,cosine"]),
        ("rlkit run -s optimizer.schedule =", ["plain,constant", "plain,linear", "plain,cosine"]),
        ("rlkit run --algo = vimpo_", ["plain,vimpo_auto"]),
        ("rlkit run lr = 1e-4 optimizer.sched", ["plain,optimizer.schedule="]),
        ("rlkit sample embedded : x", ["dir,x", "plain,xs"]),
        ("rlkit sample embedded :", ["dir,", "plain,s", "plain,xs"]),
    ],
)
def test_bash_parts_words_at_equals_and_colon(
    words: str, expected: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_bash(words, monkeypatch) == expected


def test_a_new_word_in_bash(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_bash("rlkit list noise", monkeypatch, new_word=True) == [f"plain,{n}" for n in registry.names("noise")]
    assert "plain,lr=" in in_bash("rlkit run steps = 5", monkeypatch, new_word=True)


def test_zsh_and_fish_show_what_a_key_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "rlkit run -s optimizer.l")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert ZshComplete(main, {}, "rlkit", "_RLKIT_COMPLETE").complete().splitlines() == [
        "plain",
        "optimizer.lr=",
        "Highest learning rate.",
    ]
    monkeypatch.setenv("COMP_CWORD", "optimizer.l")
    assert (
        FishComplete(main, {}, "rlkit", "_RLKIT_COMPLETE").complete() == "plain,optimizer.lr=\tHighest learning rate."
    )


def test_the_scripts_are_sound() -> None:
    script = Bash(main, {}, "rlkit", "_RLKIT_COMPLETE").source()
    assert "compopt -o nospace" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_completion_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom click.shell_completion import ShellComplete\nfrom rlkit.cli import main\n"
        "offered = ShellComplete(main, {}, 'rlkit', 'X').get_completions\n"
        "for words in (['run', '-s', 'op'], ['run', '--algo', ''], ['list', 'rewards', ''], ['sweep', ''],\n"
        "              ['sample', ''], ['run', '-s', 'algo='], ['eval', '--suite', '']):\n"
        "    assert offered(words[:-1], words[-1])\n"
        "print(sorted({'torch', 'transformers', 'vllm', 'rlkit_rewards.math'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
