"""`rlkit init`: a config out of a look at a model, data and a machine, and what it says where none can be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import byte_level
import pytest
from click.testing import CliRunner, Result

from rlkit import config as configs
from rlkit.cli import main
from rlkit.config import RunConfig, parse_yaml
from rlkit.errors import ConfigError
from rlkit.proposal import data as datas
from rlkit.proposal import model as models
from rlkit.proposal import verifier as verifiers
from rlkit.proposal.choosing import choose
from rlkit.proposal.config_file import page
from rlkit.proposal.data import Data
from rlkit.proposal.machine import Machine
from rlkit.proposal.model import Model

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
SOLUTIONS = [
    {"question": f"What do {a} and {b} apples make?", "answer": f"There are {a} and {b}.\n" * 3 + f"#### {a + b}"}
    for a in range(3, 9)
    for b in range(12, 15)
]
LATEX = [{"problem": f"Solve $x + {n} = 0$.", "answer": rf"\frac{{{n}}}{{7}}"} for n in range(1, 20)]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level.make(tmp_path_factory.mktemp("chat"), CHAT)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level.make(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def init(*arguments: object, answers: str | None = None) -> Result:
    return CliRunner().invoke(main, ["init", *map(str, arguments)], input=answers)


def made(*arguments: object) -> tuple[RunConfig, str]:
    """The config that is written with --yes, and its text."""
    result = init("mine.yaml", *arguments, "--yes")
    assert result.exit_code == 0, result.output
    text = Path("mine.yaml").read_text()
    config = configs.load("mine.yaml")
    first, *brief, last = result.stdout.splitlines()
    assert first == "mine.yaml is written, with a reason for each setting. Of what it says:"
    assert [line.split()[0] for line in brief] == ["model", "data", "reward", "algo", "batch", "sampling"]
    assert str(config.sampling.max_tokens) in brief[-1]
    assert last == "What it would do: rlkit run mine.yaml --dry-run"
    return config, text


def looked(path: str, rows: list[dict[str, Any]], prompt: str = "problem", answer: str | None = "answer") -> Data:
    return datas.look_at(path, None, rows, prompt, answer)


def test_without_anything_it_is_the_embedded_task() -> None:
    config, text = made()
    assert (config.model.path, config.data.path) == ("embedded:s", "embedded:arithmetic")
    assert config.reward[0].kind == "final_answer"
    assert config.data.template is None
    assert "#   #### 45  ->  1\n" in text
    assert CliRunner().invoke(main, ["run", "mine.yaml", "--dry-run"]).exit_code == 0


@pytest.mark.slow
def test_what_is_written_trains(place: Path, chat: Path) -> None:
    written("words_train.jsonl", SOLUTIONS)
    made("--model", chat)
    small = ["steps=1", "batch.prompts_per_step=2", "sampling.max_tokens=8", "name=r"]
    result = CliRunner().invoke(main, ["run", "mine.yaml", *small])
    assert result.exit_code == 0, result.output
    assert (place / "runs" / "r" / "metrics.jsonl").is_file()


def test_a_chat_model_and_worked_solutions(chat: Path) -> None:
    written("words_train.jsonl", SOLUTIONS)
    written("words_test.jsonl", SOLUTIONS[:5])
    config, text = made("--model", chat, "--algo", "grpo")
    assert config.algo.kind == "grpo"
    data = config.data
    assert (data.path, data.eval_path) == ("words_train.jsonl", "words_test.jsonl")
    assert (data.prompt, data.answer, data.chat) == ("question", "answer", True)
    assert data.template == "{prompt}\n\nEnd your answer with #### and the answer alone."
    assert config.reward[0].kind == "final_answer"
    assert config.batch.prompts_per_step == len(SOLUTIONS), "no more than there are"
    assert config.sampling.max_tokens == 192, "twice a solution of 74 bytes"
    assert config.eval.problems == 5
    assert not config.sampling.stop
    assert "it has a chat template; a response ends with <eos>" in text
    assert r"#   <user>What do 3 and 12 apples make?\n\nEnd your answer" in text
    assert "It takes" not in text
    assert text.count("->  1\n") == 3
    assert text.count("->  0, a wrong answer\n") == 3
    assert CliRunner().invoke(main, ["run", "mine.yaml", "--dry-run"]).exit_code == 0


def test_a_base_model_and_formulas(base: Path) -> None:
    config, text = made("--model", base, "--data", written("formulas.jsonl", LATEX))
    assert config.reward[0].model_dump() == {"kind": "math", "answer_in": "boxed", "weight": 1.0}
    template = "Put the final answer within \\boxed{}.\n\nProblem: {prompt}\n\nSolution:"
    assert (config.data.template, config.data.chat) == (template, None)
    assert config.sampling.stop == ["\nProblem:"]
    assert config.data.eval_path is None
    assert "No held-out problems were found" in text
    assert r"#   \boxed{\frac{2}{7}}  ->  0, a wrong answer" in text


@pytest.mark.parametrize(
    ("question", "gold", "tokens"),
    [
        ("10+{}=", "{}", 64),
        ("If Ann has 10 apples and buys {} more, how many?", "{}.50", 256),
        ("10+{}=", "{} apples", 256),
        ("10+{}=", "so it is {}, " * 10, 256),
    ],
)
def test_golds_that_are_one_number_call_for_short_responses(question: str, gold: str, tokens: int, base: Path) -> None:
    rows = [{"question": question.format(n), "answer": gold.format(n, *[n] * 9)} for n in range(10, 30)]
    config, text = made("--model", base, "--data", written("sums.jsonl", rows), "--reward", "contains")
    assert config.sampling.max_tokens == tokens
    assert ("the golds are one number each" in text) == (tokens == 64)


def test_what_is_asked_is_answered_or_taken(base: Path) -> None:
    rows = [{"problem": "1+1", "q": f"{n}+1", "answer": str(n + 1), "letter": "ABC"[n % 3]} for n in range(9)]
    written("rows.json", rows)
    result = init("mine.yaml", "--model", base, answers="\nq\nletter\n\nppo\n")
    assert result.exit_code == 0, result.output
    assert "Data (a file, a hub id, or embedded:arithmetic) [rows.json]:" in result.output
    assert "Column of the questions [problem]:" in result.output
    assert "What judges the answers (`rlkit list rewards`) [choice]:" in result.output
    config = configs.load("mine.yaml")
    assert (config.data.prompt, config.data.answer, config.algo.kind) == ("q", "letter", "ppo")
    assert config.reward[0].kind == "choice"
    assert config.critic.optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("golds", "name"),
    [
        (["Paris", "Rome", "New York"], "final_answer"),
        (["12", "3.5", "1,000"], "math"),
        ([r"so it is \boxed{3}", r"thus \boxed{x^2}"], "math"),
        (["(A)", "B", "C."], "choice"),
        (["work\n#### 3", "work\n#### 4"], "final_answer"),
        ([["assert f(1) == 2"], ["assert f(2) == 3", "assert f(0) == 1"]], "code"),
        ([{"inputs": ["1"], "outputs": ["2"]}], "code"),
        (["A long essay about the sea, its colours and its moods, in the manner of the last century."], None),
        (["", None], None),
    ],
)
def test_the_verifier_follows_from_the_golds(golds: list[Any], name: str | None) -> None:
    rows = [{"problem": "?", "answer": gold} for gold in golds]
    assert verifiers.propose(looked("rows.json", rows)) == name


def test_a_prompt_that_asks_for_a_form_itself_is_left_alone(base: Path) -> None:
    rows = [{**row, "problem": f"{row['problem']} Answer within \\boxed{{}}."} for row in LATEX]
    rows = [{**row, "answer": "5"} for row in rows]
    config, text = made("--model", base, "--data", written("formulas.jsonl", rows), "--reward", "numeric")
    assert config.data.template == "Problem: {prompt}\n\nSolution:"
    assert "The questions ask for \\boxed themselves." in text


def test_long_prompts_are_dropped_and_responses_cut_where_positions_are_few(tmp_path: Path) -> None:
    model = byte_level.make(tmp_path / "few", CHAT, max_position_embeddings=400)
    rows = [{"problem": "word " * n, "answer": str(n)} for n in [*range(1, 30)] * 4] + [{"problem": "w" * 390}]
    written("rows_train.jsonl", rows)
    written("rows_test.jsonl", [{"problem": "w" * 300, "answer": "1"}, {"problem": "w", "answer": "1"}])
    config, text = made("--model", model)
    longest = len("<user>" + "word " * 29 + "\n\nPut the final answer within \\boxed{}.\n<assistant>")
    assert (config.sampling.max_tokens, config.data.max_prompt_tokens) == (400 - longest, longest)
    assert "This is what the model's 400 positions leave." in text
    assert f"99 % at most {longest}; dropped, as too long: 1." in text
    planned = CliRunner().invoke(main, ["run", "mine.yaml", "--dry-run"]).output
    assert "116 problems (1 with prompts over the length limit dropped" in planned
    assert "1 held out (1 with prompts over the length limit dropped" in planned


def test_a_reward_of_one_s_own(base: Path) -> None:
    Path("mine.py").write_text("def judge(data_source, solution_str, ground_truth, extra_info):\n    return 1.0\n")
    written("formulas.jsonl", LATEX)
    config, text = made("--model", base, "--reward", "mine.py:judge", "--data", "formulas.jsonl", "--answer", "null")
    assert config.reward[0].options["path"] == "mine.py"
    assert config.data.answer is None
    assert "no gold can be held against it beforehand" in text


def test_golds_that_cannot_be_read_are_named(base: Path) -> None:
    golds = [str(n) for n in range(20)]
    golds[3], golds[5] = "", "nobody knows"
    written("sums.jsonl", [{"question": f"{n} + 0", "answer": gold} for n, gold in enumerate(golds)])
    result = init("mine.yaml", "--yes", "--model", base, "--data", "sums.jsonl", "--reward", "final_answer")
    assert result.exit_code == 0, result.output
    assert re.search(
        r"warning: final_answer takes \d of 20 golds for no answer, such as row 4 \(empty\)", result.stderr
    )
    assert "`rlkit data check sums.jsonl --reward final_answer` lists them" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "./nowhere"], "model.path './nowhere' does not exist"),
        (["--model", "embedded:s", "--data", "nothing.jsonl"], "data file 'nothing.jsonl' does not exist"),
        (["--data", "formulas.jsonl", "--answer", "anser"], "no column 'anser'; did you mean 'answer'? (columns:"),
        (["--data", "formulas.jsonl", "--prompt", "prblem"], "no column 'prblem'; did you mean 'problem'?"),
        (["--data", "formulas.jsonl", "--reward", "choice"],
         "choice takes none of 19 golds in column answer of formulas.jsonl for right, though each was given as its own "
         "answer: '\\\\frac{1}{7}' is one that it does not. If that is not the column of golds, set --answer; else "
         "--reward math suits them better"),
        (["--data", "essays.jsonl"], "essays.jsonl: no verifier that ships is known to suit golds such as 'All of"),
        (["--data", "essays.jsonl", "--answer", "null"], "so a reward that needs none must judge them. Give --reward"),
        (["--data", "others.jsonl"],
         "others.jsonl: which of its columns (task, result) holds the questions is not known. Give --prompt"),
        (["--data", "others.jsonl", "--prompt", "task"],
         "others.jsonl: which of its columns (task, result) holds the golds is not known. Give --answer"),
        (["--data", "formulas.jsonl", "--reward", "mth"], "unknown reward 'mth'; did you mean 'math'?"),
        (["--data", "formulas.jsonl", "--algo", "gpro"], "unknown algorithm 'gpro'; did you mean 'gspo' or 'grpo'?"),
        (["--data", "long.jsonl"],
         "the shortest prompt of long.jsonl has 2559 tokens, and {base} has 2048 positions for prompt and response"),
        (["--data", "gaps.jsonl"],
         "gaps.jsonl, row 2: no column 'problem' (columns: answer); of 3 rows 2 lack it (2, 3). Give them one, leave "
         "them out, or set --prompt to another column"),
        ([], "no data was found here. Give --data"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said(arguments: list[str], said: str, base: Path) -> None:
    written("formulas.jsonl", LATEX)
    written("essays.jsonl", [{"problem": "Write.", "answer": "All of it is told in very many words. " * 9}])
    written("others.jsonl", [{"task": "1+1", "result": "2"}])
    written("gaps.jsonl", [{"problem": "1+1", "answer": "2"}, {"answer": "3"}, {"answer": "4"}])
    written("long.jsonl", [{"problem": "long " * 500, "answer": "1"}])
    model = [] if "--model" in arguments else ["--model", base]
    result = init("mine.yaml", *model, *arguments, "--yes")
    assert result.exit_code == 2, result.output
    assert said.format(base=base) in result.output if "{base}" in said else said in result.output, result.output
    assert not Path("mine.yaml").exists()


def test_an_embedded_model_cannot_read_other_text() -> None:
    result = init("--model", "embedded:s", "--data", written("formulas.jsonl", LATEX), "--yes")
    assert result.exit_code == 2
    assert "embedded:s has no tokens for what 19 of 19 prompts of formulas.jsonl hold, such as 'Solve" in result.output
    assert "take a model that reads such text, with --model" in result.output


@pytest.mark.parametrize("given", [["--model", "embedded:xs-turns"], ["--data", "embedded:guessing"]])
def test_games_of_several_turns_have_presets_instead(given: list[str]) -> None:
    done = init("--yes", *given)
    assert done.exit_code == 2
    assert "embedded:guessing is played over several turns" in done.output
    assert "rlkit run embedded_guessing" in " ".join(done.output.split())


def test_a_file_is_never_written_over() -> None:
    Path("mine.yaml").write_text("mine")
    result = init("--yes")
    assert (result.exit_code, Path("mine.yaml").read_text()) == (2, "mine")
    assert "mine.yaml exists already: choose another name, or remove it first" in result.output


def test_who_cannot_answer_is_told_how_not_to_be_asked() -> None:
    result = init()
    assert result.exit_code == 2
    assert "no answer: give --model, or take what is found with --yes" in result.output


# What fits a machine


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """9.8 million parameters: 39 MB of weights in float32, and 197 of gradients, AdamW and copies, of which four ranks
    share 118. All of it at stage 1: 236 MB for one, some 120 for each of four, and no stage takes less. A micro-batch
    of 512 tokens takes some 170 more."""
    folder = byte_level.make(tmp_path_factory.mktemp("large"), hidden_size=512, intermediate_size=3072)
    return models.look_at(str(folder))


@pytest.mark.parametrize(
    ("megabytes", "ranks", "lora", "stage"), [(650, 1, False, None), (450, 4, False, None), (340, 4, True, None)]
)
def test_what_is_trained_follows_from_the_memory(
    megabytes: int, ranks: int, lora: bool, stage: int | None, large: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlkit.proposal.machine.choose_sampler", lambda: ("transformers", "none other"))
    data = looked("rows.json", LATEX)
    written("rows.json", LATEX)
    verifier = verifiers.take(data, "final_answer", [])
    proposal = choose(large, data, verifier, "grpo", Machine(ranks, megabytes * 10**6, "GPUs"), ranks, [])
    config = proposal.config()
    assert (config.model.lora is not None, config.engine.zero_stage) == (lora, stage)
    assert config.optimizer.lr == pytest.approx(5e-5 if lora else 5e-6)
    key = "model.lora" if lora else "engine.zero_stage"
    assert ("All weights as they are would need" in proposal.why.get(key, "")) == (lora or stage is not None)


def test_what_fits_nowhere_is_said(large: Model) -> None:
    data = looked("rows.json", LATEX)
    verifier = verifiers.take(data, "final_answer", [])
    with pytest.raises(ConfigError, match=r"does not fit: weights, gradients and optimizer need .* on the one rank"):
        choose(large, data, verifier, "grpo", Machine(1, 10**7, "a small GPU"), 1, [])


# The file


def test_a_page_is_its_settings_again() -> None:
    settings = {
        "data": {
            "template": "a # b\n\n  {prompt} \n#c: {}\n", "system": "x: 'y' # z", "path": "007", "answer": None,
            "chat": True, "chat_template_kwargs": {"a": [1, "no"]},
        },
        "sampling": {"stop": ["\n", "é|"]}, "optimizer": {"lr": 1e-6},
    }  # fmt: skip
    why = {"data": "one " * 60, "data.template": "two\n  # three", "optimizer.lr": "\x41 {x}: [y]"}
    text = page(settings, why, "A head: with\n\ttab")
    assert parse_yaml(text, "here") == settings
    assert max(map(len, text.splitlines())) <= 120
    assert "  # two\n  #   # three\n  template:" in text
