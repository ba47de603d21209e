"""A warning of the report that the config names ends the run: all saved, exit code 3, and its numbers said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_run import healthy

from rlkit import config as configs
from rlkit.assembly import run as runs
from rlkit.comparison.fairness import examine
from rlkit.comparison.runs import read_runs
from rlkit.config import RunConfig, load
from rlkit.errors import ConfigError, RlkitError, UnhealthyError
from rlkit.records import checkpoints
from rlkit.records.folder import RunFolder
from rlkit.report import unhealthy
from rlkit.sweeps.jobs import Job, run_all

SMALL = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4", "sampling.max_tokens=2"]

BAD = {
    "kl": {"policy/kl": 0.6},
    "entropy": {"policy/entropy": 1e-4},
    "gap": {"sampler/gap_mean": 0.01},
    "truncation": {"response/truncated": 0.2},
    "verifier": {"samples/no_value": 1.0, "samples/error": 1.0},
    "no_signal": {"groups/equal_rewards": 1.0},
}
"""What is past each check's own limit."""


def judged(*settings: str) -> RunConfig:
    return configs.resolve(
        load("embedded_xs", ["health.patience=3", "steps=80", "algo.kl_coef=0.01", *settings], "grpo")
    )


def rows(changes: dict[int, dict[str, float]]) -> list[dict[str, float]]:
    """20 steps of a run at a middling pass rate, after its first evaluation; some are otherwise."""
    made: list[dict[str, float]] = [{"step": 0, "eval/heldout/mean@1": 0.2}]
    for step, row in enumerate(healthy(80)[:20], 1):
        made.append({**row, "step": step, "reward/pass_rate": 0.5} | changes.get(step, {}))
    return made


@pytest.mark.parametrize("check", BAD)
def test_patience_counts_steps_in_a_row(check: str) -> None:
    config = judged(f"health.{check}=true")
    # Entropy is judged by its last stretch, two steps of these.
    late = dict.fromkeys(range(17 if check == "entropy" else 18, 21), BAD[check])
    found = unhealthy(rows(late), config)
    assert found is not None
    assert found[0] == check
    assert "step" in found[1].seen
    last_fine = {step: late[step] for step in list(late)[:-1]}
    assert unhealthy(rows(last_fine), config) is None
    assert unhealthy(rows(late), judged()) is None, "by itself no warning ends a run"


def test_one_bad_step_ends_nothing_however_bad_it_is() -> None:
    assert unhealthy(rows({19: {"policy/kl": 1e6}}), judged("health.kl=true")) is None


@pytest.mark.parametrize(
    ("check", "limit", "bad"),
    [
        ("kl", 0.7, {"policy/kl": 0.8}),
        ("entropy", 0.1, {"policy/entropy": 0.09}),
        ("gap", 0.02, {"sampler/gap_mean": 0.03}),
        ("truncation", 0.25, {"response/truncated": 0.3}),
        ("verifier", 0.01, {"samples/no_value": 2.0, "samples/error": 2.0}),
        ("no_signal", 0.9, {"groups/equal_rewards": 0.95}),
    ],
)
def test_a_number_is_a_limit_of_ones_own(check: str, limit: float, bad: dict[str, float]) -> None:
    config, steps = judged(f"health.{check}={limit}"), range(15, 21)
    found = unhealthy(rows(dict.fromkeys(steps, bad)), config)
    assert found is not None
    assert found[0] == check
    if check in ("kl", "gap", "truncation", "verifier"):
        assert unhealthy(rows(dict.fromkeys(steps, BAD[check])), config) is None, "past the usual limit alone"


def test_replaced_groups_and_solved_tasks_are_signal_enough() -> None:
    config = judged("health.no_signal=true")
    steps = range(15, 21)
    assert unhealthy(rows({s: BAD["no_signal"] | {"refill/groups": 3.0} for s in steps}), config) is None
    assert unhealthy(rows({s: BAD["no_signal"] | {"refill/groups": 0.0} for s in steps}), config) is not None
    assert unhealthy(rows({s: BAD["no_signal"] | {"reward/pass_rate": 1.0} for s in steps}), config) is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("health.kl=-1", "health.kl"),
        ("health.klo=1", "did you mean"),
        ("health.patience=0", "health.patience"),
        ("batch.samples_per_prompt=1", "batch.samples_per_prompt 1 makes none"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load("embedded_xs", ["health.no_signal=true", setting], "ppo")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["health.kl=1"], "health.kl looks at the KL to the reference, and grpo .* give the reference a weight"),
        (["health.gap=true", "sampling.top_k=5", "correction={}"], "health.gap: with sampling.top_p or sampling.top_k"),
        (
            ["health.gap=true", "schedule=one_ahead", "sampler={kind: vllm_server, urls: [http://h]}"],
            "health.gap: with schedule: one_ahead",
        ),
    ],
)
def test_a_check_of_what_is_not_measured_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configs.resolve(load("embedded_xs", settings, "grpo"))


def test_the_run_is_saved_and_goes_on_with_its_patience_anew(tmp_path: Path, capsys: Any) -> None:
    own = [f"out={tmp_path}", "name=r", "health.truncation=true", "health.patience=2", "steps=6"]
    config = load("embedded_xs", [*SMALL, *own], "grpo")
    with pytest.raises(
        UnhealthyError, match=r"stopped after step 2 of 6 by health.truncation. Truncation: 100 %"
    ) as raised:
        runs.train(config, quiet=True)
    assert raised.value.exit_code == 3
    assert f"rlkit run --resume {tmp_path / 'r'}" in str(raised.value)
    run = RunFolder.open(tmp_path / "r")
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2]
    assert (newest := checkpoints.latest(run.checkpoints)) is not None
    assert newest.name == "step-00000002"
    assert run.report.is_file()
    assert (run.read_stop() or "").startswith("Truncation: 100 % of the responses")

    with pytest.raises(UnhealthyError, match="stopped after step 4 of 6"):
        runs.train(run.read_config(), resume=True, quiet=True)
    assert [row["step"] for row in run.read_metrics()] == list(range(5))
    record = run.read_provenance()
    assert [record["resumed"][0]["stopped"]["after_step"], record["stopped"]["after_step"]] == [2, 4]


def test_a_sweep_leaves_it_and_a_comparison_says_why(tmp_path: Path) -> None:
    folders = {}
    for seed in (0, 1):
        config = load("embedded_xs", [f"out={tmp_path}", f"name=r{seed}", f"seed={seed}", "steps=4"], "grpo")
        folders[seed] = RunFolder.create(tmp_path / f"r{seed}", config)
        for step in range(1, 5 if seed else 3):
            folders[seed].log_metrics(step, {"reward/clean": 0.1 * step, "reward/mean": 0.1 * step})
    folders[0].note_stop(2, "kl", "KL growth: much.")
    read = read_runs([folder.path for folder in folders.values()])
    (found,) = [each for each in examine(read, {"none": 4}).findings if each.title == "A run has not ended"]
    assert found.detail == "r0 has done 2 of 4 steps: a health check stopped it: KL growth: much"

    config = folders[0].read_config()
    job = Job(
        name="r0", algo="grpo", config=config, file=tmp_path / "c", folder=folders[0].path, log=tmp_path / "l", steps=4
    )
    assert run_all([job], 1, lambda _: None, lambda _: None, 0) == 0
    assert job.error is None
    assert not job.log.exists(), "it was not made again"


def test_a_run_without_a_single_update_is_no_success(tmp_path: Path) -> None:
    own = [f"out={tmp_path}", "name=r", "steps=2", "algo.overlong_mask=true"]
    with (
        pytest.warns(UserWarning, match="1 of 1 updates had no sample to learn from"),
        pytest.raises(RlkitError, match=r"has made its 2 steps, but no update: .*rlkit report"),
    ):
        runs.train(load("embedded_xs", [*SMALL, *own], "grpo"), quiet=True)
    assert RunFolder(tmp_path / "r").report.is_file()
