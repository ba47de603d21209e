"""What safe scoring costs, printed as a Markdown table: start-up, verdicts per second, recovery from a killed worker.

    python tools/bench/scoring.py --repeats 5

Recovery is the time of a message of eight samples whose first one ends its worker each time, less that of eight
right ones: the message is lost once and the culprit twice, so three workers are started.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from rlkit.config import ScoringConfig
from rlkit.interfaces.rewards import Sample, SampleKey
from rlkit.scoring import Scorer, WeightedReward

PLUGIN = """
import os
from rlkit import reward


@reward("bench_fragile")
def fragile(samples):
    for sample in samples:
        if sample.response == "bomb":
            os._exit(1)
        while sample.response == "loop":
            pass
    return [1.0 for _ in samples]
"""


@click.command()
@click.option("--repeats", default=5)
@click.option("--workers", default=2)
def main(repeats: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "fragile.py"
        plugin.write_text(PLUGIN)
        rows = measure(str(plugin), repeats, ScoringConfig(workers=workers, max_no_value=1.0))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {workers} workers, {time.strftime('%Y-%m-%d')}\n")
    print("| what | median | lowest | highest |")
    print("|---|---|---|---|")
    for what, seconds, shown in rows:
        print(f"| {what} | {' | '.join(shown(s) for s in (statistics.median(seconds), min(seconds), max(seconds)))} |")


Row = tuple[str, list[float], Callable[[float], str]]


def measure(plugin: str, repeats: int, config: ScoringConfig) -> list[Row]:
    eight = [sample("right", i) for i in range(8)]
    many = [sample("right", i) for i in range(4000)]

    def first(kind: str) -> float:
        with Scorer([WeightedReward(kind)], [plugin], config) as scorer:
            return timed(scorer, eight)

    rows: list[Row] = [
        (
            f"start-up to the first eight verdicts, {kind.removeprefix('bench_')}",
            [first(kind) for _ in range(repeats)],
            milliseconds,
        )
        for kind in ("bench_fragile", "math")
    ]
    with Scorer([WeightedReward("bench_fragile")], [plugin], config) as scorer:
        timed(scorer, eight)
        usual = [timed(scorer, eight) for _ in range(repeats)]
        rates = [len(many) / timed(scorer, many) for _ in range(repeats)]
        killed = [timed(scorer, [sample("bomb"), *eight[1:]]) - statistics.median(usual) for _ in range(repeats)]
        hung = [timed(scorer, [sample("loop"), *eight[1:]]) - 3 * config.timeout_s for _ in range(repeats)]
    return [
        *rows,
        ("eight verdicts of a function that does nothing", usual, milliseconds),
        ("verdicts per second of a function that does nothing", rates, lambda rate: f"{rate:,.0f}"),
        ("recovery from a sample that ends three workers", killed, milliseconds),
        ("recovery from a sample that hangs, without its three deadlines", hung, milliseconds),
    ]


def sample(response: str, index: int = 0) -> Sample:
    key = SampleKey("bench", 1, 0, index)
    return Sample(key=key, prompt="", response=response, tokens=[0] * 500, answer="right", truncated=False)


def timed(scorer: Scorer, samples: list[Sample]) -> float:
    started = time.perf_counter()
    scorer.score(samples)
    return time.perf_counter() - started


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


if __name__ == "__main__":
    main()
