"""Whatever differs between the arms of a comparison besides the algorithm is named, with its values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_runs import PROVENANCE, write_rollout, write_run

from rlkit.comparison import Comparison, compare, text
from rlkit.comparison.fairness import Finding
from rlkit.sweeps.sweep_folder import SweepFolder, SweepRun, Trial, Tuning

ARMS = ("vimpo", "grpo")
SEEDS = (0, 1)


def compared(folder: Path, more: Callable[[str, int], dict[str, Any]] = lambda algo, seed: {}) -> Comparison:
    """Two algorithms with two seeds each, on the same prompts; `more` says how a run differs from the others."""
    paths = []
    for algo in ARMS:
        for seed in SEEDS:
            level = 0.7 + 0.1 * seed + (0.05 if algo == "vimpo" else 0)
            options = {"settings": {"optimizer": {"lr": 1e-4 if algo == "vimpo" else 2e-4}}, **more(algo, seed)}
            paths.append(write_run(folder / f"{algo}-seed{seed}", algo, seed, level, **options))
            for step in (1, 20):
                write_rollout(paths[-1], step, [f"{seed}+{step}=", f"{seed}-{step}="])
    return tuned(folder, paths)


def tuned(folder: Path, paths: list[Path], trials: dict[str, int] | None = None) -> Comparison:
    """The runs as a sweep that tuned each arm's learning rate with as many trials."""
    plan = [
        SweepRun(name=path.name, arm=algo, condition="none", seed=int(path.name[-1]))
        for path in paths
        for algo in ARMS
        if path.name.startswith(algo)
    ]
    sweep = SweepFolder(folder / "sweep", plan)
    sweep.path.mkdir()
    (sweep.path / "runs").symlink_to(folder)
    sweep.write_plan()
    rates = [5e-5, 1e-4, 2e-4, 4e-4]
    sweep.write_tuning(
        [
            Tuning(
                arm=algo,
                condition="none",
                metric="reward/clean",
                seeds=[100],
                trials=[
                    Trial(settings={"optimizer.lr": lr}, scores={"100": 0.5})
                    for lr in rates[: (trials or {}).get(algo, 4)]
                ],
                chosen={"optimizer.lr": 1e-4 if algo == "vimpo" else 2e-4},
            )
            for algo in ARMS
        ]
    )
    return compare([sweep.path])


def unfair(comparison: Comparison) -> list[Finding]:
    return [finding for finding in comparison.fairness.findings if finding.level == "unfair"]


def said(comparison: Comparison) -> str:
    console = Console(width=1000, highlight=False)
    with console.capture() as capture:
        console.print(text(comparison))
    return capture.get()


def test_a_fair_comparison_has_nothing_to_say_and_says_what_it_looked_at(tmp_path: Path) -> None:
    comparison = compared(tmp_path)
    assert not comparison.fairness.findings
    shown = said(comparison)
    assert "Not fair" not in shown
    for what in ("settings", "tuning effort", "code", "library", "prompts at each seed", "steps", "seeds", "machine"):
        assert what in shown.rpartition("The same everywhere:")[2]


@pytest.mark.parametrize(
    ("more", "title", "named"),
    [
        ({"settings": {"batch": {"prompts_per_step": 8}}}, "batch.prompts_per_step differs", ("vimpo: 8", "grpo: 4")),
        (
            {"settings": {"data": {"path": "other.jsonl", "split": "train"}}},
            "data.path differs",
            ("vimpo: other.jsonl", "grpo: embedded:arithmetic"),
        ),
        (
            {"settings": {"optimizer": {"lr": 1e-4, "weight_decay": 0.1}}},
            "optimizer.weight_decay differs",
            ("vimpo: 0.1",),
        ),
        (
            {"provenance": {"git": {"commit": "fedcba9876543210", "changed": False}}},
            "made by different code",
            ("fedcba987654", "0123456789ab"),
        ),
        (
            {"provenance": {"versions": {**PROVENANCE["versions"], "torch": "2.14.0"}}},  # type: ignore[dict-item]
            "torch is not the same version",
            ("2.14.0: vimpo-seed0, vimpo-seed1", "2.13.0: grpo-seed0, grpo-seed1"),
        ),
        (
            {"provenance": {"plugins": {"rewards/final_answer": "mine 2.0"}}},
            "rewards/final_answer is not the same version",
            ("mine 2.0", "rlkit-rlvr 0.1.0"),
        ),
        ({"steps": 30}, "same number of steps", ("30 steps: vimpo-seed0", "20 steps: grpo-seed0")),
        ({"done": 12}, "same number of steps", ("12 steps: vimpo-seed0",)),
    ],
)
def test_what_differs_between_the_arms_is_named(
    tmp_path: Path, more: dict[str, Any], title: str, named: tuple[str, ...]
) -> None:
    plain = {"settings": {"optimizer": {"lr": 2e-4, "weight_decay": 0.0}}}
    comparison = compared(tmp_path, lambda algo, seed: more if algo == "vimpo" else plain)
    (finding,) = [each for each in unfair(comparison) if title in each.title]
    for part in named:
        assert part in finding.detail
    assert f"{finding.title}: {finding.detail}" in said(comparison).partition("Not fair")[2]


def test_other_prompts_at_the_same_seed_are_seen(tmp_path: Path) -> None:
    compared(tmp_path)
    write_rollout(tmp_path / "grpo-seed1", 20, ["another prompt"])
    comparison = compare([tmp_path / "sweep"])
    (finding,) = unfair(comparison)
    assert finding.title == "The arms did not see the same prompts"
    assert "seed 1, step 20: vimpo-seed1 and grpo-seed1" in finding.detail


def test_groups_of_another_size_are_no_other_prompts(tmp_path: Path) -> None:
    compared(tmp_path)
    for step in (1, 20):
        prompts = [f"0+{step}=", f"0-{step}="]
        write_rollout(tmp_path / "grpo-seed0", step, [prompts[0], prompts[0], *prompts[1:]])
        write_rollout(tmp_path / "vimpo-seed0", step, [prompts[0], prompts[0], *prompts[1:]])
    assert not unfair(compare([tmp_path / "sweep"]))


def test_missing_seeds_are_named(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"{a}-seed{s}", a, s) for a, s in (("vimpo", 0), ("vimpo", 1), ("grpo", 1))]
    (finding,) = unfair(compare(paths))
    assert (finding.title, finding.detail) == ("grpo lacks seeds", "no noise: 0")


def test_a_run_that_stopped_early_is_named(tmp_path: Path) -> None:
    comparison = compared(tmp_path, lambda algo, seed: {"done": 5} if (algo, seed) == ("grpo", 1) else {})
    lacks, finding = sorted(unfair(comparison), key=lambda each: each.title != "grpo lacks seeds")
    assert (lacks.title, finding.title) == ("grpo lacks seeds", "A run has not ended")
    assert "grpo-seed1 has done 5 of 20 steps" in finding.detail


def test_unequal_tuning_is_named(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"{algo}-seed{seed}", algo, seed) for algo in ARMS for seed in SEEDS]
    comparison = tuned(tmp_path, paths, {"grpo": 2})
    (finding,) = [each for each in unfair(comparison) if "equal effort" in each.title]
    assert "4 trials on 1 seeds: vimpo (no noise)" in finding.detail
    assert "2 trials on 1 seeds: grpo (no noise)" in finding.detail


def test_learning_rates_that_nobody_tuned(tmp_path: Path) -> None:
    same = compare([write_run(tmp_path / "a", "vimpo"), write_run(tmp_path / "b", "grpo")])
    assert not unfair(same)
    assert next(each.title for each in same.fairness.findings) == "The learning rate was tuned for none"
    other = compare([tmp_path / "a", write_run(tmp_path / "c", "grpo", settings={"optimizer": {"lr": 1e-3}})])
    assert "optimizer.lr differs" in [each.title for each in unfair(other)]


def test_a_setting_that_names_the_arms_is_what_is_compared(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / str(lr), settings={"optimizer": {"lr": lr}}) for lr in (1e-4, 2e-4)]
    comparison = compare(paths)
    assert comparison.arms == ["grpo lr=0.0001", "grpo lr=0.0002"]
    assert not unfair(comparison)


@pytest.mark.parametrize(
    ("provenance", "title"),
    [
        ({"git": {"commit": "0123456789abcdef", "changed": True}}, "The code had uncommitted changes"),
        ({"platform": "Darwin", "cores": 10}, "The runs were made on different machines"),
        ({"resumed": [{**PROVENANCE, "after_step": 7}]}, "A run was resumed"),
    ],
)
def test_what_is_to_be_known_is_a_note(tmp_path: Path, provenance: dict[str, Any], title: str) -> None:
    comparison = compared(tmp_path, lambda algo, seed: {"provenance": provenance} if algo == "grpo" else {})
    assert [(each.level, each.title) for each in comparison.fairness.findings] == [("note", title)]


def test_a_run_resumed_with_other_code_is_unfair(tmp_path: Path) -> None:
    again = {**PROVENANCE, "git": {"commit": "fedcba9876543210", "changed": False}, "after_step": 7}
    comparison = compared(tmp_path, lambda algo, seed: {"provenance": {"resumed": [again]}} if algo == "grpo" else {})
    assert [each.title for each in unfair(comparison)] == ["The runs were made by different code"]


def test_names_places_and_trackers_do_not_matter(tmp_path: Path) -> None:
    def more(algo: str, seed: int) -> dict[str, Any]:
        own = {"optimizer": {"lr": 1e-4}, "trackers": [{"kind": "wandb"}], "checkpoint": {"every": 5}, "plugins": ["x"]}
        return {"settings": own} if algo == "vimpo" else {}

    assert not compared(tmp_path, more).fairness.findings


def test_a_run_that_has_not_ended_is_a_seed_that_is_missing(tmp_path: Path) -> None:
    whole = [write_run(tmp_path / f"{algo}{seed}", algo, seed) for algo in ("vimpo", "grpo") for seed in (0, 1)]
    assert "seeds" in compare(whole).fairness.same
    cut = write_run(tmp_path / "cut", "grpo", 2, done=7)
    third = write_run(tmp_path / "third", "vimpo", 2)
    found = compare([*whole, cut, third]).fairness
    assert "seeds" not in found.same
    assert "grpo lacks seeds" in {finding.title for finding in found.findings}


def test_arms_that_replay_another_s_samples(tmp_path: Path) -> None:
    source = write_run(tmp_path / "vimpo", "vimpo")
    replay = {"settings": {"replay": {"run": str(source), "first": 1}}}
    replays = [write_run(tmp_path / algo, algo, **replay) for algo in ("grpo", "ppo")]
    beside, alone = compare([source, *replays]), compare(replays)
    assert [*beside.arms] == ["vimpo", "grpo replayed", "ppo replayed"]
    found = next(each for each in beside.fairness.findings if "samples of another run" in each.title)
    assert found.level == "unfair"
    assert found.detail == "no noise: grpo learnt from those of vimpo; ppo learnt from those of vimpo"
    assert "who sampled" not in beside.fairness.same
    note = next(each for each in alone.fairness.findings if "learnt from stored samples" in each.title)
    assert note.level == "note"
    assert not [
        each for each in (*beside.fairness.findings, *alone.fairness.findings) if each.title.startswith("replay.")
    ]
