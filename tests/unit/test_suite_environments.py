"""Suites that are environments: trajectories measured by `rlkit eval`, and while a run trains."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from byte_level import make
from chat_templates import QWEN3
from click.testing import CliRunner, Result
from transformers import AutoTokenizer

import rlkit
from rlkit import config as configs
from rlkit import conformance, generation, modules, registry
from rlkit.cli import main
from rlkit.conformance import ConformanceError
from rlkit.errors import ConfigError
from rlkit.evaluation import suites
from rlkit.evaluation.datacheck import check as check_data
from rlkit.generation.transformers import _Transformers
from rlkit.records.checkpoints import MANIFEST, Manifest
from rlkit.records.folder import RunFolder

SUITES = """
from rlkit import Observation, environment, reward, suite
from rlkit.data.reading import read_rows
from rlkit.evaluation.suites import Suite

GUESSING = {"kind": "guessing", "guesses": 5, "higher": "+", "lower": "-"}


def rows(task, count=6):
    return lambda folder: read_rows(f"embedded:{task}", split="test")[:count]


@reward("even")
def even(samples):
    "Whether the response is an even number."
    return [float(s.response.isdecimal() and int(s.response) % 2 == 0) for s in samples]


@environment("frail")
class Frail:
    def start(self, task, seed):
        self.frail = task.columns["frail"]
        return ""

    def step(self, action):
        if self.frail:
            raise KeyError("no such room")
        return Observation(reward=1.0, done=True)


@suite("games")
def games() -> Suite:
    "Numbers to guess"
    return Suite(
        load=rows("guessing"), template=None, environment=GUESSING, conversation={"max_turns": 4}, samples=4,
        metric="pass",
    )


@suite("even_games")
def even_games() -> Suite:
    "Numbers to guess, by even guesses"
    return Suite(load=rows("guessing"), template=None, environment=GUESSING, reward="even", samples=4)


@suite("sums")
def sums() -> Suite:
    "Sums"
    return Suite(load=rows("arithmetic"), template=None, reward="final_answer")


@suite("frail_games")
def frail_games() -> Suite:
    "Some of them break"
    odd = [{"prompt": f"{n}+1=", "frail": n == 2} for n in (1, 2)]
    return Suite(load=lambda folder: odd, template=None, environment="frail", answer=None)


@suite("tooled")
def tooled() -> Suite:
    "Sums with a calculator"
    environment = {"kind": "tools", "tools": ["calculator"]}
    return Suite(load=rows("arithmetic"), template="{prompt}?", environment=environment, reward="exact")

"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of the suites, in the working directory; what is loaded there is forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(modules, "_files", dict(modules._files))
    Path("mine.py").write_text(SUITES)
    return "mine.py"


def evaluate(names: str, *arguments: str, model: str = "embedded:xs-turns") -> Result:
    given = ["--suite", names, "--plugin", "mine.py", "--max-tokens", "48", "--out", "out"]
    return CliRunner().invoke(main, ["eval", "--model", model, *given, *arguments])


def said(names: str, *arguments: str, model: str = "embedded:xs-turns") -> str:
    """What the command prints where it works."""
    result = evaluate(names, *arguments, model=model)
    assert result.exit_code == 0, result.output
    return result.output


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/results.json").read_text())[name]
    return found


def responses(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out", name, "responses.jsonl").read_text().splitlines()]


def played(row: dict[str, Any], turns: int) -> tuple[bool, float]:
    """Whether a game was won, and what it gives: by its text, such as 25+31-28, in which the signs are the answers."""
    guesses = [int(number) for number in re.findall(r"\d+", row["response"])]
    number = int(row["answer"])
    assert 1 <= len(guesses) <= turns
    assert [*re.findall(r"[-+]", row["response"])] == ["+" if number > guess else "-" for guess in guesses][
        : len(guesses) - 1
    ]
    assert number not in guesses[:-1]
    won = guesses[-1] == number
    return won, 1 - (len(guesses) - 1) / 5 if won else 0.0


# `rlkit eval`


def test_trajectories_are_counted_and_several_suites_go_together() -> None:
    output = said("games,sums")
    assert "games: 6 problems x 4 samples of at most 48 tokens, acted in guessing, verifier guessing\n" in output
    assert "  golds are not checked: the environment judges\n" in output
    assert "sums: 6 problems x 1 sample of at most 48 tokens, verifier final_answer\n" in output
    rows, found = responses("games"), results("games")
    assert len(rows) == 24
    games = [played(row, turns=4) for row in rows]
    assert [(row["correct"], row["value"]) for row in rows] == [(won, pytest.approx(value)) for won, value in games]
    won = [sum(each for each, _ in games[at : at + 4]) for at in range(0, 24, 4)]
    assert 0 < sum(won) < 24
    assert found["metrics"]["mean@4"]["value"] == pytest.approx(sum(won) / 24)
    assert found["metrics"]["pass@4"]["value"] == pytest.approx(sum(each > 0 for each in won) / 6)
    # Of the 6 pairs of 4 samples those with none that won are (4 - w)(3 - w) / 2.
    pairs = [1 - (4 - each) * (3 - each) / 12 for each in won]
    assert found["metrics"]["pass@2"]["value"] == pytest.approx(sum(pairs) / 6)
    assert found["reward"]["value"] == pytest.approx(sum(value for _, value in games) / 24)
    assert re.search(rf"pass@4\* +{100 * found['metrics']['pass@4']['value']:.1f} ", output)
    # A turn more would have been a guess more.
    assert found["truncated"] == sum(row["truncated"] for row in rows) > 0
    assert all(len(re.findall(r"\d+", row["response"])) == 4 for row in rows if row["truncated"])
    assert found["settings"]["environment"] == {"kind": "guessing", "guesses": 5, "higher": "+", "lower": "-"}
    assert found["settings"]["conversation"]["max_turns"] == 4
    assert results("sums")["settings"]["environment"] is None
    assert results("sums")["statuses"].keys() <= {"ok", "no_answer"}


def test_it_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    said("games")
    whole, found = Path("out/games/responses.jsonl").read_text(), results("games")
    lines = whole.splitlines()
    cut = {key: value for key, value in json.loads(lines[5]).items() if key not in ("correct", "value", "status")}
    Path("out/games/responses.jsonl").write_text("\n".join([*lines[7:20], json.dumps(cut), lines[2][:30]]))
    said("games")
    assert (Path("out/games/responses.jsonl").read_text(), results("games")) == (whole, found)

    def no_model(*_: Any) -> Any:
        raise AssertionError("all responses were there")

    monkeypatch.setattr(generation, "build_sampler", no_model)
    said("games")
    other = evaluate("games", "-s", "conversation.max_turns=3")
    assert other.exit_code == 2
    assert "holds responses drawn with other settings: conversation was" in other.output


def test_where_what_the_environment_is_told_has_changed_it_does_not_go_on() -> None:
    said("frail_games")
    Path("mine.py").write_text(SUITES.replace('"frail": n == 2', '"frail": n == 1'))
    del registry._plugins["suites", "frail_games"]
    modules._files.clear()
    other = evaluate("frail_games")
    assert other.exit_code == 2
    assert "other columns of the data have changed" in other.output


def test_what_is_given_of_the_conversation_counts_before_the_suites_own() -> None:
    said("games", "-s", "conversation.max_turns=1", "-s", "conversation.at_once=5", "-n", "2")
    held = results("games")["settings"]["conversation"]
    assert (held["max_turns"], held["at_once"]) == (1, 5)
    assert [played(row, turns=1)[0] for row in responses("games")] == [row["correct"] for row in responses("games")]


def test_a_reward_beside_the_environment_is_added_and_gives_the_verdict() -> None:
    output = said("even_games")
    assert "acted in guessing, verifier even + guessing\n" in output
    rows = responses("even_games")
    even = [int(re.findall(r"\d+", row["response"])[-1]) % 2 == 0 for row in rows]
    assert [row["correct"] for row in rows] == even
    assert [row["value"] for row in rows] == [
        pytest.approx(even + played(row, turns=5)[1]) for even, row in zip(even, rows, strict=True)
    ]


def test_what_becomes_of_lost_trajectories_is_said() -> None:
    output = said("frail_games", "-n", "2")
    found = results("frail_games")
    assert (found["statuses"], found["no_value"]) == ({"ok": 2, "error": 2}, 2)
    assert found["metrics"]["mean@2"]["value"] == 0.5
    assert "KeyError: 'no such room'" in found["error"]
    assert "frail_games: 2 samples without a value count as wrong (2 error); the first error:\n" in output
    assert "no such room" in output

    # Of a mended environment they are played again, and they alone.
    before = responses("frail_games")
    Path("mine.py").write_text(SUITES.replace("if self.frail:", "if False:"))
    said("frail_games", "-n", "2")
    assert results("frail_games")["metrics"]["mean@2"]["value"] == 1.0
    assert [row["value"] for row in responses("frail_games")] == [1.0] * 4
    assert responses("frail_games")[:2] == before[:2]


def test_in_an_environment_that_is_set_a_suites_own_verifier_judges() -> None:
    output = said("sums", "-s", "environment=calculator", "-n", "3")
    assert "acted in calculator, verifier final_answer\n" in output
    rows = responses("sums")
    assert results("sums")["settings"]["environment"]["kind"] == "calculator"
    # The environment's rewards, of which a call costs, do not count.
    assert {row["value"] for row in rows} <= {0.0, 1.0}
    assert any(re.match(r"[\[(]\d", row["response"]) for row in rows)


def test_an_environment_of_another_project_may_be_a_suite() -> None:
    Path("game.py").write_text(
        "class Game:\n"
        "    def reset(self, seed=None): return '', {}\n"
        "    def step(self, action): return '', 0.25, True, False, {}\n"
    )
    Path("suite.py").write_text(
        "from rlkit import suite\n"
        "from rlkit.evaluation.suites import Suite\n"
        "def rows(folder): return [{'prompt': '1+1=', 'answer': '2'}]\n"
        "@suite('theirs')\n"
        "def theirs(): return Suite(load=rows, template=None, environment='game.py:Game')\n"
    )
    said("theirs", "--plugin", "suite.py")
    assert [row["value"] for row in responses("theirs")] == [0.25]
    said("sums", "-s", "environment=game.py:Game")
    acted = [results(name)["settings"]["environment"] for name in ("theirs", "sums")]
    assert acted[0] == acted[1]
    assert acted[0]["path"] == str(Path("game.py").resolve())


def test_a_conversation_with_nobody_is_refused() -> None:
    result = evaluate("sums", "-s", "conversation.max_turns=3", "-s", "conversation.at_once=2")
    assert result.exit_code == 2
    assert (
        "conversation.at_once and conversation.max_turns: sums has no environment to hold a conversation with: set "
        "`environment`, or leave it out" in result.output
    )
    assert evaluate("sums,games", "-s", "conversation.max_turns=3").exit_code == 0


def test_two_environments_are_refused() -> None:
    result = evaluate("games,sums", "-s", "environment=keys")
    assert result.exit_code == 2
    assert "environment 'keys' is set, and games has one of its own: leave the setting out" in result.output
    result = evaluate("games,even_games", "-s", "environment=keys")
    assert "environment 'keys' is set, and games and even_games have some of their own" in result.output


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ("environment='gessing'", "suite 'odd': unknown environment 'gessing'; did you mean 'guessing'?"),
        ("environment={'kind': 'guessing', 'gueses': 5}", "suite 'odd': unknown key 'gueses' in 'environment'; did"),
        ("environment={'kind': 'guessing', 'guesses': 0}", "suite 'odd': environment guessing: guesses must be 1 or"),
        ("environment={'guesses': 5}", "suite 'odd': 'environment.kind' is missing: name the plugin"),
        ("environment='keys', conversation={'max_turn': 3}", "suite 'odd': unknown key 'max_turn' in 'conversation'; "),
        ("environment='keys', conversation={'max_turns': 0}", "suite 'odd': 'conversation.max_turns': input should be"),
        ("environment='keys', options={'work': 3}", "suite 'odd': its options are those of a reward given by its name"),
        ("reward='exact', conversation={'max_turns': 3}", "suite 'odd': its conversation is held with no environment"),
        ("", "suite 'odd': nothing judges its answers: give it a reward, or an environment"),
        ("environment={'kind': 'tools', 'tools': 'calculator'}", "suite 'odd': the environment has tools (calculator)"),
        ("environment={'kind': 'keys', 'work': 3}, reward='nope'", "unknown reward 'nope'"),
        (f"environment={{'kind': 'guessing', 'lower': 'hf_{'a1' * 17}'}}", "'environment.lower'"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(
    fields: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("odd.py").write_text(
        "from rlkit import suite\n"
        "from rlkit.evaluation.suites import Suite\n"
        "@suite('odd')\n"
        "def odd():\n"
        f"    return Suite(load=lambda folder: [{{'prompt': '1', 'answer': '2'}}], template=None, {fields})\n"
    )
    monkeypatch.setattr(generation, "build_sampler", lambda *_: pytest.fail("a model was loaded"))
    result = evaluate("odd", "--plugin", "odd.py")
    assert result.exit_code == 2, result.output
    assert sentence in result.output


# Chat templates


def test_a_template_that_rewrites_the_past_is_refused_unless_the_past_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    make(Path("model"), QWEN3)
    with monkeypatch.context() as patch:
        patch.setattr(generation, "build_sampler", lambda *_: pytest.fail("a model was loaded"))
        refused = evaluate("games", model="model")
        assert refused.exit_code == 2
        assert "suite 'games': the model's chat template" in refused.output
        assert "conversation.keep_past: true" in refused.output
    kept = ["-s", "conversation.keep_past=true", "--limit", "1", "-n", "1"]
    said("games", *kept, model="model")
    assert results("games")["settings"]["conversation"]["keep_past"]

    # A run that was trained so is measured so.
    shutil.rmtree("out")
    settings = ["environment=keys", "reward=[]", "conversation.keep_past=true", "conversation.max_turns=9"]
    run = RunFolder.create(Path("run"), configs.resolve(configs.load("embedded_xs", settings)))
    shutil.copytree("model", run.checkpoints / "step-00000001/hf")
    (run.checkpoints / "step-00000001" / MANIFEST).write_text(Manifest().text())
    said("games", *kept[2:], model="run")
    held = results("games")["settings"]["conversation"]
    assert (held["keep_past"], held["max_turns"]) == (True, 4)


# In training


def trained(*settings: str) -> dict[str, float]:
    """What is measured before the first step, the answers being the likeliest."""
    given = ["steps=1", "batch.prompts_per_step=2", "batch.samples_per_prompt=2", "eval.problems=6", "out=runs"]
    greedy = ["eval.temperature=0", "sampling.max_tokens=48", "plugins=[mine.py]", "model.path=embedded:xs-turns"]
    config = configs.load("embedded_xs", [*given, *greedy, *settings])
    return RunFolder.open(rlkit.train(config, quiet=True)).read_metrics()[0]


@pytest.mark.parametrize(
    "settings",
    [
        ["name=without"],
        ["name=another", "environment=keys", "reward=[]", "data.path=embedded:keys"],
    ],
)
def test_a_run_is_measured_in_a_suites_environment(settings: Sequence[str]) -> None:
    metrics = trained("eval.suites=[games, sums]", *settings)
    said("games,sums", "--temperature", "0", "-n", "1")
    rows = responses("games")
    assert [played(row, turns=4)[0] for row in rows] == [row["correct"] for row in rows]
    assert any(row["correct"] for row in rows)
    assert metrics["eval/games/mean@1"] == pytest.approx(sum(row["correct"] for row in rows) / 6)
    assert metrics["eval/games/length"] == pytest.approx(sum(len(row["tokens"]) for row in rows) / 6)
    assert metrics["eval/games/no_value"] == 0
    # A suite without an environment is answered at once, or in the run's: there it takes four turns of two tokens.
    at_once = sum(len(row["tokens"]) for row in responses("sums")) / 6
    assert at_once < 8
    if "environment=keys" in settings:
        assert metrics["eval/sums/length"] >= 8
    else:
        assert metrics["eval/sums/length"] == pytest.approx(at_once)


@pytest.mark.parametrize(
    ("environment", "with_tools"), [("null", ["?"]), ("{kind: tools, tools: calculator}", ["?", "="])]
)
def test_prompts_of_suites_name_the_tools_that_are_there(
    environment: str, with_tools: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(Path("model"), QWEN3)
    tokenizer = AutoTokenizer.from_pretrained("model")
    asked: list[str] = []
    generate = _Transformers.generate

    def listening(self: Any, requests: Any) -> Any:
        asked.extend(tokenizer.decode(list(request.prompt_tokens)) for request in requests)
        return generate(self, requests)

    monkeypatch.setattr(_Transformers, "generate", listening)
    settings = ["eval.suites=[tooled, sums]", "model.path=model", "data.prompt=answer", "sampling.max_tokens=4"]
    trained(*settings, f"environment={environment}")
    # The question of `tooled` ends in "=?", that of `sums` in "=", and the run's own in neither.
    ends = {("# Tools" in prompt, end) for prompt in asked for end in re.findall(r"([=?])<\|im_end\|>\n", prompt)}
    assert ends == {(end in with_tools, end) for end in ("?", "=")}


def test_a_suites_environment_that_cannot_be_ends_a_run_before_it_begins() -> None:
    make(Path("model"), QWEN3)
    with pytest.raises(ConfigError, match="suite 'games': the model's chat template"):
        trained("eval.suites=[games]", "model.path=model")


# The contract, and data


def test_the_contract_of_suites_with_environments() -> None:
    registry.load(["mine.py"])
    conformance.check_suite("games")
    conformance.check_suite("tooled")

    def rows(*golds: str) -> Any:
        return lambda _: [{"prompt": "", "answer": gold} for gold in golds]

    @registry.suite("asks_itself")
    def asks_itself(*, second: str = "7") -> suites.Suite:
        return suites.Suite(load=rows("3", second), template=None, environment="guessing")

    conformance.check_suite("asks_itself")
    with pytest.raises(ConformanceError, match=r"it does not begin with problem 2: .*the gold must be a whole number"):
        conformance.check_suite("asks_itself", second="seven")
    with pytest.raises(ConformanceError, match="problem 2 has nothing in its column 'answer'"):
        conformance.check_suite("asks_itself", second="")


def test_questions_that_an_environment_asks_itself_overlap_with_none() -> None:
    @registry.suite("silent")
    def silent() -> suites.Suite:
        rows = [{"q": "", "answer": "1"}, {"q": "12+25=", "answer": "37"}]
        return suites.Suite(load=lambda _: rows, template=None, environment="guessing", prompt="q")

    Path("data.jsonl").write_text("".join(json.dumps({"prompt": q, "answer": "1"}) + "\n" for q in ("+", "12+25=")))
    assert check_data("data.jsonl")["overlap"]["silent"] == [{"row": 2, "problem": 2}]
