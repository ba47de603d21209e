"""What a sweep may ask for, the arms that come of it, and what is refused before anything starts."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from rlkit import config as configs
from rlkit import ranks, sweeps
from rlkit.cli import main
from rlkit.errors import ConfigError, RlkitError
from rlkit.scoring.noise import noise_label
from rlkit.sweeps import spec as specs
from rlkit.sweeps.jobs import Job, Share, _start, alone, disk_bytes, last_lines, left_s, run_all, shares
from rlkit.sweeps.progress import Display
from rlkit.sweeps.spec import SweepConfig
from rlkit.sweeps.sweep_folder import SweepFolder, SweepRun, Trial, Tuning


def made(**given: Any) -> SweepConfig:
    return specs.load(None, {"algos": "grpo", "base": "embedded_xs", **given})


def labels(spec: SweepConfig) -> list[tuple[str, str]]:
    return [(arm.name, arm.condition) for arm in specs.arms(spec)]


def test_every_algorithm_under_every_noise() -> None:
    spec = made(algos="vimpo, grpo", noise="none,flip:0.25,asymmetric:0.1,0.2,group_flip:0.1+drop:0.1")
    assert labels(spec) == [
        (algo, noise)
        for noise in ("none", "flip:0.25", "asymmetric:0.1,0.2", "group_flip:0.1+drop:0.1")
        for algo in ("vimpo", "grpo")
    ]


def test_grid_zip_and_list_multiply() -> None:
    spec = made(
        grid={"optimizer": {"lr": [1e-4, 2e-4]}},
        zip={"batch.prompts_per_step": [4, 8], "batch.samples_per_prompt": [8, 4]},
        list=[{"algo.clip_low": 0.1}, {"algo.clip_low": 0.3, "algo.clip_high": 0.3}],
    )
    assert len(labels(spec)) == 8
    assert labels(spec)[0] == ("grpo lr=0.0001 clip_low=0.1", "batch.prompts_per_step=4 batch.samples_per_prompt=8")
    assert labels(spec)[-1][0] == "grpo lr=0.0002 clip_low=0.3 clip_high=0.3"
    config = specs.arms(spec)[-1].config(spec, 3, Path("runs"), "x", {})
    assert (config.optimizer.lr, config.batch.prompts_per_step, config.seed) == (2e-4, 8, 3)
    assert config.algo.options["clip_high"] == 0.3


def test_settings_of_one_algorithm_are_no_other_s() -> None:
    spec = made(algos={"vimpo": {"algo": {"beta": 0.1}}, "grpo": None}, set={"steps": 7})
    vimpo, grpo = (arm.config(spec, 0, Path("runs"), "x", {}) for arm in specs.arms(spec))
    assert (vimpo.algo.options["beta"], vimpo.steps, grpo.steps) == (0.1, 7, 7)
    assert "beta" not in grpo.algo.options


def test_the_presets_options_of_the_algorithm_stay() -> None:
    (arm,) = specs.arms(made(algos="vimpo"))
    assert arm.config(made(algos="vimpo"), 0, Path("runs"), "x", {}).algo.options["beta"] == 0.05


def test_names_of_runs_are_one_each() -> None:
    spec = made(algos="vimpo,grpo", noise="none,flip:0.25", grid={"optimizer.lr": [1e-4, 1e-3]})
    names = [specs.run_name(arm, seed) for arm in specs.arms(spec) for seed in range(3)]
    assert len({*names}) == len(names) == 24
    assert specs.run_name(specs.arms(spec)[-1], 2) == "grpo_lr=0.001-flip_0.25-seed2"


def test_plugins_stand_in_names_with_those_options_alone_that_differ() -> None:
    length = {"kind": "length", "limit": 20}
    rewards = ["math", [{"kind": "math"}, length], [{"kind": "math", "weight": 0.5}, length]]
    spec = made(algos="grpo", grid={"reward": rewards, "advantage": [{"kind": "rloo"}, {"kind": "mean"}]})
    arms = specs.arms(spec)
    assert [arm.condition for arm in arms[::2]] == [
        "reward=math",
        "reward=math+length",
        "reward=math:weight=0.5+length",
    ]
    assert [arm.name for arm in arms[:2]] == ["grpo advantage=rloo", "grpo advantage=mean"]
    assert specs.run_name(arms[-2], 0) == "grpo_advantage=rloo-reward=math_weight=0.5+length-seed0"


@pytest.mark.parametrize(("text", "seeds"), [("0-2,7", [0, 1, 2, 7]), ("5", [5]), (" 1 , 3-3", [1, 3])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert made(seeds=text).seeds == seeds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr=1e-4,2e-4", ("optimizer.lr", [1e-4, 2e-4])),
        ("steps=80", ("steps", [80])),
        ("sampling.stop=[a, b],[c]", ("sampling.stop", [["a", "b"], ["c"]])),
        ("algo.value=mean,soft", ("algo.value", ["mean", "soft"])),
        ("algo.dual_clip=null,2", ("algo.dual_clip", [None, 2])),
    ],
)
def test_values_of_the_command_line(text: str, expected: tuple[str, list[Any]]) -> None:
    assert specs.parse_values(text) == expected


def test_the_command_line_stands_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("algos: [grpo]\nbase: embedded_xs\nset: {steps: 5, eval: {problems: 8}}\nseeds: 0-3\n")
    given = {"seeds": "7", **specs.given_settings(["steps=9", "algo.clip_low=0.1,0.3"], ["lr=1,2"], [])}
    spec = specs.load(str(file), {**given, "tune_seeds": "50"})
    assert spec.set == {"steps": 9, "eval.problems": 8}
    assert (spec.seeds, spec.grid, spec.tune) == ([7], {"algo.clip_low": [0.1, 0.3]}, {"optimizer.lr": [1, 2]})


def test_a_base_file_is_taken_as_it_is_now(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(configs.presets()["embedded_xs"])
    spec = made(base=str(file))
    file.write_text("gone: 1")
    assert specs.arms(spec)[0].config(spec, 0, Path("runs"), "x", {}).steps == 80


def test_a_base_with_noise_would_make_none_a_lie() -> None:
    spec = made(base={**yaml.safe_load(configs.presets()["embedded_xs"]), "noise": [{"kind": "flip", "prob": 0.5}]})
    with pytest.raises(ConfigError, match="condition 'none': the base has a noise of its own"):
        specs.arms(spec)[0].config(spec, 0, Path("runs"), "x", {})


@pytest.mark.parametrize("name", sorted(specs.shipped()))
def test_sweeps_that_ship_can_be(name: str) -> None:
    spec = specs.load(name, {})
    for arm in specs.arms(spec):
        arm.config(spec, spec.seeds[0], Path("runs"), "x", {})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the sweep has no arms: name the algorithms, as in --algos vimpo,grpo"),
        (["--algos", ","], "the sweep has no arms"),
        (["--algos", "grpo", "-s", "steps="], "steps=: expected key=value"),
        (
            ["--algos", "vimpo,gpro"],
            "arm 'gpro', condition 'none': unknown algorithm 'gpro'; did you mean 'gspo' or 'grpo'",
        ),
        (["--algos", "vimpo,grpo", "-s", "algo.beta=0.1,0.2"], "arm 'grpo beta=0.1', condition 'none'"),
        (["--algos", "grpo", "--noise", "none,flop:0.1"], "condition 'flop:0.1'"),
        (["--algos", "grpo", "--noise", "flip:2"], "arm 'grpo', condition 'flip:2'"),
        (["--algos", "grpo", "--seeds", "4-1"], "expected numbers and ranges, the lower end first"),
        (["--algos", "grpo", "--seeds", "1,1"], "seeds holds the same one twice"),
        (["--algos", "grpo", "--tune", "lr=1e-4"], "tune and tune_seeds go together"),
        (["--algos", "grpo", "--tune", "lr=1e-4", "--tune-seeds", "0-3"], "seed 0 is both tuned on and scored"),
        (["--algos", "grpo", "--tune", "lr=-1,1", "--tune-seeds", "9"], "arm 'grpo', condition 'none'"),
        (["nosuch"], "no sweep 'nosuch'"),
        (["noise", "--resume", "."], "only --seeds may change"),
        (["--resume", "."], "no sweep is there (no sweep.yaml)"),
        (["--algos", "grpo", "--base", "embeded"], "no config 'embeded'"),
        (["--algos", "grpo", "-s", "stepz=3"], "stepz"),
        (["--algos", "grpo", "-s", "seed=1,2"], "seed is no setting of a sweep: it comes from seeds"),
        (["--algos", "grpo", "-s", "seed=7"], "seed is no setting of a sweep"),
        (["--algos", "grpo", "-s", "noise=[{kind: flip, prob: 0.5}]"], "noise is no setting of a sweep"),
        (["--algos", "grpo", "-s", "algo.kind=ppo,rloo"], "algo.kind is no setting of a sweep"),
        (["--algos", "grpo", "--tune", "lr=1e-4,1e-4", "--tune-seeds", "9"], "tune.optimizer.lr holds the same value"),
        (
            ["--algos", "grpo", "--tune", "lr=1e-4,1.00000001e-4", "--tune-seeds", "9"],
            "two runs would both be called grpo-lr=0.0001-seed9",
        ),
        (
            ["--algos", "grpo", "-s", "optimizer.lr=1e-4,1e-3", "--tune", "lr=1,2", "--tune-seeds", "9"],
            "optimizer.lr is tuned, and has values of its own",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["sweep", *arguments])
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"zip": {"steps": [1, 2], "algo.clip_low": [0.1]}}, "there are: algo.clip_low 1, steps 2"),
        ({"grid": {"steps": []}}, "the sweep has no arms: steps has no values"),
        ({"list": []}, "the sweep has no arms: list is empty"),
        ({"seed": 1}, "seed"),
        ({"list": [{"steps": 1}, {"steps": 1}]}, "twice"),
    ],
)
def test_files_that_contradict_themselves(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"algos": ["grpo"], "base": "embedded_xs", **fields}))
    result = CliRunner().invoke(main, ["sweep", str(file), "--dry-run", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert said in result.output


def test_the_folder_of_another_sweep(tmp_path: Path) -> None:
    there = tmp_path / "sweep"
    there.mkdir()
    (there / "sweep.yaml").write_text(yaml.safe_dump(made(seeds="0-1").model_dump(mode="json", by_alias=True)))
    arguments = ["sweep", "--algos", "grpo", "--base", "embedded_xs", "--out", str(tmp_path)]
    same = CliRunner().invoke(main, [*arguments, "--seeds", "0-1"])
    assert same.exit_code == 2
    assert f"holds this sweep already: finish it with --resume {there}" in same.output
    other = CliRunner().invoke(main, [*arguments, "--seeds", "0-2", "--noise", "flip:0.1"])
    assert other.exit_code == 2
    assert "holds another sweep (it differs in seeds, noise)" in other.output
    (there / "sweep.yaml").rename(there / "something.txt")
    neither = CliRunner().invoke(main, arguments)
    assert neither.exit_code == 2
    assert "is no sweep's" in neither.output


def test_resume_takes_more_seeds_and_leaves_none_out(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(made(seeds="0-1").model_dump(mode="json", by_alias=True)))
    more = CliRunner().invoke(main, ["sweep", "--resume", str(tmp_path), "--seeds", "0-3", "--dry-run"])
    assert more.exit_code == 0, more.output
    assert "4, of 80 steps each" in more.output
    fewer = CliRunner().invoke(main, ["sweep", "--resume", str(tmp_path), "--seeds", "1-3"])
    assert fewer.exit_code == 2
    assert "leaves out seed 0" in fewer.output


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["sweep", "noise", "--dry-run", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "72, of 80 steps each" in result.output
    assert "72 runs before" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_cores_and_gpus_are_shared_out(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = {3, 4, 5, 9, 11}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    monkeypatch.setattr(ranks, "_built_for_cpus", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    parts = shares(count)
    if count <= len(cores):
        assert sorted(core for part in parts for core in part.cores) == sorted(cores)
    assert all(part.cores for part in parts)
    given = [gpu for part in parts for gpu in part.gpus]
    assert len(given) == len(set(given)) == 3 // count * count, "as many for each, so that all runs have as many ranks"
    for part in parts:
        assert part.ranks == max(1, 3 // count)
        assert int(part.environment()["OMP_NUM_THREADS"]) * part.ranks <= max(len(part.cores), part.ranks)
        assert part.environment().get("CUDA_VISIBLE_DEVICES") == (",".join(part.gpus) or None)


def test_more_runs_at_once_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_built_for_cpus", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    result = CliRunner().invoke(main, ["sweep", "--algos", "grpo", "--jobs", "3", "--out", str(tmp_path), "--dry-run"])
    assert result.exit_code == 2
    assert "--jobs 3, but there are 2 GPUs" in result.output
    alone = CliRunner().invoke(main, ["sweep", "--algos", "grpo", "--out", str(tmp_path), "--dry-run"])
    assert "1 thread(s) a rank, and 2 GPUs (0, 1 for one), a rank on each" in alone.output
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ranks.visible_gpus() == []


def test_a_run_has_as_many_ranks_as_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = tmp_path / "shown"
    shown.write_text('#!/bin/sh\necho "$@"\n')
    shown.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shown))
    one = job(tmp_path)
    with alone(tmp_path) as lock:
        _start(one, Share([0], ["4", "6"]), lock).wait()
    assert one.log.read_text().split()[-2:] == ["--nproc", "2"]


def job(tmp_path: Path, name: str = "a", algo: str = "grpo", **given: Any) -> Job:
    config = configs.load("embedded_xs")
    return Job(
        name=name,
        algo=algo,
        config=config,
        file=tmp_path / "x.yaml",
        folder=tmp_path / name,
        log=tmp_path / f"{name}.log",
        steps=100,
        **given,
    )


def test_time_left_comes_from_runs_of_the_same_algorithm(tmp_path: Path) -> None:
    rng = random.Random()
    fast, slow = rng.uniform(5, 20), rng.uniform(30, 60)
    jobs = [job(tmp_path, "a", seconds=fast), job(tmp_path, "b"), job(tmp_path, "c", "ppo", seconds=slow)]
    for each in (jobs[0], jobs[2]):
        (each.folder / "checkpoints/step-00000100").mkdir(parents=True)
    jobs += [job(tmp_path, "d", "ppo", step=40), job(tmp_path, "e", "vimpo")]
    expected = fast + slow * 0.6 + (fast + slow) / 2
    assert left_s(jobs, 2) == pytest.approx(expected / 2)
    assert left_s([job(tmp_path, "f")], 1) is None


def test_time_left_comes_from_the_first_steps(tmp_path: Path) -> None:
    now = time.monotonic()
    running = job(tmp_path, step=11, started=now - 13, first_step=now - 10)
    assert running.expected_s() == pytest.approx(3 + 1.0 * 99, rel=0.01)
    assert left_s([running], 1) == pytest.approx(102 * 0.89, rel=0.01)


def test_metrics_are_read_as_they_grow(tmp_path: Path) -> None:
    running = job(tmp_path)
    running.look()
    running.folder.mkdir()
    file = running.folder / "metrics.jsonl"
    file.write_text('{"step": 1, "reward/clean": 0.5}\n{"step": 2, "rew')
    running.look()
    assert (running.step, running.reward) == (1, 0.5)
    with file.open("a") as more:
        more.write('ard/clean": null}\n{"step": 3, "reward/clean": 0.75}\n')
    running.look()
    assert (running.step, running.reward) == (3, 0.75)


def test_the_display_says_what_ended_and_how(tmp_path: Path) -> None:
    good, bad = job(tmp_path, "good", reward=0.5, seconds=12.0), job(tmp_path, "bad", error="line 1\n[red]line 2")
    (good.folder / "checkpoints/step-00000100").mkdir(parents=True)
    with (tmp_path / "out").open("w") as file:
        terminal = Console(file=file, width=200)
        display = Display("runs", [good, bad], 1, lambda job, left: "never", terminal)
        display.ended.clear()
        display.watch([])
        display.watch([])
    said = (tmp_path / "out").read_text()
    assert said.count("good done: clean reward 0.500 in its last step, 12 s") == 1
    assert "[2/2] bad died after step 0 of 100; the others go on" in said
    assert "    [red]line 2" in said


def test_no_run_outlives_a_sweep_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\necho $$\nexec sleep 300\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    one = job(tmp_path)

    def watch(_: Any) -> None:
        if last_lines(one.log):
            raise OSError("no terminal any more")

    with alone(tmp_path) as lock, pytest.raises(OSError, match="no terminal"):
        run_all([one], 1, watch, print, lock)
    with pytest.raises(ProcessLookupError):
        os.kill(int(last_lines(one.log)), 0)


def test_a_sweep_at_work_is_not_taken_up_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor while one of its runs is left of it: what has no checkpoint yet would be removed under that one's feet."""
    release = tmp_path / "release"
    left = tmp_path / "left"
    left.write_text(f"#!/bin/sh\nwhile [ ! -e {release} ]; do sleep 0.05; done\n")
    left.chmod(0o755)
    with alone(tmp_path / "swept") as lock, monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(left))
        process = _start(job(tmp_path), shares(1)[0], lock)
        with pytest.raises(ConfigError, match="is at work"), alone(tmp_path / "swept"):
            pass
    with pytest.raises(ConfigError, match="is at work"), alone(tmp_path / "swept"):
        pass
    release.touch()
    assert process.wait(timeout=10) == 0
    with alone(tmp_path / "swept"):
        pass


def test_files_may_vanish_while_they_are_counted(tmp_path: Path) -> None:
    """A run puts its files in place by renaming them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    (tmp_path / "stays").write_text("1234")
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            (tmp_path / "part").mkdir()
            (tmp_path / "part/file").touch()
            (tmp_path / "part/file").unlink()
            (tmp_path / "part").rmdir()

    with ThreadPoolExecutor() as pool:
        writer = pool.submit(busy)
        try:
            assert {disk_bytes(tmp_path) for _ in range(20_000)} == {4}
        finally:
            over.set()
            sys.setswitchinterval(interval)
        writer.result()


def test_a_run_that_is_killed_is_said_to_be_and_quotes_no_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\necho step 3\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    one = job(tmp_path)
    one.log.write_text("the error of the time before\n")
    with alone(tmp_path) as lock:
        assert run_all([one], 1, lambda _: None, print, lock) == 0
    assert one.error == "step 3\n(killed by SIGKILL)"


def test_another_choice_of_tuning_does_not_mix_with_runs_made_before(tmp_path: Path) -> None:
    def tuned(score: float | None, chosen: float) -> Tuning:
        trials = [Trial(settings={"optimizer.lr": lr}, scores={"9": s}) for lr, s in ((1.0, 0.5), (2.0, score))]
        return Tuning(
            arm="grpo", condition="none", metric="x", seeds=[9], trials=trials, chosen={"optimizer.lr": chosen}
        )

    place = SweepFolder(tmp_path, [SweepRun(name="grpo-seed0", arm="grpo", condition="none", seed=0)])
    sweeps._check_choice(place, [tuned(None, 1.0)])
    place.write_tuning([tuned(None, 1.0)])
    sweeps._check_choice(place, [tuned(0.9, 2.0)])
    (tmp_path / "runs/grpo-seed0").mkdir(parents=True)
    sweeps._check_choice(place, [tuned(0.4, 1.0)])
    with pytest.raises(RlkitError, match=r"the best is lr=2 and no longer lr=1, with which these were made: .*seed0"):
        sweeps._check_choice(place, [tuned(0.9, 2.0)])


def test_runs_that_died_are_named_even_where_the_others_cannot_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SweepFolder(tmp_path / "sweep", [SweepRun(name="grpo-seed0", arm="grpo", condition="none", seed=0)])

    def sweep(*_: Any, **__: Any) -> sweeps.Outcome:
        run = place.run_folder(place.runs[0])
        run.mkdir(parents=True)
        place.write_plan()
        (run / "config.yaml").write_text("algo: {kind: grpo}\n")
        (run / "metrics.jsonl").write_text("damaged\n{}\n")
        return sweeps.Outcome(folder=place.path, failed=["ppo-seed0"], interrupted=0, scored=1)

    monkeypatch.setattr(sweeps, "sweep", sweep)
    result = CliRunner().invoke(main, ["sweep", "--algos", "grpo,ppo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "1 run died: ppo-seed0" in result.output
    assert "the runs are made, but not their comparison" in result.output


@pytest.mark.parametrize("text", ['{"runs": [', "{}", '{"runs": [{"nam": 1}]}'])
def test_a_damaged_plan_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=r"plan.json is damaged .*--resume"):
        SweepFolder.open(tmp_path)


def test_last_lines_move_no_cursor(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\x1b[2Jresponse <b>\x07\n\tat line 3\n")
    assert last_lines(log) == "\u241b[2Jresponse <b>\u2407\n\tat line 3"


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log) == ""
    log.write_bytes(b"a\n" * 30 + b"\xff last\n\n")
    assert last_lines(log, 2) == "a\n\N{REPLACEMENT CHARACTER} last"


@pytest.mark.parametrize("text", ["none", "flip:0.25", "asymmetric:0.1,0.2", "group_flip:0.25+drop:0.1"])
def test_noise_is_called_as_it_is_asked_for(text: str) -> None:
    noise = [] if text == "none" else [ref.model_dump() for ref in specs.parse_noises(text)]
    assert noise_label(noise) == text


def test_an_unknown_name_of_a_sweep_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match="did you mean 'noise'"):
        specs.load("nois", {})


@pytest.mark.parametrize(("best", "end"), [(0, {"optimizer.lr": "lowest"}), (1, {}), (2, {"optimizer.lr": "highest"})])
def test_a_best_value_at_the_end_of_what_was_tried_is_marked(best: int, end: dict[str, str]) -> None:
    trials = [
        Trial(settings={"optimizer.lr": lr}, scores={"9": float(at == best)})
        for at, lr in enumerate((1e-4, 2e-4, 4e-4))
    ]
    tuning = Tuning(
        arm="grpo", condition="none", metric="reward/clean", seeds=[9], trials=trials, chosen=trials[best].settings
    )
    assert tuning.at_the_end == end


def test_a_text_that_yaml_would_cut_is_refused_or_whole() -> None:
    with pytest.raises(ConfigError, match="quotes"):
        specs.parse_values("data.system=End with #### and the number")
    assert specs.parse_values('data.system="End with #### and the number"')[1] == ["End with #### and the number"]
