"""The scripts of docs/examples do what they say: from Python, and from the shell as their docstrings have it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import byte_level
import pytest
from click.testing import CliRunner

import rlkit
from rlkit import modules, registry
from rlkit.cli import main
from rlkit.config import reading

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SCRIPTS = {file.stem: file for file in sorted(EXAMPLES.glob("*.py"))}
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
TINY = {"batch.samples_per_prompt": 2, "sampling.max_tokens": 8, "eval.problems": 2, "engine.zero_stage": 0}
TINY |= {"model.dtype": "float32"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the scripts; what they register is forgotten after. Evaluations are short."""
    shipped = {name: re.sub(r"problems: \d+", "problems: 4", text) for name, text in reading.presets().items()}
    monkeypatch.setattr(reading, "presets", lambda: shipped)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(modules, "_files", {})
    for file in SCRIPTS.values():
        shutil.copy(file, tmp_path)
    return tmp_path


def script(name: str) -> Any:
    registry.load([f"{name}.py"])
    return modules._files[Path(f"{name}.py").resolve()]


def commands(name: str) -> list[str]:
    """The docstring's commands, each on one line."""
    text = (modules._files[Path(f"{name}.py").resolve()].__doc__ or "").replace("\\\n", " ")
    return re.findall(r"^    (rlkit .*)$", text, re.MULTILINE)


def plan(command: str) -> str:
    """What the command would do."""
    result = CliRunner().invoke(main, [*shlex.split(command)[1:], "--dry-run"])
    assert result.exit_code == 0, f"{command}\n{result.output}"
    return result.output


def test_there_are_six_and_each_is_short_and_says_its_shell_form(place: Path) -> None:
    assert len(SCRIPTS) == 6
    page = (EXAMPLES.parent / "python.md").read_text()
    for name, file in SCRIPTS.items():
        script(name)
        assert len(file.read_text().splitlines()) < 60
        assert commands(name), name
        assert f"(examples/{file.name})" in page


@pytest.mark.slow
def test_a_reward_of_one_s_own_runs_in_workers_as_a_script(place: Path) -> None:
    """By itself, `__main__` is the script, which names itself as a plugin."""
    source = Path("own_reward.py").read_text()
    Path("own_reward.py").write_text(source.replace("steps: int = 40", "steps: int = 1"))
    done = subprocess.run([sys.executable, "own_reward.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "reward/part/right" in done.stdout
    assert "without a deadline" not in done.stderr
    assert set(rlkit.Run("runs/short").samples([1])["reward"]) <= {0.0, 0.5, 1.0}
    script("own_reward")
    assert "reward        short (limit 15)" in plan(commands("own_reward")[0])


@pytest.mark.slow
def test_an_algorithm_of_one_s_own_stands_beside_grpo(place: Path) -> None:
    compared = script("own_algorithm").main(steps=1)
    assert {*compared.arms["arm"]} == {"others", "grpo"}
    assert rlkit.Run("runs/others").metrics["policy/grad_norm"].iloc[-1] > 0
    ours, theirs, last = commands("own_algorithm")
    assert "algorithm     others" in plan(ours)
    assert "algorithm     grpo" in plan(theirs)
    assert CliRunner().invoke(main, shlex.split(last)[1:]).exit_code == 0


@pytest.mark.slow
def test_rewards_are_summed_by_their_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = script("combined_rewards").main(steps=1)
    samples = run.samples([1])
    parts = samples["parts"].map(dict)
    assert parts.map(lambda part: part["final_answer"] + 0.3 * part["length"]).tolist() == pytest.approx(
        samples["reward"].tolist(), abs=1e-6
    )
    assert f"reward        {samples['reward'].mean():+.3f}" in capsys.readouterr().out
    said = plan(commands("combined_rewards")[0])
    assert "0.3 x length" in said


@pytest.mark.slow
def test_gsm8k_takes_files_and_a_model_of_one_s_own(place: Path) -> None:
    model = byte_level.make(place / "model", CHAT)
    rows = [{"question": f"What is {a} and 1?", "answer": f"{a} + 1\n#### {a + 1}"} for a in range(8)]
    Path("gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    example = script("gsm8k_smollm2")
    run = example.main(str(model), "gsm8k.jsonl", "gsm8k.jsonl", steps=1, batch=2, settings=TINY)
    prompt = run.samples([1])["prompt"][0]
    assert re.search(r"<user>What is \d and 1\?\n\nEnd your answer with #### and the number\.", prompt)
    assert set(run.samples([1])["answer"]) <= {str(a + 1) for a in range(8)} | {row["answer"] for row in rows}
    again = example.main(str(model), "gsm8k.jsonl", "gsm8k.jsonl", steps=1, batch=2, settings=TINY)
    assert again.folder == run.folder
    assert "SmolLM2-135M-Instruct" in plan(commands("gsm8k_smollm2")[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
def test_programs_are_judged_by_their_tests(place: Path) -> None:
    model = byte_level.make(place / "model", CHAT)
    run = script("code_reward").main(str(model), steps=1, settings=TINY)
    samples = run.samples([1])
    assert len(samples) == 6
    assert samples["prompt"].str.contains("Write a Python function").all()
    assert set(samples["status"]) <= {"ok", "no_answer"}
    said = plan(commands("code_reward")[0].replace("Qwen/Qwen2.5-Coder-0.5B-Instruct", str(model)))
    assert "3 problems" in said


@pytest.mark.slow
def test_a_sweep_is_read_back_as_a_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = script("sweep_as_table")
    sweep = example.main(steps=1, seeds="0", noise="none")
    assert sweep.metrics.groupby("name").size().to_dict() == {"vimpo-seed0": 2, "grpo-seed0": 2}
    assert "vimpo" in capsys.readouterr().out
    assert example.main(steps=1, seeds="0", noise="none").folder == sweep.folder
    command, _ = commands("sweep_as_table")
    assert "8, of 20 steps each" in plan(command)


def kinds(page: dict[str, Any]) -> list[list[tuple[str, list[str]]]]:
    """What each code cell shows, without what it says."""
    outputs = [cell["outputs"] for cell in page["cells"] if cell["cell_type"] == "code"]
    return [[(each["output_type"], sorted(each.get("data", {}))) for each in cell] for cell in outputs]


@pytest.mark.slow
def test_the_notebook_trains_plots_samples_and_compares(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES.parents[1] / "tools"))
    import notebook

    kept = json.loads((EXAMPLES / "training.ipynb").read_text())
    assert len({cell["id"] for cell in kept["cells"]}) == len(kept["cells"])
    small = json.loads((EXAMPLES / "training.ipynb").read_text().replace("steps=40", "steps=2"))
    notebook.execute(small)
    assert kinds(kept) == kinds(small)
    first = "".join(small["cells"][1]["outputs"][0]["data"]["text/html"])
    assert "vimpo, 2 of 2 steps" in first
    assert "data:image/png;base64," in first
    assert str(kinds(small)).count("image/png") == 2
    made = {each: (place / "runs" / each / "metrics.jsonl").read_text() for each in ("first-vimpo", "first-grpo")}
    notebook.execute(small)  # every cell once more: what is done is handed back
    assert made == {each: (place / "runs" / each / "metrics.jsonl").read_text() for each in made}
