"""Killed at any place of a step and resumed, a run is the straight one: weights, samples, credit and metrics, bit for
bit, no line twice and none missing. With servers all but their log-probs, whose last bits follow from who asks when."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lives
import pyarrow.parquet as pq
import pytest
from lives import Lives
from safetensors.numpy import load_file
from server_help import Served

import rlkit

ROOT = Path(rlkit.__file__).parents[1]
STEPS = 5
SMALL = [
    f"steps={STEPS}", "checkpoint.every=2", "checkpoint.keep=1", "batch.prompts_per_step=4",
    "batch.samples_per_prompt=4", "batch.minibatches=2", "eval.problems=4", "eval.every=2", "optimizer.lr=3e-4",
    "noise=[{kind: group_flip, prob: 0.25}, {kind: flip, prob: 0.2}]",
    "sampling.max_tokens=12", "sampling.check_every=2",
]  # fmt: skip
ACTS = [f"plugins=[{ROOT / 'tests/acting.py'}]", "environment={kind: sums, turns: 2, opens: Well}", "reward=[]"]
AHEAD = ["schedule=one_ahead", "sampler=beside", f"plugins=[{ROOT / 'tools/bench/beside.py'}]"]


@dataclass(frozen=True)
class Case:
    """A kind of run, and where it is killed: once each, one after the other."""

    algo: str
    settings: tuple[str, ...]
    faults: tuple[tuple[str, int], ...]
    ranks: int = 1
    served: bool = False


OF_SERVERS = {
    "sampler_logprobs", "sampler/gap_mean", "sampler/gap_max", "policy/approx_kl", "policy/ratio_mean",
    "policy/ratio_max",
}  # fmt: skip
"""What is made of a server's log-probs and nothing else; `policy/...` one step ahead only."""

CASES = {
    "vimpo": Case(
        "vimpo",
        ("algo.whiten=running", "algo.actor_ratio=0.1"),
        (("syncing weights", 2), ("an update is made", 3), ("a checkpoint is whole", 4), ("half a line of metrics", 5)),
    ),
    "ppo, one ahead": Case(
        "ppo",
        (*AHEAD, "reference=none"),
        (
            ("half a file of rollouts", 3),
            ("saving", 4),
            ("an evaluation is written", 4),
            ("updating", 5),
            ("an engine is saved", 5),
        ),
    ),
    "grpo, two ranks, copy": Case(
        "grpo",
        ("reference={kind: copy, every: 2}", "algo.kl_coef=0.1", "engine.zero_stage=2"),
        (
            ("checking the sampler", 0),
            ("sampling", 3),
            ("a checkpoint is seen", 4),
            ("scoring", 5),
            ("what is made again is cut off", 5),
            ("all is learnt", 5),
        ),
        ranks=2,
    ),
    "vimpo, one ahead, two ranks, average": Case(
        "vimpo",
        (*AHEAD, "reference=average", "batch.refill.limit=1"),
        (("sampling", 3), ("metrics are written", 3), ("an old checkpoint is hidden", 4), ("half a file of credit", 5)),
        ranks=2,
    ),
    "ppo, LoRA": Case(
        "ppo",
        ("model.lora={rank: 4}", "algo.reward_kl_coef=0.1"),
        (
            ("measuring", 3),
            ("evaluating heldout", 4),
            ("resumed", 4),
            ("all but the model is saved", 5),
            ("an update is made", 5),
        ),
    ),
    "vimpo, vLLM": Case("vimpo", ("sampler=vllm", "reference=average"), (("sampling", 3), ("saving", 4))),
    "grpo, environment": Case(
        "grpo",
        (*ACTS, "algo.credit=turn", "sampling.max_tokens=48"),
        (("sampling", 3), ("an update is made", 4), ("saving", 5)),
    ),
    "grpo, server": Case(
        "grpo",
        (),
        (("weights are announced", 2), ("sampling", 3), ("weights are sent", 4)),
        served=True,
    ),
    "ppo, server, one ahead": Case(
        "ppo",
        ("schedule=one_ahead", "correction=off"),
        (("updating", 3), ("sampling", 4), ("weights are announced", 4)),
        served=True,
    ),
}
QUICK = {"vimpo"}


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    made = Lives(tmp_path_factory.mktemp("lives"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One whose leases run out in 3 seconds, not in 60."""
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("server")
    (folder / "sitecustomize.py").write_text("from rlkit.serving import guard\n\nguard.LEASE_S = 3.0\n")
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    with contextlib.closing(Served(folder / "log", "embedded:xs", environment=paths)) as served:
        served.wait()
        yield served


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_run_killed_on_the_way_is_the_straight_one(
    name: str, forks: Lives, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case = CASES[name]
    if "sampler=vllm" in case.settings:
        pytest.importorskip("vllm")
    settings = [*SMALL, *case.settings]
    if case.served:
        settings.append(f"sampler={{kind: vllm_server, urls: [{request.getfixturevalue('server').url}]}}")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert forks.live(straight, case.algo, settings, case.ranks) == [0] * case.ranks, said(forks, straight)
    for fault in case.faults:
        if not any((killed / "checkpoints").glob("step-*")):
            shutil.rmtree(killed, ignore_errors=True)
        assert -signal.SIGKILL in forks.live(killed, case.algo, settings, case.ranks, fault), (
            fault,
            said(forks, killed),
        )
    assert forks.live(killed, case.algo, settings, case.ranks) == [0] * case.ranks, said(forks, killed)
    assert differences(killed, straight, but=OF_SERVERS if case.served else set()) == []


@pytest.mark.slow
def test_where_one_rank_alone_is_told_and_late_all_drop_the_step(forks: Lives, tmp_path: Path) -> None:
    settings, told = [*SMALL, "checkpoint.grace_s=0.2"], tmp_path / "told"
    assert forks.live(tmp_path / "straight", "grpo", settings, 2) == [0, 0]
    assert forks.live(told, "grpo", settings, 2, (lives.TOLD, 4)) == [143, 143], said(forks, told)
    assert [place.name for place in (told / "checkpoints").iterdir()] == ["step-00000003"]
    assert forks.live(told, "grpo", settings, 2) == [0, 0], said(forks, told)
    assert differences(told, tmp_path / "straight") == []


def said(forks: Lives, run: Path) -> str:
    return (forks.folder / f"{run.name}.log").read_text()[-3000:]


def differences(run: Path, straight: Path, but: Set[str] = frozenset()) -> list[str]:
    """In metrics and columns other than `but`."""
    found = []
    for what in (lines, tables, weights):
        one, other = what(run), what(straight)
        for name in sorted({*one, *other}):
            mine, theirs = one.get(name, {}), other.get(name, {})
            keys = {*mine, *theirs} - but
            found += [f"{name}: {key}" for key in sorted(keys) if mine.get(key) != theirs.get(key)]
    return found


def lines(run: Path) -> dict[str, Any]:
    """By number, without what is of the machine."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    machine = {"time", "throughput", "memory"}
    return {
        f"line {number}": {key: value for key, value in row.items() if key.partition("/")[0] not in machine}
        for number, row in enumerate(rows)
    }


def tables(run: Path) -> dict[str, Any]:
    files = [*run.glob("rollouts/*"), *run.glob("credit/*")]
    return {f"{file.parent.name}/{file.name}": pq.read_table(file).to_pydict() for file in files}


def weights(run: Path) -> dict[str, Any]:
    file = run / f"checkpoints/step-{STEPS:08d}/hf/model.safetensors"
    return {"model": {name: weight.tobytes() for name, weight in load_file(file).items()}}


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "run"), [(1, "ppo, 2 ranks"), (3, "ppo")])
def test_a_short_soak(seed: int, run: str) -> None:
    """Two random moments of a whole run, on two ranks or one; nothing is left running."""
    soak = [sys.executable, str(ROOT / "tools/soak.py"), "--kills", "2", "--seed", str(seed)]
    done = subprocess.run(soak, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"000 {run} |") == done.stdout.count(" equal |") == 2


def test_no_phase_of_a_step_is_left_out() -> None:
    """What the loop says that it is at, and all places, are the places of some run's death."""
    from rlkit.generation.collector import PHASES

    spoken = {PHASES["train"], f"{PHASES['eval']} heldout"}
    for file in [*(ROOT / "rlkit/loop").glob("*.py"), *(ROOT / "rlkit/generation").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("progress") and node.args:
                spoken |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    assert spoken == lives.PHASES.keys()
    assert {place for case in CASES.values() for place, _ in case.faults} >= {*lives.PHASES, *lives.PLACES}
