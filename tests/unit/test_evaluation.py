"""Metrics against closed forms and brute force; suites; an evaluation from end to end, stopped and gone on with."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

import rlkit
from rlkit import config as configs
from rlkit import embedded, registry
from rlkit.commands.evaluate import evaluate as evaluate_command
from rlkit.errors import ConfigError, RlkitError
from rlkit.evaluation import suites
from rlkit.evaluation.on_suites import run_evaluation
from rlkit.evaluation.pass_rates import Verdict, bootstrap, maj_at_k, measure, pass_at_k
from rlkit.evaluation.settings import EvaluationConfig, load_settings
from rlkit.records.folder import RunFolder

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
COUNTS = {"math500": 500, "aime24": 30, "aime25": 30, "olympiadbench": 675, "gsm8k": 1319}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the suites' local copies (../shared/data) are not here")


# Metrics


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int) -> None:
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        marks = [True] * correct + [False] * (n - correct)
        subsets = list(itertools.combinations(marks, k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over binomially many right samples is 1 - (1 - p)^k."""
    n, p = 7, 0.3
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    for k in range(1, n + 1):
        mean = sum(w * pass_at_k(n, c, k) for c, w in enumerate(weights))
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def naive_majority(drawn: tuple[Verdict, ...]) -> float:
    votes = Counter("right" if v.correct else f"wrong {v.answer}" for v in drawn if v.correct or v.answer is not None)
    if not votes:
        return 0.0
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    return ("right" in winners) / len(winners)


def test_maj_at_k_is_the_share_of_subsets_whose_vote_is_right() -> None:
    rng = np.random.default_rng()
    for _ in range(60):
        n = int(rng.integers(1, 9))
        answers = [None if a == 0 else str(a) for a in rng.integers(0, 5, size=n)]
        verdicts = [Verdict(correct=a == "1", answer=a) for a in answers]
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(verdicts, k))
            naive = sum(map(naive_majority, subsets)) / len(subsets)
            assert maj_at_k(verdicts, k) == pytest.approx(naive, abs=1e-12), (answers, k)


def test_right_answers_vote_together_however_they_are_written() -> None:
    verdicts = [Verdict(True, "1/2"), Verdict(True, "0.5"), Verdict(False, "3"), Verdict(False, "4")]
    assert maj_at_k(verdicts, 4) == 1.0


def test_every_metric_at_one_sample_is_the_mean() -> None:
    correct = np.random.default_rng().random((20, 4)) < 0.4
    problems = [[Verdict(bool(c), str(c)) for c in row] for row in correct]
    share = correct.mean()
    assert measure(problems)["mean@4"].value == pytest.approx(share)
    assert np.mean([pass_at_k(4, int(row.sum()), 1) for row in correct]) == pytest.approx(share)
    assert np.mean([maj_at_k(p, 1) for p in problems]) == pytest.approx(share)


def test_measure_names_what_n_samples_can_say() -> None:
    problem = [Verdict(True, "1")] * 6
    assert list(measure([problem])) == ["mean@6", "pass@2", "pass@4", "pass@6", "maj@2", "maj@4", "maj@6"]
    assert list(measure([problem[:1]])) == ["mean@1"]
    assert list(measure([problem], majority=False)) == ["mean@6", "pass@2", "pass@4", "pass@6"]
    with pytest.raises(ValueError, match="same number"):
        measure([problem, problem[:2]])
    with pytest.raises(ValueError, match="k must be"):
        pass_at_k(3, 1, 4)


def test_the_interval_is_that_of_the_binomial_bootstrap() -> None:
    """Resampled means of zeros and ones are Binomial(P, share) / P: its quantiles are known."""
    size, right = 40, 12
    share = right / size
    mass = np.cumsum([math.comb(size, c) * share**c * (1 - share) ** (size - c) for c in range(size + 1)])
    low, high = (int(np.searchsorted(mass, q)) / size for q in (0.025, 0.975))
    estimate = bootstrap(
        np.array([1.0] * right + [0.0] * (size - right)), seed=int(np.random.default_rng().integers(99))
    )
    assert estimate.value == pytest.approx(share)
    assert abs(estimate.low - low) <= 1 / size + 1e-12
    assert abs(estimate.high - high) <= 1 / size + 1e-12


def test_the_interval_follows_from_the_seed() -> None:
    values = np.random.default_rng().random(30)
    assert bootstrap(values, 3) == bootstrap(values, 3)
    assert bootstrap(values, 3) != bootstrap(values, 4)


# Suites


@needs_data
@pytest.mark.parametrize("name", COUNTS)
def test_a_suite_has_its_problems_and_their_golds_verify(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))
    with suites.opened(name, tokenizer, folder=DATA) as loaded:
        assert len(loaded.problems) == COUNTS[name]
        assert (loaded.bad_golds, loaded.unchecked) == ([], None)
    assert loaded.suite.samples == (32 if name.startswith("aime") else 1)
    for problem in loaded.problems:
        assert problem.answer
        assert ("####" if name == "gsm8k" else "\\boxed{}") in problem.text


def test_the_five_suites_are_plugins() -> None:
    assert set(COUNTS) <= set(registry.names("suites"))


def aime(folder: Path, answers: list[str], **columns: Any) -> Path:
    """A local copy of aime25 with 30 problems, the given answers in turn."""
    folder.mkdir(exist_ok=True)
    rows = [{"problem": f"{i}+{i}=", "expected_answer": answers[i % len(answers)], **columns} for i in range(30)]
    (folder / "aime25.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_golds_that_do_not_verify_are_named(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))
    with suites.opened("aime25", tokenizer, folder=aime(tmp_path, ["7", "7", ""]), limit=6) as loaded:
        assert [bad.partition(":")[0] for bad in loaded.bad_golds] == ["row 3", "row 6"]
        assert "bad_gold" in loaded.bad_golds[0]


def test_another_number_of_problems_is_refused(tmp_path: Path) -> None:
    file = aime(tmp_path, ["1"]) / "aime25.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:29]))
    with pytest.raises(ConfigError, match="'aime25' has 30 problems, but 29 were read"):
        suites.rows("aime25", tmp_path)


def test_a_missing_file_and_a_missing_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"math500\.jsonl' does not exist"):
        suites.rows("math500", tmp_path)
    (tmp_path / "aime25.jsonl").write_text('{"problem": "1", "solution": "1"}\n')
    with pytest.raises(ConfigError, match=r"row 1: no column 'answer'.*columns: problem, solution"):
        suites.rows("aime25", tmp_path)


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown suite 'mth500'; did you mean 'math500'"):
        suites.find("mth500")
    said = CliRunner().invoke(evaluate_command, ["--model", "embedded:xs", "--suite", "aime26"])
    assert isinstance(said.exception, ConfigError)
    assert "aime25" in str(said.exception)


def test_chat_models_read_the_template_as_the_users_message(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    folder = aime(tmp_path, ["1"])
    with suites.opened("aime25", tokenizer, folder=folder, limit=1) as loaded:
        text = loaded.problems[0].text
    assert text.startswith("<user>0+0=\n\nReason")
    assert text.endswith("\\boxed{}.<assistant>")
    with suites.opened("aime25", tokenizer, folder=folder, limit=1, chat=False) as loaded:
        bare = loaded.problems[0].text
    assert bare.startswith("0+0=\n\nReason")


# From end to end


ARITHMETIC = """
from rlkit import suite
from rlkit.evaluation.suites import Suite

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(10, 14) for b in (25, 38)]

@suite("addition")
def addition() -> Suite:
    "Two-digit addition"
    rows = ROWS + [{"prompt": "1" * 2040, "answer": "1"}]
    return Suite(load=lambda folder: rows, template="{prompt}", reward="final_answer", samples=4, count=9)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("plugin") / "addition_suite.py"
    file.write_text(ARITHMETIC)
    return str(file)


def settings(out: Path, plugin: str, **changes: Any) -> EvaluationConfig:
    given = {
        "model": {"path": "embedded:xs", "dtype": "float32"},
        "suites": ["addition"],
        "out": out,
        "max_tokens": 32,
        "plugins": [plugin],
        "scoring": {"workers": 1},
    }
    return load_settings(given | changes)


def test_an_evaluation_goes_on_where_it_stopped(tmp_path: Path, plugin: str) -> None:
    whole = run_evaluation(settings(tmp_path / "whole", plugin), quiet=True)["addition"]
    assert whole["problems"] == 9
    assert 0 < whole["metrics"]["mean@4"]["value"] < 1
    assert whole["quoted"] == "mean@4"
    file = tmp_path / "whole" / "addition" / "responses.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["problem"], r["sample"]) for r in rows] == list(itertools.product(range(9), range(4)))
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["addition"] == whole

    # As a stop leaves it: no verdicts, not in order, and the last line cut off.
    cut = tmp_path / "cut" / "addition"
    cut.mkdir(parents=True)
    (cut / "settings.json").write_text((file.parent / "settings.json").read_text())
    unscored = [{k: r[k] for k in r if k not in ("correct", "value", "status", "given")} for r in rows]
    lines = [json.dumps(unscored[i]) for i in (7, 2, 20, 11)]
    (cut / "responses.jsonl").write_text("\n".join(lines) + "\n" + json.dumps(unscored[5])[:40])
    assert run_evaluation(settings(tmp_path / "cut", plugin), quiet=True)["addition"] == whole
    assert (cut / "responses.jsonl").read_text() == file.read_text()


def test_what_leaves_no_room_counts_as_wrong_and_is_reported(tmp_path: Path, plugin: str) -> None:
    found = run_evaluation(settings(tmp_path, plugin, samples=2), quiet=True)["addition"]
    rows = [json.loads(line) for line in (tmp_path / "addition" / "responses.jsonl").read_text().splitlines()]
    assert found["statuses"]["too_long"] == found["no_value"] == 2
    assert [r["status"] for r in rows[-2:]] == ["too_long"] * 2
    right = sum(r["correct"] for r in rows)
    assert found["metrics"]["mean@2"]["value"] == pytest.approx(right / len(rows))


def test_settings_that_differ_are_refused(tmp_path: Path, plugin: str) -> None:
    run_evaluation(settings(tmp_path, plugin, limit=1, samples=1), quiet=True)
    before = (tmp_path / "addition" / "responses.jsonl").read_text()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"top_p": 0.9}, "top_p was 0.7 and is now 0.9"),
        ({"samples": 2}, "samples was 1 and is now 2"),
        ({"limit": 2}, "problems was 1 and is now 2"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"stop": ["# "]}, r"stop was None and is now \['# '\]"),
    ]
    for change, said in changes:
        with pytest.raises(ConfigError, match=f"drawn with other settings: .*{said}"):
            run_evaluation(settings(tmp_path, plugin, **({"limit": 1, "samples": 1} | change)), quiet=True)
    assert (tmp_path / "addition" / "responses.jsonl").read_text() == before


def test_a_broken_line_within_the_responses_is_named(tmp_path: Path, plugin: str) -> None:
    run_evaluation(settings(tmp_path, plugin, limit=1, samples=1), quiet=True)
    file = tmp_path / "addition" / "responses.jsonl"
    file.write_text("nonsense\n" + file.read_text())
    with pytest.raises(RlkitError, match="line 1 is no response"):
        run_evaluation(settings(tmp_path, plugin, limit=1, samples=1), quiet=True)


def test_what_an_older_rlkit_wrote_is_refused(tmp_path: Path, plugin: str) -> None:
    run_evaluation(settings(tmp_path, plugin, limit=1, samples=1), quiet=True)
    file = tmp_path / "addition" / "responses.jsonl"
    row = json.loads(file.read_text())
    before = json.dumps(row | {"tokens": len(row["tokens"])}) + "\n"
    file.write_text(before)
    said = rf"responses\.jsonl, line 1 holds how many tokens .* another folder with --out, or delete {file.parent}$"
    with pytest.raises(ConfigError, match=said) as caught:
        run_evaluation(settings(tmp_path, plugin, limit=1, samples=1), quiet=True)
    assert caught.value.exit_code == 2
    assert file.read_text() == before


REWARDS = """
import os
from pathlib import Path
from rlkit import reward, suite
from rlkit.evaluation.suites import Suite
from rlkit_rewards.form import Length

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(10, 14) for b in (25, 38)]


def of(reward, **options):
    return lambda: Suite(load=lambda folder: ROWS, template="{prompt}", reward=reward, options=options)


suite("lengths")(of("length", max_tokens=32, buffer=32))
suite("fragile")(of("fragile"))
suite("counted")(of("counted"))


@reward("fragile")
def fragile(samples):
    if "even" in os.environ.get("FRAGILE", "") and any(sum(s.tokens) % 2 == 0 for s in samples):
        raise RuntimeError("the verifier broke")
    if os.environ.get("FRAGILE") == "always":
        return []
    return [float(s.response.endswith(s.answer)) for s in samples]


@reward("counted")
class Counted:
    in_process = True

    def __init__(self):
        with open(os.environ["BUILT"], "a") as file:
            file.write("x")

    def __call__(self, samples):
        return [1.0 for _ in samples]
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("plugin") / "suites_of_rewards.py"
    file.write_text(REWARDS)
    return str(file)


def responses(out: Path, suite: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / suite / "responses.jsonl").read_text().splitlines()]


def test_a_verifier_sees_the_tokens_that_were_sampled(tmp_path: Path, rewards: str) -> None:
    """And those of responses that a stop has left without a verdict."""
    found = run_evaluation(settings(tmp_path / "whole", rewards, suites=["lengths"], samples=2), quiet=True)["lengths"]
    rows = responses(tmp_path / "whole", "lengths")
    assert len({len(row["tokens"]) for row in rows}) > 1
    assert [row["value"] for row in rows] == [pytest.approx(-len(row["tokens"]) / 32) for row in rows]
    assert found["mean_tokens"] == pytest.approx(sum(len(row["tokens"]) for row in rows) / len(rows))
    assert found["golds_unchecked"].startswith("reward 'length' reads a response's tokens, and a gold has none")
    assert (found["bad_golds"], found["no_value"]) == ([], 0)

    cut = tmp_path / "cut" / "lengths"
    cut.mkdir(parents=True)
    (cut / "settings.json").write_text((tmp_path / "whole" / "lengths" / "settings.json").read_text())
    left = [{k: r[k] for k in r if k not in ("correct", "value", "status", "given")} for r in rows]
    (cut / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
    run_evaluation(settings(tmp_path / "cut", rewards, suites=["lengths"], samples=2), quiet=True)
    assert responses(tmp_path / "cut", "lengths") == rows


def test_that_golds_are_not_checked_is_said(tmp_path: Path, rewards: str) -> None:
    command = ["--model", "embedded:xs", "--suite", "lengths", "--limit", "2", "--max-tokens", "8"]
    said = CliRunner().invoke(evaluate_command, [*command, "--plugin", rewards, "--out", str(tmp_path)])
    assert said.exit_code == 0, said.exception
    assert "golds are not checked: reward 'length' reads a response's tokens" in said.output


@pytest.mark.parametrize("how", ["even", "always"])
def test_what_a_verifier_fails_on_counts_as_wrong_until_it_is_mended(
    tmp_path: Path, rewards: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAGILE", "")
    given = settings(tmp_path, rewards, suites=["fragile"], samples=4)
    run_evaluation(given, quiet=True)
    sound = responses(tmp_path, "fragile")
    rows = [{k: r[k] for k in r if k not in ("correct", "value", "status", "given")} for r in sound]
    (tmp_path / "fragile" / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(suites, "bad_golds", lambda *_: [])  # it breaks after the golds were found sound
    monkeypatch.setenv("FRAGILE", how)
    found = run_evaluation(given, quiet=True)["fragile"]
    broken = responses(tmp_path, "fragile")
    fails = [how == "always" or sum(row["tokens"]) % 2 == 0 for row in broken]
    assert any(fails)
    assert [row["status"] == "error" for row in broken] == fails
    assert found["no_value"] == found["statuses"]["error"] == sum(fails)
    assert ("the verifier broke" if how == "even" else "returned 0 results") in found["error"]
    right = sum(s["correct"] and not failed for s, failed in zip(sound, fails, strict=True))
    assert found["metrics"]["mean@4"]["value"] == pytest.approx(right / len(sound))

    monkeypatch.setenv("FRAGILE", "")
    assert run_evaluation(given, quiet=True)["fragile"]["error"] is None
    assert responses(tmp_path, "fragile") == sound


def test_a_suites_verifier_is_built_once(tmp_path: Path, rewards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILT", str(tmp_path / "evaluated"))
    run_evaluation(settings(tmp_path / "out", rewards, suites=["counted"], limit=2), quiet=True)
    assert (tmp_path / "evaluated").read_text() == "x"

    monkeypatch.setenv("BUILT", str(tmp_path / "trained"))
    small = ["batch.prompts_per_step=2", "batch.samples_per_prompt=2", "eval.problems=2", "steps=1"]
    more = ["eval.suites=[counted]", f"plugins=[{rewards}]", f"out={tmp_path}", "name=r"]
    run = rlkit.train(configs.load("embedded_xs", [*small, *more]), quiet=True)
    assert (tmp_path / "trained").read_text() == "x"
    assert RunFolder.open(run).read_metrics()[-1]["eval/counted/mean@1"] == 1.0


def test_misspelt_settings_and_too_many_tokens_are_refused(tmp_path: Path, plugin: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'topp'.*did you mean"):
        load_settings({"model": {"path": "embedded:xs"}, "suites": ["addition"], "out": tmp_path}, ["topp=1"])
    with pytest.raises(ConfigError, match="unknown key 'max_new_tokens' at the top level; the key is max_tokens"):
        load_settings({"model": {"path": "embedded:xs"}, "suites": ["addition"]}, ["max_new_tokens=9"])
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        run_evaluation(settings(tmp_path, plugin, max_tokens=2048), quiet=True)


@needs_data
def test_the_command_prints_a_table_and_says_where_the_files_are(tmp_path: Path) -> None:
    arguments = ["--model", "embedded:xs", "--suite", "math500,gsm8k", "--limit", "2", "-n", "2", "--max-tokens", "8"]
    said = CliRunner().invoke(evaluate_command, [*arguments, "--data", str(DATA), "--out", str(tmp_path)])
    assert said.exit_code == 0, said.output
    for words in ("temperature 1, top-p 0.7", "mean@2*", "pass@2", "gsm8k", str(tmp_path)):
        assert words in said.output
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"math500", "gsm8k"}
