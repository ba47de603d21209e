"""What one run's numbers come to, against closed forms and plain loops; and that all who sum up a run agree."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import Metrics, write_run

from rlkit import config as configs
from rlkit import report, sweeps
from rlkit.comparison import compare
from rlkit.records import checkpoints
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import series
from rlkit.records.statistics import (
    area,
    drawing_window,
    final_value,
    first_reaching,
    last_tenth,
    running_mean,
    smoothed,
    smoothing_window,
    stretches,
    tenth,
    tenths,
)
from rlkit.report import curve
from rlkit.report.page import _facts
from rlkit.sweeps.jobs import Job


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng()


def naive_final(points: dict[int, float], last: int) -> float:
    inside = [value for step, value in points.items() if last - max(1, round(last / 10)) < step <= last]
    before = [value for step, value in points.items() if step <= last]
    return sum(inside) / len(inside) if inside else before[-1] if before else math.nan


def test_final_value_is_the_mean_of_the_last_tenth(random: np.random.Generator) -> None:
    for last in (1, 4, 9, 10, 15, 25, 37, 80, 85, 200):
        values = random.normal(size=last)
        points = dict(enumerate(values.tolist(), 1))
        assert math.isclose(final_value(np.arange(1.0, last + 1), values, last), naive_final(points, last))


def test_a_tenth_is_rounded_and_never_nothing() -> None:
    assert [tenth(last) for last in (0, 1, 4, 5, 14, 15, 16, 25, 85, 95)] == [1, 1, 1, 1, 1, 2, 2, 2, 8, 10]


def test_final_value_without_a_measurement_in_the_last_tenth_is_the_last_one_before() -> None:
    assert final_value([0, 20, 40], [0.1, 0.2, 0.3], 60) == 0.3
    assert final_value([0, 20, 40], [0.1, 0.2, 0.3], 30) == 0.2
    assert math.isnan(final_value([50], [1.0], 30))
    assert math.isnan(final_value([], [], 30))
    assert [0, 20, 40][last_tenth([0, 20, 40], 60)] == [40]


def test_area_is_the_mean_height(random: np.random.Generator) -> None:
    # Of a straight line, over steps at any distances: the height in its middle.
    steps = np.unique(random.integers(0, 100, 12)).astype(float)
    slope, start = random.normal(size=2)
    assert math.isclose(
        area(steps, start + slope * steps, 100), start + slope * (steps[0] + steps[-1]) / 2, abs_tol=1e-12
    )
    values = random.normal(size=len(steps))
    total = 0.0
    for i in range(len(steps) - 1):
        total += (values[i] + values[i + 1]) / 2 * (steps[i + 1] - steps[i])
    assert math.isclose(area(steps, values, 100), total / (steps[-1] - steps[0]), abs_tol=1e-12)
    # What lies after the last step that counts does not count.
    assert math.isclose(
        area(np.append(steps, 200.0), np.append(values, 99.0), 100), total / (steps[-1] - steps[0]), abs_tol=1e-12
    )
    assert area(np.array([3.0]), np.array([0.7]), 5) == 0.7


def test_first_reaching_is_the_first_step_whose_trailing_mean_is_there(random: np.random.Generator) -> None:
    for points in (1, 5, 19, 40, 67, 300):
        steps = np.arange(1.0, points + 1)
        values = np.sort(random.normal(size=points)) + 0.3 * random.normal(size=points)
        threshold = float(random.choice(values))
        window = max(1, points // 20)
        expected = math.inf
        for i in range(window - 1, points):
            if sum(values[i - window + 1 : i + 1]) / window >= threshold - 1e-12:
                expected = steps[i]
                break
        assert smoothing_window(points) == window
        assert first_reaching(steps, values, threshold - 1e-12, points) == expected


def test_a_threshold_that_is_met_exactly_is_reached() -> None:
    values = np.array([0.1, 0.3, 0.7, 0.75, 0.75])
    assert first_reaching(np.arange(5.0), values, 0.75, 5) == 3
    assert first_reaching(np.arange(5.0), values, 0.76, 5) == math.inf


def test_smoothing_looks_at_nothing_later(random: np.random.Generator) -> None:
    values = random.normal(size=30)
    before = smoothed(values, 4)
    values[20:] = 1e3
    assert np.allclose(smoothed(values, 4)[:17], before[:17])


@pytest.mark.parametrize("every", [1, 3])
def test_stretches_are_the_means_of_windows_of_a_tenth(every: int, random: np.random.Generator) -> None:
    for last in (1, 7, 25, 80, 101):
        steps = [step for step in range(1, last + 1) if random.random() < 1 / every]
        points = {step: float(random.normal()) for step in steps}
        width = max(1, round(last / 10))
        begins = sorted({step for step in steps if step + width <= last} | {last - width + 1})
        expected = {}
        for begin in begins:
            inside = [points[step] for step in range(begin, begin + width) if step in points]
            if inside:
                expected[begin] = sum(inside) / len(inside)
        found = dict(zip(*map(np.ndarray.tolist, stretches(steps, list(points.values()), last)), strict=True))
        assert found.keys() == expected.keys()
        assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-12)


def test_stretches_that_hold_the_same_are_the_same() -> None:
    values = [0.1, 0.7, 1e9, *[0.3] * 37]
    _, means = stretches(range(1, 41), values, 40)
    assert len({*means[3:].tolist()}) == 1


def test_what_was_measured_before_training_says_nothing_of_its_end() -> None:
    assert math.isnan(final_value([0, 20], [0.1, 0.2], 10))
    assert final_value([0, 20], [0.1, 0.2], 20) == 0.2
    assert final_value([0, 1], [0.1, 0.2], 10) == 0.2
    assert final_value([0], [0.1], 0) == 0.1
    assert [0, 20][last_tenth([0, 20], 19)] == []


def test_tenths_go_through_the_run_and_end_with_its_final_value(random: np.random.Generator) -> None:
    for last in (1, 3, 9, 10, 12, 15, 80, 85, 199):
        steps, values = np.arange(1, last + 1), random.normal(size=last)
        parts = tenths(steps, values, last)
        assert len(parts) == min(10, last)
        assert parts[-1] == final_value(steps, values, last)
        assert tenths(steps, steps, last) == sorted(tenths(steps, steps, last))
        # Nine even parts of what comes before: together they are all of it.
        before = last - tenth(last)
        sizes = np.diff([before * part // max(1, len(parts) - 1) for part in range(len(parts))])
        assert np.dot(sizes, parts[:-1]) == pytest.approx(values[:before].sum(), abs=1e-9)
    assert tenths([], [], 0) == []


def test_the_running_mean_is_the_mean_of_what_lies_around(random: np.random.Generator) -> None:
    values = random.normal(size=23)
    expected = [values[max(0, at - 2) : at + 3].mean() for at in range(23)]
    assert running_mean(values, 5) == pytest.approx(expected, abs=1e-12)
    assert running_mean([1.0, 2.0], 1) == [1.0, 2.0]
    assert running_mean([], 3) == []
    assert [drawing_window(points) for points in (1, 31, 32, 80, 1000)] == [1, 1, 3, 5, 63]


# All who sum up a run agree


def some_reward(step: int) -> float:
    return math.sin(step) + step / 50


def every_step(step: int) -> Metrics:
    return {"reward/clean": some_reward(step), "time/step_s": 1.0}


def now_and_then(step: int) -> Metrics:
    return {"time/step_s": 1.0, **({"reward/clean": some_reward(step)} if step % 6 == 0 else {})}


def not_at_the_end(step: int) -> Metrics:
    return {"reward/clean": some_reward(step) if step < 12 else None, "time/step_s": 1.0}


def job(run: Path, steps: int) -> Job:
    checkpoints.path_of(RunFolder(run).checkpoints, steps).mkdir(parents=True)
    config = configs.load("embedded_xs", [f"steps={steps}"])
    return Job(name="a", algo="grpo", config=config, file=run, folder=run, log=run, steps=steps)


@pytest.mark.parametrize("metrics", [every_step, now_and_then, not_at_the_end])
@pytest.mark.parametrize("steps", [13, 15, 25, 44, 45, 85])
def test_tuning_comparison_and_report_give_a_run_one_final_value(
    steps: int, metrics: Callable[[int], Metrics], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", steps=steps, metrics=metrics)
    logged = {step: metrics(step).get("reward/clean") for step in range(1, steps + 1)}
    expected = naive_final({step: value for step, value in logged.items() if value is not None}, steps)
    (result,) = compare([run], metrics=["reward/clean"]).of("none", "reward/clean")
    assert result.seeds[0].final == pytest.approx(expected, abs=1e-12)
    assert sweeps._score(job(run, steps)) == result.seeds[0].final
    rows = RunFolder(run).read_metrics()
    facts = {what: said for what, said, _ in _facts(rows)}
    assert facts["clean reward"] == report.page.number(expected)
    said = curve.text([{**row, "reward/mean": row.get("reward/clean", math.nan)} for row in rows])
    assert f"{expected:.2f}".replace("0.", ".", 1) == said.split("  (steps")[0].split()[-1]


def test_a_warning_looks_at_the_end_that_the_comparison_looks_at(tmp_path: Path) -> None:
    """Of 85 steps a tenth is 8: with 9 of them, or by the number of measurements, this mean would not be above."""
    values = [0.0] * 77 + [0.51] * 8
    rows = [{"step": float(step), "groups/equal_rewards": value} for step, value in enumerate(values, 1)]
    (warning,) = report.warnings_of(rows)
    assert "51 % of the groups" in warning.seen
    assert "steps 78 to 85" in warning.seen
    run = write_run(tmp_path / "run", steps=85)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (result,) = compare([run], metrics=["groups/equal_rewards"]).of("none", "groups/equal_rewards")
    assert result.seeds[0].final == final_value(*series(rows, "groups/equal_rewards"), 85) == pytest.approx(0.51)


def test_a_run_that_never_had_a_clean_reward_has_no_score(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=5, metrics=lambda step: {"reward/clean": None, "reward/mean": 1.0})
    assert sweeps._score(job(run, 5)) is None
