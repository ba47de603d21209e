"""rlkit compare on made-up runs: what it reads, what it says, and what it says of runs that are not whole."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, check_page
from click.testing import CliRunner, Result
from rich.console import Console
from synthetic_runs import Metrics, rising, write_rollout, write_run

from rlkit.cli import main
from rlkit.comparison import FILES, Comparison, compare, text, write
from rlkit.comparison.csv_files import write_tables
from rlkit.comparison.forest import forests
from rlkit.comparison.latex import write_latex
from rlkit.comparison.page import write_page
from rlkit.comparison.runs import read_runs
from rlkit.comparison.seeds import t_quantile
from rlkit.errors import ConfigError, RlkitError
from rlkit.sweeps.sweep_folder import SweepFolder, SweepRun, Trial, Tuning

FLIPS = ({"kind": "group_flip", "prob": 0.25},)


def pair_up(folder: Path, finals: dict[str, Sequence[float]], **more: Any) -> list[Path]:
    """For each algorithm a run a seed, with these rewards at its end."""
    return [
        write_run(folder / f"{algo}-seed{seed}", algo, seed, level, **more)
        for algo, levels in finals.items()
        for seed, level in enumerate(levels)
    ]


def said(comparison: Comparison, width: int = 200) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(text(comparison))
    return capture.get()


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


# What is read


def test_arms_are_named_after_what_differs_between_them(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "a", "vimpo", algo_settings={"beta": 0.1, "lam": 1.0}),
        write_run(tmp_path / "b", "vimpo", algo_settings={"beta": 0.5, "lam": 1.0}),
        write_run(tmp_path / "c", "grpo", noise=FLIPS),
    ]
    runs = read_runs(paths).runs
    assert [(run.arm, run.condition) for run in runs] == [
        ("vimpo beta=0.1", "none"),
        ("vimpo beta=0.5", "none"),
        ("grpo", "group_flip:0.25"),
    ]


def test_runs_that_differ_in_no_own_setting_are_told_apart_by_the_others(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "a", settings={"batch": {"prompts_per_step": 4}}),
        write_run(tmp_path / "b", settings={"batch": {"prompts_per_step": 8}}),
    ]
    assert [run.arm for run in read_runs(paths).runs] == [
        "grpo batch.prompts_per_step=4",
        "grpo batch.prompts_per_step=8",
    ]


def test_rewards_that_differ_are_named_with_those_options_alone_that_do(tmp_path: Path) -> None:
    math = {"kind": "math", "weight": 1.0, "answer_in": "any"}
    length = {"kind": "length", "limit": 100, "low": 0}
    mine = {"kind": "function", "weight": 1.0, "path": "/a/mine.py", "name": "close_enough"}
    rewards = [
        [math],
        [math, {**length, "weight": 0.2}],
        [math, {**length, "weight": 0.5}],
        [{**math, "answer_in": "boxed"}],
        [mine],
    ]
    paths = [write_run(tmp_path / f"{i}", settings={"reward": reward}) for i, reward in enumerate(rewards)]
    assert [run.arm for run in read_runs(paths).runs] == [
        "grpo reward=math:answer_in=any",
        "grpo reward=math:answer_in=any+length:weight=0.2",
        "grpo reward=math:answer_in=any+length:weight=0.5",
        "grpo reward=math:answer_in=boxed",
        "grpo reward=close_enough",
    ]
    assert [run.arm for run in read_runs(paths[:2]).runs] == ["grpo reward=math", "grpo reward=math+length"]


def test_the_same_folder_twice_is_one_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    assert len(read_runs([run, run]).runs) == 1


def test_two_runs_of_one_arm_and_seed_are_refused(tmp_path: Path) -> None:
    done = run_command(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    assert done.exit_code == 2
    assert "both grpo, none, seed 0" in done.output


def test_seconds_and_tokens_are_sums_over_the_steps(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "a", steps=12)]).runs
    assert run.at(run.clock, 12) == 6.0
    assert run.at(run.tokens, 5) == 500.0
    assert run.at(run.clock, 0) == 0.0
    assert run.at(run.clock, math.inf) == math.inf


def test_lines_of_one_step_are_merged_and_rewritten_values_win(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "eval/heldout/mean@1": 0.5}\n{"step": 0, "eval/heldout/mean@1": 0.25}\n')
    curve = read_runs([run]).runs[0].curves["eval/heldout/mean@1"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([0, 2], [0.25, 0.5])


def test_a_status_that_does_not_come_up_in_a_step_is_0_there(tmp_path: Path) -> None:
    def metrics(step: int) -> Metrics:
        return {"samples/no_value": 0.0, **({"samples/timeout": 3.0} if step == 2 else {})}

    run = write_run(tmp_path / "a", steps=3, metrics=metrics)
    assert read_runs([run]).runs[0].curves["samples/timeout"].values.tolist() == [0, 3, 0]


def test_a_sweep_is_read_by_its_plan(tmp_path: Path) -> None:
    planned = [SweepRun(name=f"{arm}-{seed}", arm=arm, condition="c", seed=seed) for arm in "ab" for seed in (0, 1)]
    SweepFolder(tmp_path, planned).write_plan()
    for run in planned[:3]:
        write_run(tmp_path / "runs" / run.name, seed=run.seed)
    (tmp_path / "runs" / "a-1" / "metrics.jsonl").write_text("")
    compared = compare([tmp_path])
    assert [(run.arm, run.condition, run.seed) for run in compared.runs] == [("a", "c", 0), ("b", "c", 0)]
    (finding,) = [each for each in compared.fairness.findings if each.title == "Runs are missing"]
    assert finding.detail == "b, c, seed 1; a, c, seed 1"


def test_arms_of_two_sweeps_carry_the_sweeps_names(tmp_path: Path) -> None:
    for name in ("before", "after"):
        SweepFolder(tmp_path / name, [SweepRun(name="x", arm="grpo", condition="none", seed=0)])
        write_run(tmp_path / name / "runs" / "x")
        SweepFolder(tmp_path / name, [SweepRun(name="x", arm="grpo", condition="none", seed=0)]).write_plan()
    assert compare([tmp_path / "before", tmp_path / "after"]).arms == ["grpo (before)", "grpo (after)"]


# What is computed


def test_numbers_are_those_of_the_curves(tmp_path: Path) -> None:
    a, b = (0.5, 0.7, 0.9), (0.4, 0.5, 0.75)
    compared = compare(pair_up(tmp_path, {"vimpo": a, "grpo": b}))
    first, second = compared.of("none", "reward/clean")
    # The last two of twenty steps: 0.2 + (level - 0.2) * 0.975 on average.
    finals = [0.2 + (level - 0.2) * 0.975 for level in a]
    assert [each.final for each in first.seeds] == pytest.approx(finals)
    assert first.final.value == pytest.approx(sum(finals) / 3)
    assert first.auc.value == pytest.approx(0.2 + (sum(a) / 3 - 0.2) * 10.5 / 20)
    (pair,) = [pair for pair in compared.pairs if (pair.metric, pair.statistic) == ("reward/clean", "final")]
    d = [0.975 * (x - y) for x, y in zip(a, b, strict=True)]
    mean = sum(d) / 3
    half = t_quantile(0.95, 2) * math.sqrt(sum((x - mean) ** 2 for x in d) / 2 / 3)
    assert (pair.difference.mean, pair.difference.low) == pytest.approx((mean, mean - half))
    assert pair.difference.above == 3
    # From 0.2 + 0.3 / 20, where the lower arm starts, nine tenths of the way to the better arm's end.
    start = 0.2 + (sum(b) / 3 - 0.2) / 20
    assert first.threshold == pytest.approx(start + 0.9 * (first.final.value - start))
    assert second.threshold == first.threshold


def test_steps_seconds_and_tokens_to_a_threshold_are_medians(tmp_path: Path) -> None:
    compared = compare(pair_up(tmp_path, {"vimpo": (0.6, 0.8, 1.0), "grpo": (0.45, 0.45, 0.8)}), threshold=0.5)
    first, second = (each.to_threshold for each in compared.of("none", "reward/clean"))
    assert first is not None
    assert second is not None
    # 0.2 + 0.6 * step / 20 is 0.5 at step 10, the median of 15, 10 and 8.
    assert (first.steps, first.seconds, first.tokens, first.reached) == (10, 5.0, 1000.0, 3)
    assert (second.steps, second.reached, second.seeds) == (math.inf, 1, 3)
    assert "not reached" in said(compared)
    assert "1 of 3" in said(compared)


def test_it_says_who_is_ahead_and_where_nothing_is_shown(tmp_path: Path) -> None:
    levels = [0.6 + 0.02 * seed for seed in range(8)]
    ahead = [level + 0.05 + 0.002 * (seed % 3) for seed, level in enumerate(levels)]
    noisy = [level + 0.05 * (-1) ** seed + 0.004 for seed, level in enumerate(levels)]
    shown = said(compare(pair_up(tmp_path, {"vimpo": ahead, "grpo": levels, "ppo": noisy})))
    line = next(line for line in shown.splitlines() if line.startswith("vimpo - grpo  final"))
    assert "vimpo in 8 of 8" in line
    assert "vimpo is ahead (p" in line
    line = next(line for line in shown.splitlines() if line.startswith("grpo - ppo"))
    assert "no difference shown (" in line
    assert "seeds needed)" in line


def test_in_short_comes_first_and_is_plain(tmp_path: Path) -> None:
    levels = [0.6 + 0.02 * seed for seed in range(8)]
    ahead = [level + 0.05 + 0.002 * (seed % 3) for seed, level in enumerate(levels)]
    noisy = [level + 0.05 * (-1) ** seed + 0.004 for seed, level in enumerate(levels)]
    compared = compare(pair_up(tmp_path, {"vimpo": ahead, "grpo": levels, "ppo": noisy}))
    lines = said(compared).splitlines()
    assert lines[1] == "In short: reward/clean, final value"
    vimpo, _, ppo = (pair for pair in compared.pairs if (pair.metric, pair.statistic) == ("reward/clean", "final"))
    d = vimpo.difference
    assert d.low is not None
    assert d.high is not None
    holds = f"vimpo is ahead of grpo by {d.mean:.3f} ({d.low:.3f} to {d.high:.3f}), and that holds among all 3 pairs."
    assert lines[2] == f"- {holds}"
    assert re.fullmatch(r"- .* ppo .*; but among 3 pairs one like this comes up by chance\.|- Between .*", lines[3])
    assert re.fullmatch(
        r"- Between grpo and ppo no difference is shown: grpo - ppo may be anything from -0\.\d{3} to \+0\.\d{3}\. "
        r"One as large as seen here would take (about \d+|more than 100) seeds to show\.",
        lines[4],
    )
    assert ppo.difference.low is not None
    assert f"from {ppo.difference.low:.3f} to" in lines[4]
    assert not lines[5]


def test_in_short_says_where_another_metric_says_otherwise(tmp_path: Path) -> None:
    paths = []
    for seed in range(6):
        level, shift = 0.6 + 0.02 * seed, 0.05 * (-1) ** seed
        for algo, clean, held_out in (("vimpo", level + shift, level + 0.1 + 0.001 * seed), ("grpo", level, level)):

            def at(step: int, clean: float = clean, held_out: float = held_out) -> dict[str, float]:
                return {"reward/clean": clean, "reward/mean": clean, "eval/heldout/mean@1": held_out}

            paths.append(write_run(tmp_path / f"{algo}-seed{seed}", algo, seed, metrics=at))
    lines = said(compare(paths)).splitlines()
    assert lines[2].startswith("- Between vimpo and grpo no difference is shown")
    assert re.match(r"- But in eval/heldout/mean@1 vimpo is ahead of grpo by 0\.10", lines[3])


def test_in_short_says_what_is_not_fair(tmp_path: Path) -> None:
    paths = pair_up(tmp_path, {"vimpo": (0.5, 0.6, 0.7), "grpo": (0.5, 0.6)})
    assert "But it is not fair (grpo lacks seeds): see below." in said(compare(paths))


def test_the_forest_plot_is_to_scale(tmp_path: Path) -> None:
    paths = pair_up(tmp_path, {"vimpo": (0.5, 0.62, 0.7), "grpo": (0.45, 0.6, 0.6), "ppo": (0.8, 0.81, 0.9)})
    compared = compare([*paths, *pair_up(tmp_path / "noisy", {"vimpo": (0.5,), "grpo": (0.6,)}, noise=FLIPS)])
    clean, held_out, noisy = forests(compared)
    assert (clean.metric, held_out.metric, noisy.metric) == ("reward/clean", "eval/heldout/mean@1", "reward/mean")
    assert [(condition, len(lines)) for condition, lines in clean.groups] == [("no noise", 3), ("group_flip:0.25", 1)]
    pairs = [pair for pair in compared.pairs if (pair.metric, pair.statistic) == ("reward/clean", "final")]
    lines = [line for _, group in clean.groups for line in group]
    unit = (lines[0].at - clean.zero) / pairs[0].difference.mean
    for line, pair in zip(lines, pairs, strict=True):
        d = pair.difference
        assert (line.a, line.b, line.shown) == (pair.a, pair.b, d.shown)
        assert line.at == pytest.approx(clean.zero + unit * d.mean, abs=0.01)
        if d.low is None or d.high is None:
            assert (line.low, line.width) == (None, 0)
        else:
            assert line.low == pytest.approx(clean.zero + unit * d.low, abs=0.01)
            assert line.width == pytest.approx(unit * (d.high - d.low), abs=0.01)
            assert 0 < line.low < line.low + line.width < 100


def test_the_page_s_differences_are_those_of_the_file(tmp_path: Path) -> None:
    compared = compare(pair_up(tmp_path, {"vimpo": (0.5, 0.62, 0.7), "grpo": (0.45, 0.6, 0.6)}))
    page = write_page(compared, tmp_path / "comparison.html").read_text()
    write_tables(compared, tmp_path)
    rows = [row for row in csv.DictReader((tmp_path / "pairs.csv").open()) if row["statistic"] == "final"]
    assert len(rows) == 2
    for row in rows:
        mean, low, high = (float(row[name]) for name in ("difference", "low", "high"))
        numbers = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        assert f'<strong>vimpo - grpo</strong> <span class="muted num">{numbers}</span>' in page


def test_what_holds_alone_may_not_hold_among_all_pairs(tmp_path: Path) -> None:
    base = (0.5, 0.6, 0.7)
    arms = {"a": base, "b": (0.52, 0.61, 0.73), "c": (0.45, 0.66, 0.7), "d": (0.56, 0.6, 0.66)}
    compared = compare(pair_up(tmp_path, arms))
    pairs = [pair for pair in compared.pairs if (pair.metric, pair.statistic) == ("reward/clean", "final")]
    assert len(pairs) == 6
    assert all(pair.holm >= pair.difference.p for pair in pairs)  # type: ignore[operator]
    smallest = min(pairs, key=lambda pair: pair.difference.p or 0)
    assert smallest.holm == pytest.approx(6 * smallest.difference.p)  # type: ignore[operator]


def test_pairs_rest_on_the_seeds_that_both_have(tmp_path: Path) -> None:
    paths = pair_up(tmp_path, {"vimpo": (0.5, 0.6, 0.7), "grpo": (0.5, 0.6)})
    (pair,) = [p for p in compare(paths).pairs if (p.metric, p.statistic) == ("reward/clean", "final")]
    assert pair.seeds == [0, 1]


def test_noisy_reward_is_compared_only_where_there_is_noise(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", noise=FLIPS)]
    compared = compare(paths)
    assert compared.compared == {
        "none": ["reward/clean", "eval/heldout/mean@1"],
        "group_flip:0.25": ["reward/clean", "eval/heldout/mean@1", "reward/mean"],
    }


def test_a_metric_can_be_asked_for(tmp_path: Path) -> None:
    compared = compare(pair_up(tmp_path, {"vimpo": (0.5, 0.6), "grpo": (0.5, 0.6)}), metrics=["policy/kl"])
    assert compared.metrics == ["policy/kl"]
    # Whether more of it is better nobody knows: nobody is ahead, and there is nothing to reach.
    assert compared.of("none", "policy/kl")[0].threshold is None


def test_long_curves_are_drawn_through_means_of_stretches(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=1000, metrics=lambda step: {"reward/clean": float(step)})
    curve = compare([run]).of("none", "reward/clean")[0].curve
    assert len(curve.steps) == 200
    assert curve.mean.tolist() == pytest.approx([5 * at + 3 for at in range(200)])
    assert curve.steps.tolist() == pytest.approx(curve.mean.tolist())


# What is not whole


def test_runs_without_a_common_metric_are_refused_with_what_each_has(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", "vimpo", metrics=lambda step: {"vimpo/residual": 1.0, "time/step_s": 1.0})
    b = write_run(tmp_path / "b", "grpo", metrics=lambda step: {"reward/clean": 0.5, "time/step_s": 1.0})
    done = run_command(a, b)
    assert done.exit_code == 2
    assert "no metric in common" in done.output
    assert "vimpo: time/step_s, vimpo/residual" in done.output
    assert "grpo: reward/clean, time/step_s" in done.output


def test_an_unknown_metric_is_refused_with_the_nearest(tmp_path: Path) -> None:
    done = run_command(write_run(tmp_path / "a"), "--metric", "reward/claen")
    assert done.exit_code == 2
    assert "did you mean 'reward/clean'" in done.output


def test_a_half_written_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "reward/cle')
    compared = compare([run])
    assert compared.runs[0].last == 5
    assert "the last line of metrics.jsonl is half written" in said(compared)


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=5)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:2], lines[2][:20], *lines[3:]]) + "\n")
    with pytest.raises(RlkitError, match=r"metrics\.jsonl, line 3 is not a JSON object"):
        compare([run])


def test_a_run_still_going_counts_in_no_number_and_is_said(tmp_path: Path) -> None:
    paths = pair_up(tmp_path, {"vimpo": (0.5, 0.6, 0.7), "grpo": (0.5, 0.6)})
    paths.append(write_run(tmp_path / "grpo-going", "grpo", 2, 0.9, done=7))
    compared = compare(paths)
    assert [run.name for run in compared.left_out] == ["grpo-going"]
    assert [each.run.seed for each in compared.of("none", "reward/clean")[1].seeds] == [0, 1]
    (finding,) = [each for each in compared.fairness.findings if each.title == "A run has not ended"]
    assert finding.level == "unfair"
    assert "grpo-going has done 7 of 20 steps" in finding.detail


def test_an_arm_that_is_going_is_compared_as_far_as_it_has_come(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", "vimpo", level=0.9), write_run(tmp_path / "b", "grpo", level=0.5, done=10)]
    compared = compare(paths)
    assert compared.horizon == {"none": 10}
    assert compared.of("none", "reward/clean")[0].final.value == pytest.approx(0.2 + 0.7 * 0.5)
    assert not compared.left_out
    assert any("same number of steps" in each.title for each in compared.fairness.findings)


def test_a_sweep_that_has_logged_nothing_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", done=0)
    with pytest.raises(ConfigError, match="nothing is logged yet: of grpo, none, seed 0"):
        compare([run])


def test_one_seed_has_no_interval_and_it_says_so(tmp_path: Path) -> None:
    compared = compare(pair_up(tmp_path, {"vimpo": (0.7,), "grpo": (0.5,)}))
    shown = said(compared)
    assert all(each.final.low is None for each in compared.results)
    assert "[" not in shown
    assert "One seed only" in shown
    assert "one common seed: nothing is shown" in shown
    assert "- vimpo - grpo is +0.195 in the one seed that both have, which shows nothing." in shown
    assert "ahead (" not in shown


def test_nan_metrics_are_left_out_and_said(tmp_path: Path) -> None:
    def broken(step: int) -> Metrics:
        return {**rising(0.8)(step), "policy/loss": math.nan, "reward/clean": None if step > 15 else 0.5}

    run = write_run(tmp_path / "a", metrics=broken)
    compared = compare([run, write_run(tmp_path / "b", "vimpo")])
    assert compared.of("none", "reward/clean")[0].final.value == 0.5
    left_out = "a: left out, since it is no number: policy/loss (20 of 20 values), reward/clean (5 of 20 values)"
    assert left_out in said(compared)
    assert write(compared, tmp_path / "out")


def test_a_metric_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", metrics=lambda step: {"reward/clean": "high"})  # type: ignore[dict-item]
    with pytest.raises(RlkitError, match="a metric that is not a number"):
        compare([run])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "neither a run's folder"),
        (lambda path: None, "there is no folder"),
        (lambda path: write_run(path / "inside"), "there are runs in it"),
    ],
)
def test_folders_that_are_no_run_are_refused(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "x")
    done = run_command(tmp_path / "x")
    assert done.exit_code == 2
    assert message in done.output


# What is written


def sweep_with_samples(folder: Path) -> Path:
    runs = []
    for algo in ("vimpo", "grpo"):
        for seed in (0, 1, 2):
            runs.append(SweepRun(name=f"{algo}-{seed}", arm=algo, condition="group_flip:0.25", seed=seed))
            run = write_run(folder / "runs" / runs[-1].name, algo, seed, 0.6 + 0.1 * seed, noise=FLIPS)
            for step in (1, 20):
                nasty = f"<img src=x onerror=alert(1)>\x1b[31mred\x1b[0m</script><b>{algo}</b>"
                write_rollout(run, step, ["2+2=", "<h1>1+3=</h1>"], [nasty, "4"])
    trials = [Trial(settings={"optimizer.lr": lr}, scores={"9": lr * 1000}) for lr in (1e-4, 2e-4, 4e-4)]
    place = SweepFolder(folder, runs)
    place.write_plan()
    place.write_tuning(
        [
            Tuning(
                arm=algo,
                condition="group_flip:0.25",
                metric="reward/clean",
                seeds=[9],
                trials=trials,
                chosen={"optimizer.lr": 4e-4},
            )
            for algo in ("vimpo", "grpo")
        ]
    )
    return folder


def test_command_prints_tables_and_writes_files_beside_the_sweep(tmp_path: Path) -> None:
    sweep = sweep_with_samples(tmp_path / "sweep")
    done = run_command(sweep)
    assert done.exit_code == 0, done.output
    assert "vimpo - grpo" in done.output
    names = [f"comparison.{ending}" for ending in ("html", "png", "pdf", "svg")]
    names += ["arms.csv", "pairs.csv", "seeds.csv", "arms.tex", "pairs.tex"]
    assert done.output.splitlines()[-9:] == [str(sweep / "comparison" / name) for name in names]
    assert sorted(each.name for each in (sweep / "comparison").iterdir()) == sorted(names)


def test_command_writes_where_it_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    assert run_command(run, "--out", tmp_path / "there").exit_code == 0
    assert (tmp_path / "there" / "comparison.html").is_file()
    (tmp_path / "file").write_text("")
    done = run_command(run, "--out", tmp_path / "file" / "under")
    assert done.exit_code == 2
    assert "Choose another folder" in done.output


def test_two_calls_write_the_same_files(tmp_path: Path) -> None:
    sweep = sweep_with_samples(tmp_path / "sweep")
    first, second = (write(compare([sweep]), tmp_path / name) for name in ("one", "two"))
    assert len(first) == 9
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_tables_hold_every_metric_and_every_digit(tmp_path: Path) -> None:
    paths = pair_up(tmp_path, {"vimpo": (0.5, 0.61), "grpo": (0.45, 0.6)})
    compared = compare(paths, threshold=0.55)
    write(compared, tmp_path / "out")
    arms, pairs, seeds = (
        list(csv.DictReader((tmp_path / "out" / f"{name}.csv").open())) for name in ("arms", "pairs", "seeds")
    )
    assert {row["metric"] for row in arms} >= {"reward/clean", "policy/kl", "time/step_s"}
    row = next(row for row in arms if (row["metric"], row["arm"]) == ("reward/clean", "vimpo"))
    assert float(row["final"]) == compared.of("none", "reward/clean")[0].final.value
    assert (row["reached"], row["steps_to_threshold"]) == ("1", "inf")
    assert [row["a_above"] for row in pairs if row["metric"] == "reward/clean"] == ["2", "2"]
    assert len([row for row in seeds if row["metric"] == "reward/clean"]) == 4


def test_tables_for_latex_hold_what_the_page_shows(tmp_path: Path) -> None:
    compared = compare(pair_up(tmp_path, {"vimpo_100%": (0.5, 0.61, 0.7), "grpo": (0.45, 0.6, 0.6)}))
    arms, pairs = (file.read_text().splitlines() for file in write_latex(compared, tmp_path))
    for lines in (arms, pairs):
        assert lines[0].startswith(r"\begin{tabular}{")
        assert (lines[1], *lines[-2:]) == (r"\toprule", r"\bottomrule", r"\end{tabular}")
        assert all(line.count(" & ") == 4 for line in lines if line.endswith(r" \\") and "multicolumn" not in line)
    (first, second, *_) = [line for line in arms if line.startswith(("vimpo", "grpo"))]
    final = compared.of("none", "reward/clean")[0].final
    assert first.startswith(rf"vimpo\_100\% & 3 & {final.value:.3f} [{final.low:.3f}, {final.high:.3f}] & ")
    assert second.startswith("grpo & 3 & ")
    assert any(line.startswith(r"vimpo\_100\% - grpo & AUC & +0.") for line in pairs)
    # Reward and pass rate, not what is only described.
    assert sum("multicolumn" in line for line in arms) == 2


def test_the_x_axis_can_be_steps_tokens_or_time(tmp_path: Path, browser: Browser) -> None:
    def slow(step: int) -> Metrics:
        return rising(0.8)(step) | {"time/step_s": 2.0}

    paths = [write_run(tmp_path / f"a{seed}", "vimpo", seed, metrics=slow) for seed in (0, 1)]
    paths += [write_run(tmp_path / f"b{seed}", "grpo", seed) for seed in (0, 1)]
    with browser.open(write_page(compare(paths), tmp_path / "page.html")) as page:

        def ends(axis: str) -> list[str]:
            at = ["steps", "tokens", "time"].index(axis)
            page.evaluate(f"document.querySelectorAll('#axis button')[{at}].click()")
            page.evaluate("document.querySelector('.plot').focus()")
            page.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft")
            said: list[str] = page.evaluate("document.querySelector('.readout').innerText").splitlines()
            page.evaluate("document.querySelector('.plot').blur()")
            return said

        # 20 steps: of vimpo 2 s and 400 tokens each, of grpo half a second and 100 tokens.
        assert ends("steps") == ["step 20", "vimpo 0.8 (0.8 to 0.8)", "grpo 0.8 (0.8 to 0.8)"]
        assert ends("tokens") == ["response tokens 8,000", "vimpo 0.8 (0.8 to 0.8)"]
        assert ends("time") == ["seconds of training 40", "vimpo 0.8 (0.8 to 0.8)"]
        assert page.complaints == []


def test_without_a_clock_there_is_no_choice_of_axis(tmp_path: Path) -> None:
    compared = compare([write_run(tmp_path / "a", metrics=lambda step: {"reward/clean": 0.5})])
    assert 'id="axis"' not in write_page(compared, tmp_path / "page.html").read_text()


def test_page_shows_responses_as_text(tmp_path: Path) -> None:
    sweep = sweep_with_samples(tmp_path / "sweep")
    write(compare([sweep]), tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;␛[31mred" in page
    assert "\x1b" not in page
    assert "&lt;h1&gt;1+3=" in page
    assert "the loss saw 0" in page
    assert "chosen at the end of what was tried" in page


def test_page_opens_in_a_browser_and_shows_what_was_compared(tmp_path: Path, browser: Browser) -> None:
    sweep = sweep_with_samples(tmp_path / "sweep")
    (page_file, *_) = write(compare([sweep]), tmp_path / "out")
    check_page(browser, page_file)
    with browser.open(page_file) as page:
        titles = page.evaluate("[...document.querySelectorAll('h2')].map(each => each.textContent)")
        assert titles[:3] == ["Who is ahead?", "group_flip:0.25, steps up to 20", "Is it fair?"]
        page.evaluate("document.querySelector('.plot').scrollIntoView()")
        box = page.evaluate(
            "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('.plot').getBoundingClientRect())"
        )
        page.mouse_to(*box)
        readout = page.evaluate("document.querySelector('.readout').textContent")
        assert "vimpo" in readout
        assert "grpo" in readout
        assert page.count("b") == page.count(".readout b"), "a response's markup is part of the page"


def test_a_pages_data_are_whole_json(tmp_path: Path) -> None:
    write(compare([write_run(tmp_path / "a", algo="</script>")]), tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    parts = page.split('<script type="application/json">')[1:]
    charts = [json.loads(part.partition("</script>")[0]) for part in parts]
    assert {series["name"] for chart in charts for series in chart["series"]} == {"</script>"}


def test_control_codes_in_names_and_settings_are_shown_as_text(tmp_path: Path) -> None:
    paths = pair_up(tmp_path, {"vimpo": (0.6, 0.8)}, settings={"data": {"system": "\x1b[2J<b>"}})
    shown = said(compare([*paths, *pair_up(tmp_path, {"grpo\x1b[31m": (0.5, 0.6)})]))
    assert "\x1b" not in shown
    assert "\u241b[2J<b>" in shown
    assert "grpo\u241b[31m" in shown


@pytest.mark.parametrize("threshold", ["nan", "inf"])
def test_a_threshold_is_a_number(threshold: str, tmp_path: Path) -> None:
    result = run_command(*pair_up(tmp_path, {"vimpo": (0.6,)}), "--threshold", threshold, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "give a finite number" in result.output


def test_the_same_difference_in_every_seed_is_no_certainty(tmp_path: Path) -> None:
    """As pass rates over a few problems have it."""
    paths = []
    for seed, level in enumerate((0.25, 0.375)):
        for algo, rate in (("vimpo", level + 0.125), ("grpo", level)):
            rates: Metrics = {"eval/x/mean@1": rate}
            paths.append(write_run(tmp_path / f"{algo}{seed}", algo, seed, metrics=lambda _, rates=rates: rates))
    compared = compare(paths, metrics=["eval/x/mean@1"])
    assert "vimpo - grpo  final value  +0.125  vimpo in 2 of 2  the same in every seed" in said(compared)
    write(compared, tmp_path / "out")


def test_an_arm_without_a_clean_reward_is_not_compared_by_another_metric_unseen(tmp_path: Path) -> None:
    good = write_run(tmp_path / "a", "vimpo", metrics=lambda step: {"reward/clean": 0.5, "reward/mean": 0.5})
    bad = write_run(tmp_path / "b", "grpo", metrics=lambda step: {"reward/clean": None, "reward/mean": 0.5})
    done = run_command(good, bad)
    assert done.exit_code == 2
    assert "grpo: no clean reward that is a number, which the others have" in done.output


def test_many_differing_settings_are_left_to_the_runs_names(tmp_path: Path) -> None:
    one = write_run(tmp_path / "first", "vimpo", settings={"batch": {"a": 1, "b": 1, "c": 1, "d": 1}})
    two = write_run(tmp_path / "second", "vimpo", settings={"batch": {"a": 2, "b": 2, "c": 2, "d": 2}})
    assert list(compare([one, two]).arms) == ["first", "second"]


def test_damaged_provenance_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "vimpo")
    (run / "provenance.json").write_text('{"git": ')
    done = run_command(run)
    assert done.exit_code == 1
    assert "provenance.json is damaged" in done.output


@pytest.mark.parametrize(("arms", "pairs"), [(5, 10), (6, 5)])
def test_many_arms_are_each_paired_with_the_first(arms: int, pairs: int, tmp_path: Path) -> None:
    algos = [f"algo{number}" for number in range(arms)]
    found = compare(pair_up(tmp_path, {algo: (0.6, 0.7 + 0.01 * at) for at, algo in enumerate(algos)}))
    family = [pair for pair in found.pairs if (pair.metric, pair.statistic) == ("reward/clean", "final")]
    assert len(family) == pairs
    if arms > 5:
        assert {pair.b for pair in family} == {"algo0"}
        assert {pair.a for pair in family} == {*algos[1:]}


def test_seeds_beyond_what_anybody_runs_are_not_counted(tmp_path: Path) -> None:
    levels = {"vimpo": (0.60, 0.70), "grpo": (0.70, 0.58)}
    assert "no difference shown (more than 100 seeds needed)" in said(compare(pair_up(tmp_path, levels)))


def test_what_was_measured_before_training_alone_is_not_measured(tmp_path: Path) -> None:
    def every(steps: int) -> Callable[[int], Metrics]:
        def at(step: int) -> Metrics:
            row = {k: v for k, v in rising(0.8)(step).items() if not k.startswith("eval/")}
            return row | ({"eval/heldout/mean@1": 0.25 + 0.5 * step / 20} if step in (0, steps) else {})

        return at

    long, short = every(20), every(10)
    runs = [
        write_run(tmp_path / "a", algo="vimpo", steps=20, metrics=long),
        write_run(tmp_path / "b", algo="grpo", steps=10, metrics=short),
    ]
    compared = compare(runs)
    assert compared.horizon == {"none": 10}
    vimpo, grpo = compared.of("none", "eval/heldout/mean@1")
    assert (vimpo.arm, vimpo.final.seeds, len(vimpo.curve.steps)) == ("vimpo", 0, 0)
    assert math.isnan(vimpo.final.value)
    assert grpo.final.value == 0.5
    assert not [pair for pair in compared.pairs if pair.metric.startswith("eval/")]
    assert len(compared.of("none", "reward/clean")) == 2
    printed = said(compared)
    assert re.search(r"vimpo +0 +not measured", printed)
    assert "nothing after step 0" in printed
    files = write(compared, tmp_path / "out")
    assert "not measured" in files[0].read_text()
    # Nor does an evaluation that none has after step 0 say who is ahead.
    others = [write_run(tmp_path / name, algo=name, steps=8, metrics=long) for name in ("ppo", "rloo")]
    assert compare(others).of("none", "eval/heldout/mean@1") == []
    assert said(compare(others))
    assert write(compare(others), tmp_path / "other")


def test_a_comparison_of_other_runs_is_not_overwritten(tmp_path: Path) -> None:
    a, b, c = (write_run(tmp_path / name, algo=name) for name in ("grpo", "ppo", "vimpo"))
    out = tmp_path / "comparison"
    write(compare([a, b]), out)
    before = (out / "arms.csv").read_bytes()
    with pytest.raises(ConfigError, match=r"other runs \(.*/ppo\).*--out"):
        write(compare([a, c]), out)
    assert (out / "arms.csv").read_bytes() == before
    write(compare([a, b]), out)
    write(compare([a, b, c]), out)
    assert (out / "arms.csv").read_bytes() != before


def test_that_an_earlier_comparison_is_written_over_is_said(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, algo=name) for name in ("grpo", "ppo"))
    out = tmp_path / "comparison"
    first, second = (run_command(a, b, "--out", out) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    said = f"written over the earlier comparison of these runs in {out}:\n"
    assert said not in first.output
    assert second.output == first.output.replace(f"{out}/comparison.html", f"{said}{out}/comparison.html")
    assert {file.name for file in out.iterdir()} == {*FILES}


def test_files_that_no_comparison_has_written_are_left_alone(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, algo=name) for name in ("grpo", "ppo"))
    out = tmp_path / "mine"
    out.mkdir()
    (out / "arms.csv").write_text("left,right\n")
    done = run_command(a, b, "--out", out)
    assert done.exit_code == 2
    assert f"{out} holds arms.csv, which no comparison of rlkit's has written there" in done.output
    assert [file.read_text() for file in out.iterdir()] == ["left,right\n"]
    (out / "arms.csv").rename(out / "notes.txt")
    assert run_command(a, b, "--out", out).exit_code == 0
    assert (out / "notes.txt").read_text() == "left,right\n"
