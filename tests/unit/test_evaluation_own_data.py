"""`rlkit eval --data FILE`: problems of one's own as a suite; and how long a response may be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from transformers import AutoTokenizer

import rlkit
from rlkit import config as configs
from rlkit import embedded, modules, registry
from rlkit.cli import main
from rlkit.config import RewardRef
from rlkit.data import load_problems, reading
from rlkit.evaluation import suites
from rlkit.evaluation.on_suites import run_evaluation
from rlkit.evaluation.settings import load_settings
from rlkit.records.folder import RunFolder

ROWS = [{"question": f"{a}+{b}=", "answer": str(a + b), "level": a} for a in (12, 47, 33) for b in (25, 38)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file of problems; plugins loaded there are forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(modules, "_files", dict(modules._files))
    write(ROWS)
    return tmp_path


def write(rows: list[dict[str, Any]], name: str = "test.jsonl") -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(*arguments: str, model: str = "embedded:xs") -> Result:
    return CliRunner().invoke(main, ["eval", "--model", model, *arguments])


def said(*arguments: str, model: str = "embedded:xs") -> str:
    """What the command prints where it works."""
    result = evaluate(*arguments, model=model)
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*arguments: str, model: str = "embedded:xs") -> str:
    """What it says where it does not."""
    result = evaluate(*arguments, model=model)
    assert result.exit_code == 2, result.output
    return result.output


SHORT = ("--max-tokens", "24")
JUDGED = ("--data", "test.jsonl", "--reward", "final_answer", *SHORT)


def results(out: str = "evals/xs", name: str = "test") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "results.json").read_text())[name]
    return found


def responses(out: str = "evals/xs", name: str = "test") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, name, "responses.jsonl").read_text().splitlines()]


# The file


def test_a_file_is_measured_on_as_a_suite_is() -> None:
    output = said(*JUDGED, "-n", "2")
    assert "test: 6 problems x 2 samples of at most 24 tokens, verifier final_answer\n" in output
    assert "  questions in column 'question', golds in 'answer', of test.jsonl\n" in output
    rows, found = responses(), results()
    assert [row["prompt"] for row in rows[::2]] == [row["question"] for row in ROWS]
    right = [row["response"].rpartition("####")[2].strip() == row["answer"] for row in rows]
    assert [row["correct"] for row in rows] == right
    assert found["metrics"]["mean@2"]["value"] == pytest.approx(sum(right) / len(rows))
    assert set(found["metrics"]) == {"mean@2", "pass@2", "maj@2"}
    assert (found["data"], found["problems"], found["bad_golds"], found["reward"]) == ("test.jsonl", 6, [], None)


def test_the_format_of_the_file_does_not_matter() -> None:
    said(*JUDGED)
    Path("as_json").mkdir()
    Path("as_json/test.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), "test.parquet")
    for file, out in (("as_json/test.json", "a"), ("test.parquet", "b")):
        said("--data", file, "--reward", "final_answer", *SHORT, "--out", out)
        assert responses(out) == responses()


def test_columns_are_found_or_named_and_may_be_nested() -> None:
    nested = [
        {"prompt": "not this one", "answer": "nor this", "q": row["question"], "gold": {"is": row["answer"]}}
        for row in ROWS
    ]
    write(nested)
    said(*JUDGED, "--prompt", "q", "--answer", "gold.is")
    found = [(row["prompt"], row["answer"]) for row in responses()]
    assert found == [(row["question"], row["answer"]) for row in ROWS]


def test_a_verifier_sees_the_other_columns_as_in_a_run() -> None:
    write([{"prompt": "p", "answer": "a", **row} for row in [{"q": r["question"], "gold": r["answer"]} for r in ROWS]])
    name, suite = suites.of_data("test.jsonl", reward=[RewardRef(kind="exact")], prompt="q", answer="gold")
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))
    with suites.opened(name, tokenizer, wanted=suite) as opened:
        assert opened.problems[0].columns == {"prompt": "p", "answer": "a"}
        assert (opened.problems[0].question, opened.problems[0].gold) == ("12+25=", "37")


def test_names_of_results() -> None:
    shutil.copy("test.jsonl", "held.out.jsonl")
    refs = [RewardRef(kind="exact")]
    assert suites.of_data("held.out.jsonl", reward=refs)[0] == "held.out"
    assert suites.of_data("embedded:arithmetic", reward=refs)[0] == "arithmetic"


def test_the_embedded_task_s_held_out_problems() -> None:
    output = said("--data", "embedded:arithmetic", "--reward", "final_answer", "--limit", "3", *SHORT)
    held_out = reading.read_rows("embedded:arithmetic", split="test")
    assert f"  the first 3 of {len(held_out)}\n" in output
    assert [row["prompt"] for row in responses(name="arithmetic")] == [row["prompt"] for row in held_out[:3]]


def test_a_template_goes_around_the_question() -> None:
    output = said(*JUDGED, "-s", 'template="{prompt}0+"', "--limit", "2")
    assert "of test.jsonl, put as '{prompt}0+'" in output
    assert [row["prompt"] for row in responses()] == ["12+25=0+", "12+38=0+"]


@pytest.mark.parametrize(
    "asked", [{}, {"template": "Q: {prompt}"}, {"template": "Q: {prompt}", "chat": True}, {"system": "Be brief."}]
)
def test_questions_are_put_as_in_a_run_of_these_settings(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    run = configs.DataConfig(path="test.jsonl", prompt="question", **asked)
    trained = load_problems(run, tokenizer)
    assert trained is not None
    monkeypatch.setattr("rlkit.evaluation.on_suites.load_tokenizer", lambda config: tokenizer)
    settings = {"model": {"path": "embedded:xs", "dtype": "float32"}, "out": "out", "data": "test.jsonl"}
    run_evaluation(load_settings({**settings, "reward": "exact", "max_tokens": 2, **asked}), quiet=True)
    assert [row["prompt"] for row in responses("out")] == [problem.text for problem in trained.problems]


# Rewards


def test_of_a_graded_reward_the_mean_is_shown() -> None:
    """Over problems, of the samples that have a value."""
    Path("plugin.py").write_text(
        "from rlkit import reward\n"
        "@reward('graded')\n"
        "def graded(samples):\n"
        "    return [None if s.answer == '37' and s.key.index else len(s.answer) / 4 + s.key.index for s in samples]\n"
    )
    output = said("--data", "test.jsonl", "--plugin", "plugin.py", "--reward", "graded", "-n", "2", *SHORT)
    per_problem = [0.5 if row["answer"] == "37" else len(str(row["answer"])) / 4 + 0.5 for row in ROWS]
    found = results()["reward"]
    assert found["value"] == pytest.approx(sum(per_problem) / len(ROWS))
    assert found["low"] <= found["value"] <= found["high"]
    assert (
        f"test: 1 samples without a value count as wrong (1 abstain); the reward is {found['value']:.3g} on" in output
    )


def test_options_of_the_reward_and_several_rewards() -> None:
    write([row | {"answer": f"ANS {row['answer']}"} for row in ROWS])
    said(*JUDGED, "-s", "reward.marker=ANS", "--out", "marked", "--limit", "2")
    assert results("marked")["settings"]["verifier"] == {"kind": "final_answer", "marker": "ANS"}
    several = "reward=[{kind: length, max_tokens: 24, buffer: 24, weight: 2}, exact]"
    output = said("--data", "test.jsonl", "-s", several, *SHORT, "--out", "both", "--limit", "2")
    assert "verifier length + exact" in output
    assert [row["value"] for row in responses("both")] == [
        pytest.approx(-2 * len(row["tokens"]) / 24) for row in responses("both")
    ]


def test_a_function_in_a_file_judges() -> None:
    Path("grade.py").write_text(
        "def ends(completions, answer, **_):\n"
        "    return [float(c.endswith(a)) for c, a in zip(completions, answer)]\n"
        "def one(data_source, solution_str, ground_truth, extra_info):\n"
        "    return 1.0\n"
    )
    said("--data", "test.jsonl", "--reward", "grade.py:ends", *SHORT)
    rows = responses()
    assert [row["value"] for row in rows] == [float(row["response"].endswith(row["answer"])) for row in rows]
    said("--data", "test.jsonl", "--reward", "grade.py:one", "-s", "reward.style=verl", *SHORT, "--out", "verl")
    assert {row["value"] for row in responses("verl")} == {1.0}
    assert "grade.py has no 'end'; did you mean 'ends'" in refusal("--data", "test.jsonl", "--reward", "grade.py:end")


# Golds


def test_golds_that_do_not_verify_are_named_and_many_are_counted() -> None:
    write([row | {"answer": "" if i % 3 == 0 else row["answer"]} for i, row in enumerate(ROWS)])
    output = said(*JUDGED)
    assert "  gold does not verify against itself: row 1: empty (bad_gold)\n" in output
    assert "test: 2 samples without a value count as wrong (2 bad_gold); 2 golds do not verify" in output
    write([row | {"answer": "" if i else "1"} for i, row in enumerate(ROWS * 3)])
    output = said(*JUDGED, "--out", "many")
    assert output.count("gold does not verify against itself") == 10
    assert "  and 7 more, of 18\n" in output
    assert len(results("many")["bad_golds"]) == 17


def test_golds_that_the_reward_does_not_read_are_said_to_be_such_once() -> None:
    output = said("--data", "test.jsonl", "--reward", "format", *SHORT)
    assert output.count("against itself") == 1
    assert (
        "  no gold verifies against itself, not even row 1: 37 (wrong). Where the reward reads none: --answer" in output
    )


def test_data_without_golds_suit_rewards_that_read_none() -> None:
    write([{"question": row["question"]} for row in ROWS])
    asked = ("--data", "test.jsonl", *SHORT)
    assert "none of the columns answer, " in (missing := refusal(*asked, "--reward", "format"))
    assert "Set --answer (null: the data has no golds)" in missing
    needs = refusal(*asked, "--reward", "final_answer", "--answer", "null")
    assert "reward 'final_answer' needs golds, and test.jsonl has none: give the column of the golds with" in needs
    assert not Path("evals").exists()
    output = said(*asked, "--reward", "format", "--answer", "null")
    assert "no golds, of test.jsonl\n  golds are not checked: there are none\n" in output
    assert {row["answer"] for row in responses()} == {""}
    said(*asked, "--reward", "format", "-s", "answer=null")


def test_a_column_of_golds_that_are_all_empty_is_refused() -> None:
    write([row | {"answer": None} for row in ROWS])
    said_of_it = refusal(*JUDGED, "--answer", "answer")
    assert "needs golds, and test.jsonl has none in its column 'answer' that it can use (row 1: empty" in said_of_it


# What is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "nothing to measure on: name suites with --suite"),
        (("--data", "test.jsonl"), "nothing judges the answers to test.jsonl: name a verifier with --reward"),
        (("--data", "."), "--data . is a folder: name the suites whose copies are in it with --suite"),
        (("--data", "test.jsonl", "--suite", "gsm8k"), "is a file: with --suite it is the folder of"),
        (("--data", "nowhere", "--suite", "gsm8k"), "--data nowhere is no folder: with --suite it is"),
        (
            ("--suite", "gsm8k", "--reward", "math", "--prompt", "q"),
            "prompt and reward cannot be set for a suite, which has its own: leave out --suite",
        ),
        (("--suite", "gsm8k", "-s", "template=x"), "template cannot be set for a suite"),
        ((*JUDGED, "--prompt", "qestion"), "row 1: no column 'qestion'; did you mean 'question'? (columns: question"),
        ((*JUDGED, "--answer", "gold"), "no column 'gold'; known: answer, level, question"),
        (("--data", "tset.jsonl", "--reward", "math"), "'tset.jsonl' does not exist; did you mean 'test.jsonl' or"),
        (("--data", "empty.jsonl", "--reward", "math"), "data file 'empty.jsonl' is empty"),
        (("--data", "none.json", "--reward", "math"), "none.json holds no problems: it is empty"),
        (("--data", "test.jsonl", "--reward", "final_answr"), "unknown reward 'final_answr'; did you mean 'final_"),
        ((*JUDGED, "-s", "reward.markr=x"), "unknown key 'markr' in 'reward'; did you mean 'marker'?"),
        ((*JUDGED, "-s", "data.template=x"), "for an evaluation, write -s template=x"),
        ((*JUDGED, "-s", "template=x"), "must hold {prompt}, where the question goes; got 'x'"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    Path("empty.jsonl").touch()
    Path("none.json").write_text("[]")
    assert sentence in refusal(*arguments)
    assert not Path("evals").exists()


# Going on


def test_a_file_that_has_changed_is_not_gone_on_with() -> None:
    said(*JUDGED)
    before = Path("evals/xs/test/responses.jsonl").read_text()
    changes: list[tuple[list[dict[str, Any]], str]] = [
        ([ROWS[0] | {"answer": "38"}, *ROWS[1:]], "other settings: the prompts or golds have changed. Give"),
        ([ROWS[0] | {"question": "21+16="}, *ROWS[1:]], "other settings: the prompts or golds have changed. Give"),
        ([ROWS[0] | {"level": 13}, *ROWS[1:]], "other settings: other columns of the data have changed. Give"),
        (ROWS[1:], "other settings: problems was 6 and is now 5. Give"),
    ]
    for rows, sentence in changes:
        write(rows)
        assert sentence in refusal(*JUDGED)
    write(ROWS)
    said(*JUDGED)
    assert Path("evals/xs/test/responses.jsonl").read_text() == before


# A run as the model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with settings of its own, one of which no file of problems would guess."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "own_reward.py").write_text(
        "from rlkit import reward\n"
        "@reward('starts')\n"
        "def starts(samples, *, digits: int = 1):\n"
        "    'Whether the response starts as the gold does.'\n"
        "    return [float(s.response[:digits] == s.answer[:digits]) for s in samples]\n"
    )
    rows = [{"q": row["question"][:-1], "a": {"b": row["answer"]}} for row in ROWS]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        "steps=1", "batch.prompts_per_step=2", "batch.samples_per_prompt=2", "sampling.max_tokens=8", "name=r",
        f"out={folder}", f"data.path={folder / 'train.jsonl'}", "data.prompt=q", "data.answer=a.b",
        'data.template="{prompt}="', f"plugins=[{folder / 'own_reward.py'}]", "reward={kind: starts, digits: 2}",
    ]  # fmt: skip
    rlkit.train(configs.load("embedded_xs", settings), quiet=True)
    # As if another process had trained it.
    del registry._plugins["rewards", "starts"]
    del modules._files[folder / "own_reward.py"]
    return folder / "r"


def test_a_run_s_own_settings_hold(run: Path) -> None:
    shutil.copy(run.parent / "train.jsonl", "test.jsonl")
    said("--data", "test.jsonl", *SHORT, model=str(run))
    out = str(RunFolder(run).evaluations / "step-00000001")
    rows = responses(out)
    assert [(row["prompt"], row["answer"]) for row in rows] == [(row["question"], row["answer"]) for row in ROWS]
    assert [row["correct"] for row in rows] == [row["response"][:2] == row["answer"][:2] for row in rows]
    assert results(out)["settings"]["verifier"] == {"kind": "starts", "digits": 2}

    said("--data", "test.jsonl", "-s", "reward.digits=1", *SHORT, "--out", "one", model=str(run))
    assert results("one")["settings"]["verifier"] == {"kind": "starts", "digits": 1}


def test_what_is_given_takes_the_place_of_a_run_s_own(run: Path) -> None:
    given = ("--prompt", "question", "--answer", "answer", "--reward", "final_answer", "-s", "template=null")
    said("--data", "test.jsonl", *given, *SHORT, "--out", "given", model=str(run))
    assert [row["prompt"] for row in responses("given")] == [row["question"] for row in ROWS]
    assert results("given")["settings"]["verifier"]["kind"] == "final_answer"
    said_of_it = refusal("--data", "test.jsonl", model=str(run))
    assert "row 1: no column 'q'" in said_of_it
    assert "(columns: question, answer, level). Set --prompt" in said_of_it


# Room for responses


def prompt(size: int) -> dict[str, Any]:
    """A prompt of so many tokens; the embedded models have 2048 positions."""
    return {"question": "1" * (size - 1) + "=", "answer": "1", "level": 0}


ANY_LENGTH = ("--data", "test.jsonl", "--reward", "final_answer")


def test_responses_get_the_room_there_is_beside_the_longest_prompt() -> None:
    answered = {"question": "#### 37" * 500, "answer": "37", "level": 0}  # 1500 tokens, and nothing more to say
    write([*ROWS, answered])
    output = said(*ANY_LENGTH)
    assert "x 1 sample of at most 548 tokens," in output
    assert "  embedded:xs has 2048 positions: beside the prompts there is room for 548 tokens, not for 4096\n" in output
    assert results()["settings"]["max_tokens"] == 548
    assert "too_long" not in results()["statuses"]
    said(*ANY_LENGTH)  # goes on


def test_a_few_prompts_of_nearly_all_positions_do_not_shorten_the_others_responses() -> None:
    write([*ROWS, prompt(2040), prompt(3000)])
    output = said(*ANY_LENGTH)
    assert "of at most 2042 tokens," in output
    assert "  2 of 8 prompts leave no room for 2042 tokens in 2048 positions (the longest has 3000), and" in output
    assert "test: 2 samples without a value count as wrong (2 too_long)\n" in output
    assert results()["statuses"]["too_long"] == 2


def test_where_all_prompts_are_long_their_responses_are_short() -> None:
    write([prompt(2040), prompt(2030), prompt(2048)])
    assert "of at most 8 tokens," in said(*ANY_LENGTH)
    assert [row["status"] == "too_long" for row in responses()] == [False, False, True]


def test_a_length_that_is_asked_for_and_does_not_fit_is_refused_with_what_does() -> None:
    sentence = (
        "--max-tokens 2043 leaves no room for a prompt of test: embedded:xs has 2048 positions, and prompts take up to "
        "6. Give 2042 at most, or leave --max-tokens out"
    )
    assert sentence in refusal(*ANY_LENGTH, "--max-tokens", "2043")
    assert sentence in refusal(*ANY_LENGTH, "-s", "max_tokens=2043")
    said(*ANY_LENGTH, "--max-tokens", "2042", "--limit", "1")


def test_problems_that_do_not_fit_at_all_are_refused() -> None:
    write([prompt(2048), prompt(4000)])
    sentence = "test: no prompt fits: embedded:xs has 2048 positions, and the shortest prompt has 2048 tokens"
    assert sentence in refusal(*ANY_LENGTH)
    assert sentence in refusal(*ANY_LENGTH, *SHORT)


# Local copies of suites


def copy(rows: int) -> tuple[str, ...]:
    """A local copy of gsm8k, which has 1319 problems."""
    write([{"question": f"{i}+{i}=", "answer": f"So\\n#### {2 * i}"} for i in range(rows)], "gsm8k_test.jsonl")
    return ("--suite", "gsm8k", "--data", ".", *SHORT)


def test_a_copy_with_part_of_a_suite_will_do_for_its_first_problems() -> None:
    output = said(*copy(12), "--limit", "5")
    assert "gsm8k: 5 problems x 1 sample" in output
    assert "  the first 5 of a local copy with 12 rows; the suite has 1319\n" in output
    before = responses(name="gsm8k")
    assert [row["prompt"].partition("=")[0] for row in before] == [f"{i}+{i}" for i in range(5)]
    assert "  the first 5 of 1319\n" in said(*copy(1319), "--limit", "5")  # the same problems: it goes on
    assert responses(name="gsm8k") == before


def test_a_copy_with_too_few_or_too_many_problems_is_refused() -> None:
    for more in ((), ("--limit", "13")):
        sentence = refusal(*copy(12), *more)
        assert "suite 'gsm8k' has 1319 problems, but 12 were read from ." in sentence
        assert "`rlkit eval --limit 12`, or less, measures on the first of them alone" in sentence
    sentence = refusal(*copy(1320), "--limit", "5")
    assert "has 1319 problems, but 1320 were read" in sentence
    assert "--limit" not in sentence


def test_a_suite_may_name_its_columns(place: Path) -> None:
    Path("suite.py").write_text(
        "from rlkit import suite\n"
        "from rlkit.evaluation.suites import Suite\n"
        "ROWS = [{'q': '12+25=', 'gold': {'is': 37}, 'answer': 'worked'}]\n"
        "@suite('named')\n"
        "def named():\n"
        "    return Suite(load=lambda _: ROWS, template=None, reward='final_answer', prompt='q', answer='gold.is')\n"
        "@suite('goldless')\n"
        "def goldless():\n"
        "    return Suite(load=lambda _: ROWS, template='{prompt}', reward='format', prompt='q', answer=None)\n"
    )
    said("--suite", "named,goldless", "--plugin", "suite.py", *SHORT)
    assert [(row["prompt"], row["answer"]) for row in responses(name="named")] == [("12+25=", "37")]
    assert [(row["prompt"], row["answer"]) for row in responses(name="goldless")] == [("12+25=", "")]
    assert results(name="goldless")["golds_unchecked"] == "there are none"
    assert results(name="named")["data"] is None
