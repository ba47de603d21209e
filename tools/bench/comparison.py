"""How long `rlkit compare` takes on many long runs, stage by stage: on the clock, and of one core's time.

    python tools/bench/comparison.py --runs 100 --steps 1000

Writes made-up runs into a temporary folder (three arms, two conditions, as many seeds as it takes; 35 metrics a step),
then compares them as the command does.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import yaml

ARMS = ("vimpo", "grpo", "ppo")
NOISES = ([], [{"kind": "group_flip", "prob": 0.25}])
METRICS = (
    *("reward/mean", "reward/clean", "reward/std", "reward/pass_rate", "reward/disturbed"),
    *("response/length", "response/length_max", "response/truncated", "groups/equal_rewards"),
    *("samples/no_value", "samples/invalid", "samples/ok", "samples/no_answer", "memory/peak_gib", "updates/skipped"),
    *(f"time/{phase}_s" for phase in ("sample", "score", "measure", "update", "sync", "step")),
    *(f"policy/{name}" for name in ("loss", "entropy", "kl", "clip_share", "grad_norm", "lr")),
    *("sampler/gap_mean", "sampler/gap_max", "throughput/tokens_per_s"),
    *(f"vimpo/{name}" for name in ("value_loss", "actor_loss", "residual", "explained", "target_rms")),
)

T = TypeVar("T")


@click.command()
@click.option("--runs", default=100)
@click.option("--steps", default=1000)
def main(runs: int, steps: int) -> None:
    click.echo(f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores, {runs} runs of {steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        made = [write_run(Path(folder), number, steps) for number in range(runs)]
        size = sum(file.stat().st_size for path in made for file in path.iterdir())
        click.echo(f"{size / 2**20:.0f} MiB")
        measure(made, Path(folder) / "out")


def write_run(folder: Path, number: int, steps: int) -> Path:
    noise, arm = tuple(itertools.product(NOISES, ARMS))[number % 6]
    seed = number // 6
    path = folder / f"run{number:03d}"
    path.mkdir()
    config = {"seed": seed, "steps": steps, "algo": {"kind": arm}, "noise": noise, "optimizer": {"lr": 1e-4}}
    # As long as a run's own.
    config |= {f"section{at}": {f"key{key}": key for key in range(10)} for at in range(12)}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "provenance.json").write_text(json.dumps({"versions": {"rlkit": "0"}, "plugins": {}, "git": None}))
    values = np.random.default_rng(number).random((steps, len(METRICS))).cumsum(0) / np.arange(1, steps + 1)[:, None]
    with (path / "metrics.jsonl").open("w") as file:
        for step, row in enumerate(values.tolist(), 1):
            line = {"step": step, **dict(zip(METRICS, row, strict=True))}
            if step % 20 == 0:
                line |= {"eval/heldout/mean@1": row[0], "eval/heldout/no_value": 0.0, "time/eval_s": 1.0}
            file.write(json.dumps(line) + "\n")
    return path


def measure(paths: list[Path], out: Path) -> None:
    seconds: dict[str, tuple[float, float]] = {}

    def timed(stage: str, work: Callable[[], T]) -> T:
        started, worked = time.perf_counter(), time.process_time()
        result = work()
        seconds[stage] = time.perf_counter() - started, time.process_time() - worked
        return result

    def load() -> None:
        import matplotlib.figure  # noqa: F401
        import pyarrow.parquet  # noqa: F401

        import rlkit.comparison  # noqa: F401

    timed("imports", load)
    from rich.console import Console

    from rlkit import comparison
    from rlkit.comparison import csv_files, page, picture
    from rlkit.comparison.runs import read_runs

    timed("reading alone", lambda: read_runs(paths))
    compared = timed("reading and statistics", lambda: comparison.compare(paths))
    console = Console(width=140, highlight=False)
    with console.capture():
        timed("terminal", lambda: console.print(comparison.text(compared)))
    out.mkdir()
    timed("page", lambda: page.write_page(compared, out / "comparison.html"))
    timed("picture", lambda: picture.draw(compared, out))
    timed("tables", lambda: csv_files.write_tables(compared, out))
    alone = seconds.pop("reading alone")
    rows = {"(reading alone)": alone, **seconds, "all": tuple(map(sum, zip(*seconds.values(), strict=True)))}
    click.echo(f"{'':<24}seconds  of a core")
    for stage, (wall, core) in rows.items():
        click.echo(f"{stage:<24}{wall:7.2f}  {core:9.2f}")
    click.echo(f"page: {(out / 'comparison.html').stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
