"""The report of a run: what it warns of, what it shows, and what it does with numbers and text that are not nice."""

from __future__ import annotations

import html
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import inspected
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from made_run import HOSTILE, healthy, log_responses, make_run

from rlkit import pages, report
from rlkit.assembly import ending
from rlkit.commands.report import report as command
from rlkit.config import load
from rlkit.errors import ConfigError, RlkitError
from rlkit.interfaces.rewards import RewardResult
from rlkit.pages import Chart, Series
from rlkit.records.folder import RunFolder
from rlkit.records.samples import read
from rlkit.report.distributions import TITLES, Step, histograms
from rlkit.report.page import timing
from rlkit.wording import number


def changed(values: Mapping[str, list[float]], seed: int = 0) -> list[dict[str, float]]:
    """A healthy run of 80 steps in which some metrics are others: each list is spread over the steps."""
    rows = healthy(80, seed)
    for at, row in enumerate(rows):
        row |= {"step": at + 1}
        row |= {name: column[at * len(column) // 80] for name, column in values.items()}
    return rows


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [1, 3, 80, 300])
def test_a_healthy_run_is_not_warned_of(steps: int, seed: int) -> None:
    rows = [{"step": at, **row} for at, row in enumerate(healthy(steps, seed), 1)]
    assert report.warnings_of(rows) == []


def test_of_a_config_that_was_never_resolved_the_gap_is_judged_as_the_looser_dtype_s(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "r", load("embedded_xs", ["model.dtype=auto", "steps=80"]))
    for row in changed({"sampler/gap_mean": [1e-3, 0.04, 0.06]}):
        folder.log_metrics(int(row["step"]), row)
    assert "(fine in auto: below 0.045)" in " ".join(report.write(folder.path).read_text().split())
    assert [each.name for each in report.warnings_of(folder.read_metrics(), folder.read_config())] == [
        "Gap between sampler and trainer"
    ]


FAULTS = {
    "Entropy collapse": ({"policy/entropy": [0.3, 0.1, 0.01, 0.001]}, "at step 41,"),
    "KL growth": ({"policy/kl": [0.01, 0.1, 0.4, 2.0]}, "2 nats a token in steps 61 to 68"),
    "Heavy actor part": ({"vimpo/actor_ratio": [0.0125] * 79 + [0.3]}, "step 80, highest 0.3"),
    "Gap between sampler and trainer": ({"sampler/gap_mean": [1e-3, 0.05]}, "0.05 nats on average in steps 41 to 48"),
    "Truncation": ({"response/truncated": [0.0, 0.0, 0.5, 0.0]}, "50 % of the responses .* in steps 41 to 48"),
    "Conversations cut by their turns": (
        {"environment/cut_turns": [0.1, 0.3], "response/truncated": [0.1, 0.3]},
        "30 % of the trajectories .* in steps 41 to 48",
    ),
    "Tool errors": (
        {"environment/tool_errors": [0.5, 1.5], "environment/tool_calls": [2.0]},
        "75 % of the tool calls .* in steps 41 to 48",
    ),
    "Samples without a value": (
        {"samples/no_value": [0.0] * 79 + [3.0], "samples/timeout": [0.0] * 79 + [3.0]},
        r"3 samples got no reward \(timeout 3\), in step 80",
    ),
    "No answer found": (
        {"samples/no_answer": [2.0, 6.0, 2.0], "samples/ok": [6.0, 2.0, 6.0]},
        "75 % of the responses the verifier finds no answer in steps 28 to 35",
    ),
    "Clip share": ({"policy/clip_share": [0.0, 0.3]}, "30 % of the tokens in steps 41 to 48"),
    "Groups with equal rewards": ({"groups/equal_rewards": [0.1, 0.8]}, "80 % of the groups .* steps 73 to 80"),
    "Skipped updates": ({"updates/skipped": [1.0] + [0.0] * 78 + [1.0]}, "2 updates .* steps 1 and 80"),
    "Updates that are not finite": ({"updates/not_finite": [math.nan] * 79 + [1.0]}, "in step 80"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_warned_of_with_its_numbers_and_what_to_try(name: str) -> None:
    values, seen = FAULTS[name]
    (warning,) = report.warnings_of(changed(values))
    assert warning.name == name
    assert re.search(seen, warning.seen), warning.seen
    assert "`" in "".join(warning.tries)
    assert str(warning).startswith(f"{name}: ")


def test_where_an_environment_loses_samples_its_log_is_named() -> None:
    values, _ = FAULTS["Samples without a value"]
    (plain,), (acts,) = (report.warnings_of(changed({**values, **more})) for more in ({}, {"environment/turns": [2.0]}))
    assert "environments.log" in acts.tries[0]
    assert acts.tries[2:] == plain.tries


def test_a_conversations_page_has_what_its_environment_counted(tmp_path: Path) -> None:
    more = {
        "environment/turns": 2.5,
        "environment/cut": 0.1,
        "environment/cut_turns": 0.05,
        "environment/tool_calls": 1.5,
        "environment/tool_errors": 0.25,
        "environment/right": 0.5,
        "time/environment_s": 0.2,
    }
    rows = healthy(9)
    for at, row in enumerate(rows):
        row |= {name: value * (1 + at % 2) for name, value in more.items()}
    run = make_run(tmp_path / "r", rows)
    page = html.unescape(report.write(run.path).read_text())
    section = page.partition(">Conversations</h2>")[2].partition("<h2 ")[0]
    for title in ("Turns", "Cut before the environment has ended them", "Tool calls", "Waiting for the environment"):
        assert title in section
    assert "environment/right" in section
    assert page.count("environment/right") == section.count("environment/right")


@pytest.mark.parametrize("name", ["Entropy collapse", "Groups with equal rewards"])
def test_a_solved_task_s_little_variety_is_no_fault(name: str) -> None:
    values, _ = FAULTS[name]
    assert report.warnings_of(changed({**values, "reward/pass_rate": [0.3, 0.97]})) == []


@pytest.mark.parametrize("name", ["KL growth", "Gap between sampler and trainer", "Truncation", "Clip share"])
def test_one_step_is_chance(name: str) -> None:
    values, _ = FAULTS[name]
    ((metric, column),) = values.items()
    once = [min(column)] * 40 + [2 * max(column) / 5] + [min(column)] * 39
    assert report.warnings_of(changed({metric: once})) == []


LOST = {
    "response/truncated": 1.0,
    "groups/equal_rewards": 1.0,
    "samples/no_answer": 32.0,
    "samples/no_value": 0.0,
    "reward/pass_rate": 0.0,
}


def test_what_is_lost_from_the_beginning_is_seen_after_two_steps() -> None:
    found = report.warnings_of([{"step": 1, **LOST}, {"step": 2, **LOST}])
    assert [warning.name for warning in found] == ["Truncation", "No answer found", "Groups with equal rewards"]
    for warning in found:
        assert "100 %" in warning.seen
        assert "steps 1 to 2" in warning.seen
        assert warning.means not in warning.brief()
        assert all(text in warning.brief() for text in (warning.seen, *warning.tries))


@pytest.mark.parametrize("name", ["response/truncated", "groups/equal_rewards"])
def test_one_bad_step_of_a_run_that_has_just_begun_is_chance(name: str) -> None:
    fine, limit = {"reward/pass_rate": 0.3, name: 0.0}, {"response/truncated": 0.1, "groups/equal_rewards": 0.5}[name]
    rows = [{"step": at, **fine} for at in range(1, 6)]
    rows[-1][name] = 1.9 * limit
    assert report.warnings_of(rows) == []
    rows[-2][name] = 0.2 * limit
    assert len(report.warnings_of(rows)) == 1


def test_each_setting_that_a_warning_names_exists() -> None:
    from rlkit import registry
    from rlkit.config import RunConfig

    known = {
        f"{section}.{key}"
        for section, spec in RunConfig.model_fields.items()
        for key in getattr(spec.annotation, "model_fields", {})
    } | set(RunConfig.model_fields)
    for algorithm in ("vimpo", "grpo", "ppo"):
        known |= {f"algo.{key}" for key in registry.find("algorithms", algorithm).options.model_fields}
    named = [
        key.partition(":")[0]
        for values, _ in FAULTS.values()
        for warning in report.warnings_of(changed(values))
        for text in warning.tries
        for key in re.findall(r"`([^`]+)`", text)
        if not key.startswith(("rlkit ", "--"))
    ]
    assert len(named) > 20
    assert set(named) <= known


def test_a_run_that_is_whole_gives_a_page_with_all_of_it(tmp_path: Path) -> None:
    rows = healthy()
    for row in rows:
        row |= {"reward/disturbed": 0.25, "reward/mean": 0.5, "reward/part/format": row["reward/mean"]}
    folder = make_run(tmp_path / "whole", rows, ["a response", "another", "a third"], noise=["group_flip"])
    page = report.write(folder.path).read_text()
    titles = [html.unescape(title) for title in re.findall("<figcaption>(.*?)</figcaption>", page)]
    assert {
        "Reward in training, mean of 5 steps, and held-out pass rate",
        "Parts of the reward",
        "Disturbed rewards",
        "KL to the reference",
        "Pass rate",
    } <= set(titles)
    assert {"Entropy", "Gradient norm, before clipping", "Clip share", "Truncated", "Seconds by phase"} <= set(titles)
    for text in ("prompt 0 of step 41", "prompt 0 of step 80", "gold 1", "a third", '"status":"timeout"'):
        assert text in page
    assert "Every sample of the run." in page
    assert "Learning rate: 0.0003" in page  # the same throughout
    assert "prompts_per_step: 16" in page
    assert len(page.encode()) < 300_000


def data_of(page: str, id: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{id}">(.*?)</script>', page)
    assert found, id
    return json.loads(found[1])


def test_the_samples_are_those_of_the_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy(3), ["one", "two #### 2", "three"])
    data = data_of(report.write(folder.path).read_text(), "stored")
    rows = [(step, row) for step in (1, 2, 3) for row in read(folder.rollout_file(step)).to_pylist()]
    assert len(data["samples"]) == len(rows) == 9
    for sample, (step, row) in zip(data["samples"], rows, strict=True):
        assert (sample["step"], sample["index"], sample["response"]) == (step, row["index"], row["response"])
        assert data["prompts"][sample["prompt"]] == [row["prompt_id"], row["prompt"], row["answer"]]
        assert sample["clean"] == (None if row["status"] == "timeout" else row["clean_reward"])
        assert sample["reward"] == (row["reward"] if row["valid"] else None)
        for key in ("status", "correct", "truncated"):
            assert sample[key] == row[key]


def test_of_many_and_long_samples_each_step_holds_some_and_it_is_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy(2))
    for step in range(1, 151):
        log_responses(folder, step, ["x" * 3000] * 10)
    file = report.write(folder.path)
    data = data_of(file.read_text(), "stored")
    steps = [sample["step"] for sample in data["samples"]]
    assert (steps[0], steps[-1], len({*steps})) == (1, 150, 100)
    assert 400 < len(steps) < 1000
    assert max(map(steps.count, steps)) <= min(map(steps.count, steps)) + 1
    assert file.stat().st_size < 2_300_000
    assert f"{len(steps)} of the 1,000 samples of 100 of the run's 150 steps" in file.read_text()


MODEL = {"path": "embedded:xs", "dtype": "float32"}


def test_histograms_count_what_the_files_hold(tmp_path: Path) -> None:
    """Three groups of a step: all right, half right, one right of two with a value; then a step of one group."""
    folder = RunFolder.create(tmp_path / "run", inspected.config("grpo", model=MODEL))
    right, wrong = inspected.two_plus, inspected.wrong
    lost = RewardResult(value=None, status="timeout")
    shares = {"advantages": [0.5, -0.5, 0.25, 1.0, 2.0]}
    groups = [
        [right(**shares), right(**shares)],
        [right(**shares), inspected.letters("6+6", result=wrong(), advantages=[-1.0, -1.0, -1.0, 1.0])],
        [right(**shares), inspected.letters("7", result=wrong(), advantages=[0.0, 0.0]), right(result=lost)],
    ]
    inspected.write(folder, 1, groups)
    inspected.write(folder, 2, [[right(result=wrong(), **shares), right(result=wrong(), **shares)]])
    folder.log_metrics(1, {"reward/mean": 0.5})
    page = report.write(folder.path).read_text()
    shown = {each["title"]: each for each in data_of(page, "spread")["histograms"]}
    assert data_of(page, "spread")["steps"] == [1, 2]

    def counts(title: str, step: int) -> dict[str, dict[str, int]]:
        each = shown[title]
        rows = zip(each["names"], each["counts"][step], strict=True)
        return {name: {b: n for b, n in zip(each["bins"], row, strict=True) if n} for name, row in rows}

    assert counts("Reward, clean", 0) == {"responses": {"0": 2, "1": 4}}
    assert counts("Reward, clean", 1) == {"responses": {"0": 2}}
    assert "Reward with noise, as the loss sees it" not in shown
    assert counts("Response length in tokens", 0) == {
        "right": {"5": 4},
        "wrong": {"2": 1, "4": 1},
        "no verdict": {"5": 1},
    }
    assert counts("Pass rate of a prompt", 0) == {"prompts": {"0.5": 2, "1": 1}}
    assert counts("Spread of rewards within a group (standard deviation)", 0) == {"groups": {"0": 1, "0.5": 2}}
    tokens = [-1.0] * 3 + [1.0] + [0.0] * 2 + shares["advantages"] * 4
    assert counts("Advantage of a token", 0) == {"tokens": {number(v): tokens.count(v) for v in sorted({*tokens})}}
    chart = next(each for each in re.findall('json">(.*?)</script>', page) if "never, sometimes" in each)
    drawn = {each["name"]: each["y"] for each in json.loads(chart)["series"]}
    assert drawn == {"never": [0, 1], "sometimes": [0.6667, 0], "always": [0.3333, 0]}


def test_ratios_are_of_the_tokens_that_were_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", inspected.config("grpo", model=MODEL))
    inspected.write(folder, 1, [[inspected.two_plus(others=(1,)), inspected.two_plus(), inspected.two_plus()]])
    file = folder.rollout_file(1)
    rows = pq.read_table(file)
    at = -0.5 + math.log(2)  # the sampler's are -0.5 throughout
    logprobs = [[at, 9.0, -0.5, -0.5, at], [-0.5, -0.5, math.nan, at, at], None]
    pq.write_table(rows.append_column("logprobs", pa.array(logprobs, pa.list_(pa.float64()))), file)
    folder.log_metrics(1, {"reward/mean": 0.5})
    shown = {each["title"]: each for each in data_of(report.write(folder.path).read_text(), "spread")["histograms"]}
    ratios = shown["Ratio of trainer to sampler before the updates"]
    assert (ratios["of"], ratios["bins"], ratios["counts"]) == ("tokens", ["1", "2"], [[[4, 4]]])


def test_many_values_are_counted_in_bins() -> None:
    coins = random.Random(3)
    values = [coins.gauss(0, 1) for _ in range(1000)]
    step = Step(1, values={title: {} for title in TITLES} | {"Advantage of a token": {"tokens": values}})
    (made,) = histograms([step])
    (counts,) = made.counts[0]
    width = (max(values) - min(values)) / 24
    expected = [0] * 24
    for value in values:
        expected[min(23, int((value - min(values)) / width))] += 1
    assert list(counts) == expected
    assert len(made.bins) == 24


def test_what_is_on_an_edge_between_bins_belongs_to_the_bin_above() -> None:
    values = [float(value) for value in range(25)]
    step = Step(1, values={title: {} for title in TITLES} | {"Advantage of a token": {"tokens": values}})
    (made,) = histograms([step])
    assert made.counts[0][0] == [1] * 23 + [2]


def test_what_steps_took_is_what_the_metrics_say(tmp_path: Path) -> None:
    rows = healthy(50)
    clock = data_of(report.write(make_run(tmp_path / "run", rows).path).read_text(), "clocks")[""]
    assert clock["steps"] == [*range(1, 51)]
    assert clock["seconds"] == pytest.approx([0.2 * step for step in range(1, 51)])
    tokens = [sum(row["time/step_s"] * row["throughput/tokens_per_s"] for row in rows[:step]) for step in range(1, 51)]
    assert clock["tokens"] == pytest.approx(tokens, rel=1e-6)


def test_a_long_run_s_page_stays_small(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "long", healthy(1000))
    for step in (1, 500, 1000):
        log_responses(folder, step, ["x" * 100_000] * 3)
    page = report.write(folder.path)
    assert page.stat().st_size < 300_000
    assert "characters left out" in page.read_text()


def test_what_there_are_no_numbers_for_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "bare", [{"reward/mean": 0.1 * step} for step in range(5)])
    page = report.write(folder.path).read_text()
    assert re.findall("<figcaption>(.*?)</figcaption>", page) == ["Reward in training"]
    for heading in ("Evaluation", "Noise", "Timing", "Samples", "Policy"):
        assert f">{heading}<" not in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    page = report.write(make_run(tmp_path / "begun", []).path).read_text()
    assert "No step has been made yet" in page
    assert "<figcaption" not in page


def test_a_run_that_goes_on_and_a_line_half_written(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "going", healthy(20))
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 21, "reward/me')
    done = CliRunner().invoke(command, [str(folder.path)])
    assert done.exit_code == 0, done.output
    assert done.output == f"{folder.path / 'report.html'}\n"
    config = folder.config_file.read_text()
    folder.config_file.write_text(config.replace("steps: 20", "steps: 50"))
    assert "20 of 50 steps: it goes on, or was stopped" in report.write(folder.path).read_text()


def test_numbers_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    rows = healthy(30)
    for row in rows[10:20]:
        row |= dict.fromkeys(row, math.nan)
    for row in rows:
        row["policy/kl"] = math.inf
    page = report.write(make_run(tmp_path / "nan", rows).path).read_text()
    for data in re.findall('<script type="application/json">(.*?)</script>', page):
        json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    assert "KL to the reference" not in page


def test_the_command_prints_each_warning_as_sentences(tmp_path: Path) -> None:
    rows = [{"policy/kl": 3.0, "response/truncated": 0.9, "step": at} for at in range(1, 12)]
    folder = make_run(tmp_path / "bad", rows)
    done = CliRunner().invoke(command, [str(folder.path)])
    assert done.exit_code == 0
    assert [
        line.partition(":")[2].split(":")[0] for line in done.output.splitlines() if line.startswith("warning")
    ] == [
        " KL growth",
        " Truncation",
    ]
    assert "KL growth" in (folder.path / "report.html").read_text()


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run's folder"):
        report.write(tmp_path)
    folder = make_run(tmp_path / "run", healthy(3))
    folder.metrics_file.unlink()
    with pytest.raises(ConfigError, match=r"holds no metrics\.jsonl"):
        report.write(folder.path)


def test_a_damaged_rollout_is_left_out_and_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy(3), ["a", "b"])
    folder.rollout_file(3).write_bytes(b"nothing")
    page = report.write(folder.path).read_text()
    assert re.search(r"Left out: \S*step-000003\.parquet is damaged .*: delete it, and rlkit does without", page)
    assert "prompt 0 of step 2" in page
    assert {sample["step"] for sample in data_of(page, "stored")["samples"]} == {1, 2}
    folder.rollout_file(3).unlink()
    assert "Left out" not in report.write(folder.path).read_text()


def test_damaged_provenance_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy(3))
    folder.provenance_file.write_text('{"git": ')
    with pytest.raises(RlkitError, match=r"provenance\.json is damaged"):
        report.write(folder.path)


def test_a_run_outlives_its_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy(3))
    (folder.path / "report.html").mkdir()
    with pytest.warns(
        UserWarning, match="the run is whole, but its picture or its report could not be written: .*`rlkit report"
    ):
        ending.draw(folder.path)
    assert folder.learning_curve.is_file()


def test_the_summary_names_the_report_and_gives_its_warnings_in_full(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy(3))
    assert "report" not in ending.summary(folder.path)
    ending.draw(folder.path)
    assert f"report   {folder.path / 'report.html'}\n" in ending.summary(folder.path)
    folder.log_metrics(3, {"updates/skipped": 1.0})
    (warning,) = report.warnings_of(folder.read_metrics(), folder.read_config())
    assert warning.means in str(warning)
    assert f"\n\nwarning: {warning}\n\n" in ending.summary(folder.path)


def test_phases_add_up_to_the_whole() -> None:
    rows = [
        {"step": 0, "time/eval_s": 3.0},
        {"step": 1, "time/step_s": 10.0, "time/sample_s": 4.0, "time/update_s": 5.0},
        {"step": 2, "time/step_s": 12.0, "time/sample_s": 5.0, "time/update_s": 5.0, "time/eval_s": 5.0},
    ]
    found = {phase.name: (phase.seconds, phase.each) for phase in timing(rows)}
    assert found == {"sampling": (9, 4.5), "updates": (10, 5), "evaluation": (8, 4), "other": (3, 1.5)}
    assert sum(phase.share for phase in timing(rows)) == pytest.approx(1)
    assert timing([{"step": 1, "reward/mean": 1.0}]) == []


def test_what_a_model_wrote_is_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "hostile", healthy(2), HOSTILE)
    page = report.write(folder.path).read_text()
    assert "\\u003cscript>document.title" in page
    assert not re.search(r"<img|<script>document", page)
    assert data_of(page, "stored")["samples"][2]["response"] == "␛[31mred␛[0m ␇␀ \\u202egnihton \\x9b2J"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)


def test_text_cannot_leave_a_chart_s_data() -> None:
    chart = Chart("<b>\x1b", [Series("</script><script>alert(1)", [1], [2])], y_label="<!--")
    figure = str(pages.chart(chart))
    assert re.findall("<[^ >]*", figure) == [
        *("<figure", "<figcaption", "</figcaption", "<div", "</div", "<script", "</script", "<noscript", "<p", "</p"),
        *("</noscript", "</figure"),
    ]
    (data,) = re.findall('<script type="application/json">(.*?)</script>', figure)
    assert json.loads(data)["series"][0]["name"] == "</script><script>alert(1)"


def test_a_long_curve_is_drawn_through_means_within_lowest_and_highest() -> None:
    coins = random.Random()
    y = [coins.gauss(0, 1) if at % 7 else math.nan for at in range(1037)]
    (data,) = re.findall('json">(.*?)</script>', str(pages.chart(Chart("", [Series("", range(1037), y)]))))
    drawn = json.loads(data)["series"][0]
    assert len(drawn["x"]) == len(drawn["y"]) == pages.POINTS
    start = 0
    for at in range(pages.POINTS):
        end = 1037 * (at + 1) // pages.POINTS
        there = [value for value in y[start:end] if not math.isnan(value)]
        expected = [sum(there) / len(there), min(there), max(there), (start + end - 1) / 2]
        got = [drawn[key][at] for key in ("y", "low", "high", "x")]
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-3)
        start = end


def test_a_chart_is_said_in_words() -> None:
    chart = Chart("Reward", [Series("vimpo", [1, 2, 3, 4], [0.25, None, 1.5, math.nan]), Series("none", [], [])])
    assert pages.describe(chart) == "Reward. vimpo: 0.25 at step 1, 1.5 at 3, lowest 0.25, highest 1.5."


def test_a_series_of_two_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="series 'a'"):
        pages.chart(Chart("", [Series("a", [1, 2], [1, 2], low=[1], high=[1, 2])]))


def test_code_between_backticks_is_marked_and_the_rest_escaped() -> None:
    assert pages.code("a `b<` c") == "a <code>b&lt;</code> c"


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours of the form #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_told_from_their_ground() -> None:
    style = (pages.HERE / "style.css").read_text()
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(themes) == 2
    for theme, colours in zip(themes, zip(*pages.PALETTE, strict=True), strict=True):
        for ground in ("bg", "card"):
            for name in ("fg", "muted", "accent", "good", "bad"):
                assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground)
            assert all(contrast(colour, theme[ground]) >= 4.5 for colour in colours)
        for name in ("fg", "warn"):
            assert contrast(theme[name], theme["warn-bg"]) >= 4.5
        assert contrast(theme["fg"], theme["faint"]) >= 4.5


def test_the_docs_name_each_warning_its_metric_and_what_to_try() -> None:
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines() if line.startswith("| ")}
    for name, (values, _) in FAULTS.items():
        (warning,) = report.warnings_of(changed(values))
        assert f"`{next(iter(values))}`" in rows[name]
        for key in re.findall(r"`((?:algo|optimizer|batch|sampling|scoring|data|model)\.\w+)", "".join(warning.tries)):
            assert f"`{key}" in rows[name], f"docs/report.md, {name}: {key}"


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", healthy(3), ["a", "b"])
    script = (
        "import sys; from pathlib import Path; from rlkit import report\n"
        f"report.write(Path({str(folder.path)!r})); print(sorted({{'torch', 'matplotlib'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("dtype", "gap", "warned"),
    [("bfloat16", 0.04, False), ("bfloat16", 0.06, True), ("float32", 5e-4, False), ("float32", 0.002, True)],
)
def test_the_gap_is_judged_by_the_dtype_and_what_is_set_is_not_advised(dtype: str, gap: float, warned: bool) -> None:
    config = load("embedded", [f"model.dtype={dtype}", "sampler=transformers", "engine.zero_stage=1"])
    found = report.warnings_of(changed({"sampler/gap_mean": [gap]}), config)
    assert [each.name for each in found] == ["Gap between sampler and trainer"] * warned
    for each in found:
        advice = "; ".join(each.tries)
        assert "sampler: transformers" not in advice
        assert ("model.dtype: float32" in advice) == (dtype == "bfloat16")
        assert f"in {dtype}" in each.seen
        assert "mean over tokens" in each.means


def test_no_advice_is_what_a_run_has_set() -> None:
    config = load("embedded", ["batch.epochs=1", "batch.minibatches=1", "sampling.check_every=1"])
    (found,) = report.warnings_of(changed({"policy/clip_share": [0.0, 0.3]}), config)
    assert "batch.epochs" not in "; ".join(found.tries)
    assert found.tries
