"""Kill whole runs at random moments, resume them until they end, and hold them against runs that nobody disturbed.

python tools/soak.py --kills 50 --seed 0 --jobs 1

What is killed: a run of one process; one rank of two; the parent of `--nproc`; and SIGTERM, as a cluster sends it.
Weights, samples, credit and metrics must be those of the straight run, bit for bit, no line twice and none missing, and
no process may be left. Prints a table, writes it as JSON, and exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.numpy import load_file

BESIDE = Path(__file__).parent / "bench" / "beside.py"
STEPS = 8
SMALL = [
    f"steps={STEPS}", "checkpoint.every=3", "batch.prompts_per_step=4", "batch.samples_per_prompt=4",
    "eval.problems=4", "eval.every=4", "optimizer.lr=3e-4",
    "noise=[{kind: group_flip, prob: 0.25}, {kind: flip, prob: 0.2}]",
]  # fmt: skip
AHEAD = ["schedule=one_ahead", "sampler=beside", f"plugins=[{BESIDE}]"]
KILLS_OF_A_RUN = 3
LIMIT_S = 600.0
MACHINE = {"time", "throughput", "memory"}
"""Metrics that are of the machine."""


@dataclass(frozen=True)
class Kind:
    """A run that is made straight once, and disturbed often."""

    name: str
    algo: str
    settings: tuple[str, ...] = ()
    ranks: int = 1


KINDS = (
    Kind("vimpo", "vimpo", ("checkpoint.grace_s=2", "algo.whiten=running", "algo.actor_ratio=0.1")),
    Kind("ppo, 2 ranks", "ppo", ("batch.minibatches=2",), ranks=2),
    Kind(
        "grpo, one ahead",
        "grpo",
        (*AHEAD, "batch.refill.limit=2", "algo.kl_coef=0.1", "reference={kind: copy, every: 2}"),
    ),
    Kind("ppo", "ppo", ("checkpoint.grace_s=2", "batch.epochs=2")),
    Kind("vimpo, one ahead, 2 ranks", "vimpo", (*AHEAD, "reference=average", "model.lora={rank: 4}"), ranks=2),
    Kind("grpo, 2 ranks", "grpo", ("batch.minibatches=2", "engine.zero_stage=2"), ranks=2),
    Kind("vimpo, vLLM", "vimpo", ("sampler=vllm", "reference=average")),
)


@dataclass
class Kill:
    run: str
    way: str
    in_hand: str
    after_s: float
    code: int = 0
    ended_s: float = 0.0
    """Until nothing of it was left running."""
    left: list[str] = field(default_factory=list)
    """What was."""
    resumed: str = ""
    outcome: str = ""


class Process:
    """`rlkit run`, whose processes can be told by a mark in their environment."""

    def __init__(self, arguments: list[str], log: Path, mark: str) -> None:
        self.mark = f"RLKIT_SOAK={mark}"
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rlkit", "run", *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", "RLKIT_SOAK": mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.started = time.monotonic()

    def ranks(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def left(self) -> Iterator[str]:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
            except OSError:
                continue

    def gone(self, seconds: float) -> list[str]:
        """What is left of it after so long; empty as soon as nothing is."""
        limit = time.monotonic() + seconds
        while (left := [each for each in self.left() if each]) and time.monotonic() < limit:
            time.sleep(0.1)
        return left


def lines_of(run: Path) -> list[str]:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().splitlines() if metrics.is_file() else []


def in_hand(run: Path) -> str:
    """What the run's files say that it is at."""
    lines = lines_of(run)
    if not lines:
        return "loading, first evaluation"
    if not lines[-1].endswith("}"):
        return "writing metrics"
    made = json.loads(lines[-1])["step"]
    if any((run / "checkpoints").glob(".*")):
        return f"saving {made}"
    if (run / "rollouts" / f"step-{made + 1:06d}.parquet").is_file():
        return f"learning {made + 1}"
    return f"sampling {made + 1}" if made < STEPS else "the last evaluation, the report"


def disturbed(kind: Kind, number: int, kills: int, straight: Path, out: Path, seed: int) -> list[Kill]:
    """One run, killed so often, and resumed until it has ended."""
    draw = random.Random(f"{seed} {number}")
    run, name = out / f"{number:03d}", f"{number:03d} {kind.name}"
    made: list[Kill] = []
    while True:
        newest = max((run / "checkpoints").glob("step-*"), default=None)
        if newest is None:
            shutil.rmtree(run, ignore_errors=True)
        arguments = started(kind, run) if newest is None else ["--resume", str(run), "--nproc", str(kind.ranks)]
        if made:
            made[-1].resumed = "from the start" if newest is None else f"after {int(newest.name[5:])}"
        before = len(lines_of(run))
        process = Process(arguments, out / f"{number:03d}.log", f"{os.getpid()}-{number}")
        if len(made) == kills:
            code = process.process.wait(LIMIT_S)
            done = code == 0 or (code == 2 and "steps already: nothing to resume" in process.log.read_text()[-500:])
            ended = "" if done else f"exit code {code}: {process.log}"
            for each in made:
                each.outcome = ended or differences(run, straight)
            return made
        # Half of a process's life is spent loading: most moments are counted in what it has written.
        total = len(lines_of(straight))
        wanted = draw.choice([0, *range(before, total)])
        while len(lines_of(run)) < max(wanted, 1) and process.process.poll() is None and wanted:
            time.sleep(0.01)
        time.sleep(draw.random() * (0.5 if wanted else 8.0))
        if process.process.poll() is not None:
            if process.process.returncode not in (0, 2):
                kill = Kill(name, "none", in_hand(run), time.monotonic() - process.started, process.process.returncode)
                kill.outcome = f"exit code {kill.code} of itself: {process.log}"
                return [*made, kill]
            kills = len(made)  # it was done before the moment came
            continue
        made.append(struck(name, draw, kind, process, run))


def struck(name: str, draw: random.Random, kind: Kind, process: Process, run: Path) -> Kill:
    ways = ["SIGKILL", "SIGTERM"] if kind.ranks == 1 else ["parent", "rank 0", "rank 1", "SIGTERM"]
    way = draw.choice(ways)
    kill = Kill(name, way, in_hand(run), time.monotonic() - process.started)
    ranks = process.ranks()
    if way.startswith("rank") and len(ranks) == kind.ranks:
        os.kill(ranks[int(way[-1])], signal.SIGKILL)
    else:
        process.process.send_signal(signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL)
    struck_at = time.monotonic()
    kill.code = process.process.wait(LIMIT_S)
    kill.left = process.gone(120)
    kill.ended_s = time.monotonic() - struck_at
    return kill


def started(kind: Kind, run: Path) -> list[str]:
    settings = [part for setting in (*SMALL, *kind.settings) for part in ("-s", setting)]
    named = ["--algo", kind.algo, "--out", str(run.parent), "--name", run.name, "--nproc", str(kind.ranks)]
    return ["embedded_xs", *named, *settings]


def differences(run: Path, straight: Path) -> str:
    """What of a run is not as in the straight one; "equal" where nothing is."""
    found = []
    one, other = ([machineless(line) for line in lines_of(of)] for of in (run, straight))
    if one != other:
        found.append(f"metrics ({len(one)} lines, {len(other)} wanted)")
    for place in ("rollouts", "credit"):
        files = [
            {file.name: pq.read_table(file).to_pylist() for file in (of / place).iterdir()} for of in (run, straight)
        ]
        found += [
            f"{place}/{name}" for name in sorted({*files[0], *files[1]}) if files[0].get(name) != files[1].get(name)
        ]
    last = f"checkpoints/step-{STEPS:08d}/hf/model.safetensors"
    weights = [load_file(of / last) for of in (run, straight)]
    found += [name for name in weights[1] if weights[0][name].tobytes() != weights[1][name].tobytes()]
    return "differs: " + ", ".join(found) if found else "equal"


def machineless(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key.partition("/")[0] not in MACHINE}


def soak(kills: int, seed: int, jobs: int, out: Path) -> list[Kill]:
    """So many kills, of runs of all kinds in turn."""
    plan: list[tuple[Kind, int]] = []
    while sum(count for _, count in plan) < kills:
        left = kills - sum(count for _, count in plan)
        plan.append((KINDS[(seed + len(plan)) % len(KINDS)], min(KILLS_OF_A_RUN, left)))
    straight = {}
    for kind in {kind.name: kind for kind, _ in plan}.values():
        straight[kind.name] = out / f"straight {kind.name}".replace(",", "").replace(" ", "-")
        if (straight[kind.name] / "report.html").is_file():
            continue
        process = Process(started(kind, straight[kind.name]), out / f"{kind.algo}.log", f"{os.getpid()}-straight")
        if process.process.wait(LIMIT_S) or process.gone(10):
            raise SystemExit(f"the straight run of {kind.name} failed: {process.log.read_text()[-2000:]}")

    def one(number: int) -> list[Kill]:
        kind, count = plan[number]
        made = disturbed(kind, number, count, straight[kind.name], out, seed)
        print(*map(row, made), sep="\n", flush=True)
        return made

    print(HEAD)
    with ThreadPoolExecutor(jobs) as pool:
        return [kill for made in pool.map(one, range(len(plan))) for kill in made]


HEAD = "| run | killed | in hand | exit code | gone after | resumed | outcome |\n|---|---|---|---|---|---|---|"


def row(kill: Kill) -> str:
    left = f"LEFT: {'; '.join(kill.left)}" if kill.left else f"{kill.ended_s:.1f} s"
    return f"| {kill.run} | {kill.way} | {kill.in_hand} | {kill.code} | {left} | {kill.resumed} | {kill.outcome} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument(
        "--out", type=Path, help="folder of the runs, whose straight ones serve again; else they are removed"
    )
    parser.add_argument("--json", type=Path, help="file of the table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        kills = soak(given.kills, given.seed, given.jobs, out)
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(kill) for kill in kills], indent=1) + "\n")
    good = [kill for kill in kills if kill.outcome == "equal" and not kill.left]
    print(f"{len(good)} of {len(kills)} kills left the run as if nothing had happened, and nothing running")
    return 0 if len(good) == len(kills) else 1


if __name__ == "__main__":
    sys.exit(main())
