"""The options that people type: short names of keys, counts, and `rlkit sample` with its conversations."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rlkit import config as configs
from rlkit import embedded
from rlkit.assembly import sampling
from rlkit.cli import main
from rlkit.commands import model
from rlkit.config.keys import PLUGINS, keys
from rlkit.config.meant import MEANT
from rlkit.sweeps import spec as specs


def rlkit(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin)


def test_short_options_are_keys(tmp_path: Path) -> None:
    given = ["--model", "embedded:xs", "--data", "embedded:sorting", "--steps", "3", "--lr", "2e-4", "--batch", "6"]
    result = rlkit("config", "validate", "embedded", *given, "--reward", "math", "-s", "reward.strict=true")
    assert result.exit_code == 0, result.output
    settings = configs.load(configs.parse_yaml(result.output, "what it printed"))
    assert (settings.model.path, settings.data.path, settings.steps) == ("embedded:xs", "embedded:sorting", 3)
    assert (settings.optimizer.lr, settings.batch.prompts_per_step) == (2e-4, 6)
    assert (settings.reward[0].kind, settings.reward[0].options["strict"]) == ("math", True)


def test_a_short_name_is_a_key_wherever_one_is_given() -> None:
    settings = configs.load("embedded", ["lr=3e-4", "batch={epochs: 2}", "batch=16", "model=embedded:xs"])
    assert (settings.optimizer.lr, settings.model.path) == (3e-4, "embedded:xs")
    assert (settings.batch.prompts_per_step, settings.batch.epochs) == (16, 2)


def test_short_names_are_keys_of_a_sweep_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = "algos: grpo\nset: {batch: 4, steps: 5}\ngrid: {model: [a, b]}\ntune: {lr: [1, 2]}\ntune_seeds: 9\n"
    file.write_text(text)
    spec = specs.load(str(file), specs.given_settings(["batch={epochs: 2}"], ["batch=8,16"], []))
    assert spec.set == {"batch.epochs": 2, "batch.prompts_per_step": 4, "steps": 5}
    assert (spec.grid, spec.tune) == ({"model.path": ["a", "b"]}, {"batch.prompts_per_step": [8, 16]})


def test_short_options_of_a_sweep_take_several_values() -> None:
    given = ["sweep", "--algos", "grpo", "--base", "embedded_xs", "--dry-run", "--lr", "1e-4,2e-4"]
    result = rlkit(*given, "--steps", "3")
    assert result.exit_code == 0, result.output
    assert "grpo lr=0.0001" in result.output
    assert "grpo lr=0.0002" in result.output
    assert "--lr and -s lr=... are the same key" in rlkit(*given, "-s", "lr=3e-4").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "--n", "3"], "no such option --n; did you mean -n?"),
        (["eval", "--top-p", "1"], "no such option --top-p; the key is top_p: -s top_p=..."),
        (["eval", "--max-new-tokens", "1"], "the key is max_tokens: --max-tokens, or -s max_tokens=..."),
        (["eval", "--dataset-name", "x"], "the key is data: --data, or -s data=..."),
        (["sweep", "--kl-coef", "1"], "it may be -s algo.kl_coef=..., or -s algo.beta=..."),
        (["config", "validate", "--learning_rate=1"], "the key is optimizer.lr: --lr, or -s optimizer.lr=..."),
        (["run", "--no-such-thing"], "No such option '--no-such-thing'."),
        (["run", "-q"], "No such option '-q'"),
    ],
)
def test_an_unknown_option_names_the_key(arguments: list[str], said: str) -> None:
    result = rlkit(*arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_what_hints_name_is_there() -> None:
    known = {key.name for key in keys(configs.RunConfig)}
    named = {key for meant in MEANT.values() for key in meant}
    assert {key for key in named if key.partition(".")[0] not in PLUGINS} <= known
    assert not known & MEANT.keys(), "an option of that name would be found without the table"


@pytest.fixture
def chat_model(tmp_path: Path) -> str:
    """The smallest model, which reads all that was said."""
    folder = tmp_path / "chat"
    shutil.copytree(embedded.resolve("embedded:xs"), folder)
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_a_prompt_comes_from_a_pipe_too() -> None:
    piped = rlkit("sample", "embedded:xs", "--max-tokens", "8", stdin="47+85=\n")
    assert piped.exit_code == 0, piped.output
    assert piped.output == rlkit("sample", "--model", "embedded:xs", "47+85=", "--max-tokens", "8").output


def test_temperature_0_gives_one_response_whatever_the_seed() -> None:
    asked = ["sample", "embedded:xs", "47+85=", "--max-tokens", "8", "-n", "2", "--seed"]
    greedy = [rlkit(*asked, seed, "--temperature", "0").output for seed in ("1", "2")]
    assert greedy[0] == greedy[1]
    assert len({*greedy[0].splitlines()}) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the model first"),
        (["embedded:xs"], "no prompt: write one behind the model"),
        (["embedded:xs", "1", "+", "1"], "'+': one prompt at a time; put quotes around it"),
        (["embedded:xz", "1"], "did you mean 'embedded:xs'"),
        (["./nowhere", "1"], "'./nowhere' does not exist"),
        (["embedded:xs", "1" * 5000], "no room for a response: the prompt takes"),
        (["embedded:xs", "1", "--temperature", "-1"], "-1.0 is not in the range x>=0"),
    ],
)
def test_what_cannot_be_sampled(arguments: list[str], said: str) -> None:
    result = rlkit("sample", *arguments)
    assert result.exit_code != 0
    assert said in result.output


def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.yaml").write_text("steps: 1\n")
    assert "did you mean 'first'?" in rlkit("sample", str(tmp_path / "runs" / "firs"), "1").output
    assert f"there are runs in {tmp_path / 'runs'}" in rlkit("sample", str(tmp_path / "runs"), "1").output


def test_a_conversation_keeps_its_turns(chat_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_at_a_terminal", lambda: True)
    put: list[object] = []
    answer = sampling.Asked.answer

    def watched(asked: sampling.Asked, prompt: str | list[sampling.Message], count: int, seed: int) -> list[str]:
        put.append(prompt)
        return answer(asked, prompt, count, seed)

    monkeypatch.setattr(sampling.Asked, "answer", watched)
    result = rlkit("sample", chat_model, "--max-tokens", "4", stdin="1+1=\n\n2+2=\n")
    assert result.exit_code == 0, result.output
    assert "a conversation, whose turns are kept. Ctrl-D ends it." in result.output
    (one,), two = put
    assert one == {"role": "user", "content": "1+1="}
    assert [message["role"] for message in two] == ["user", "assistant", "user"]
    assert two[0] == one
    assert two[1]["content"] in result.output
    assert "-n: a conversation goes on with one response" in rlkit("sample", chat_model, "-n", "2").output


def test_without_a_chat_template_each_prompt_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_at_a_terminal", lambda: True)
    result = rlkit("sample", "embedded:xs", "--max-tokens", "8", stdin="47+85=\n" + "1" * 5000 + "\n47+85=\n")
    assert result.exit_code == 0, result.output
    assert "one prompt at a time. Ctrl-D ends it." in result.output
    assert "rlkit: no room for a response" in result.output
    assert result.output.count("> ") == 4
    first = rlkit("sample", "embedded:xs", "47+85=", "--max-tokens", "8").output
    assert first in result.output
