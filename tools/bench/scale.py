"""How a step's time and memory grow with tokens, samples, vocabulary and parameters, and shrink with ranks.

    python tools/bench/scale.py --json scale.json

Each grows some times over, the others held; the power p of the growth, cost ~ size^p, is fitted by least squares, and
what grows worse than linearly (p above 1.15) is marked. Ranks share one run's work, so there a power of -1 is best.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import QUICK, Measured, Shape, Steps, alternate, make_model, run_settings, say

from rlkit.records.folder import RunFolder
from rlkit.records.metrics import Row

BASE = Shape(hidden=64, layers=2, vocabulary=1024, prompts=8, samples=4, tokens=32)
LINEAR = 1.15
PHASES = ("sample", "measure", "update")
MODELS = ((64, 2), (128, 4), (256, 8), (512, 13), (768, 23))
"""Width and layers: 0.2, 1.0, 6, 36 and 137 million parameters, with a vocabulary of 1,024."""


def shapes(base: Shape, doublings: int, models: int) -> dict[str, list[Shape]]:
    """What grows, and each of its sizes."""
    factors = [2**n for n in range(doublings + 1)]
    return {
        "tokens": [replace(base, tokens=base.tokens * n) for n in factors],
        "samples": [replace(base, samples=base.samples * n) for n in factors],
        "vocabulary": [replace(base, vocabulary=base.vocabulary * n) for n in factors],
        "parameters": [replace(base, hidden=hidden, layers=layers) for hidden, layers in MODELS[:models]],
    }


def size(shape: Shape, what: str) -> int:
    if what != "parameters":
        return int(getattr(shape, what))
    with tempfile.TemporaryDirectory() as place:
        file = make_model(Path(place), shape) / "model.safetensors"
        return file.stat().st_size // 4


def by_ranks(algo: str, base: Shape, rounds: int) -> dict[int, dict[str, float]]:
    """Seconds of a step and of its phases with one rank and with two, medians of each run's steps after the first.
    The runs take turns."""
    with tempfile.TemporaryDirectory() as place:
        model = make_model(Path(place) / "model", base)
        steps: dict[int, list[Row]] = {1: [], 2: []}
        for number in range(rounds):
            for ranks, rows in steps.items():
                settings = run_settings(model, base, Path(place), f"{ranks}-{number}", "steps=6")
                command = [sys.executable, "-m", "rlkit", "run", "embedded_xs", "--algo", algo, "--nproc", str(ranks)]
                command += [part for setting in settings for part in ("-s", setting)]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                rows += RunFolder.open(Path(place) / f"{ranks}-{number}").read_metrics()[2:]
    names = {"step": "time/step_s", **{phase: f"time/{phase}_s" for phase in PHASES}}
    return {
        ranks: {cost: statistics.median(row[name] for row in rows if name in row) for cost, name in names.items()}
        for ranks, rows in steps.items()
    }


def measured(shape: Shape, algo: str, rounds: int) -> tuple[Measured, dict[str, float]]:
    with tempfile.TemporaryDirectory() as place:
        model = make_model(Path(place) / "model", shape)
        with closing(Steps(algo, model, shape, Path(place) / "runs")) as steps:
            found = alternate({algo: steps}, rounds)[algo]
            return found, {phase: steps.metrics.get(f"time/{phase}_s", 0.0) for phase in PHASES}


def power(sizes: list[int], costs: list[float], least: float) -> float:
    """Of the larger half of the sizes: at small ones what does not grow hides what does. What costs less than `least`
    is noise."""
    half = max(2, len(sizes) // 2 + 1)
    return float(np.polyfit(np.log(sizes[-half:]), np.log(np.maximum(costs[-half:], least)), 1)[0])


@click.command()
@click.option("--algo", default="vimpo")
@click.option("--doublings", default=4)
@click.option("--models", default=len(MODELS), help="How many of the models, from the smallest.")
@click.option("--rounds", default=4)
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Smallest sizes, one round: that it works.")
def main(algo: str, doublings: int, models: int, rounds: int, file: Path | None, quick: bool) -> None:
    base, doublings, models, rounds = (QUICK, 1, 2, 1) if quick else (BASE, doublings, models, rounds)
    rows: list[dict[str, Any]] = []

    def add(what: str, sizes: list[int], costs: dict[str, list[float]]) -> None:
        for cost, values in costs.items():
            p = power(sizes, values, 8.0 if cost == "memory" else 1e-3)
            rows.append({
                "grows": what, "cost": cost, "from": sizes[0], "to": sizes[-1], "first": values[0], "last": values[-1],
                "power": p, "worse than linear": "yes" if p > LINEAR else "",
            })  # fmt: skip

    for what, each in shapes(base, doublings, models).items():
        found = [measured(shape, algo, rounds) for shape in each]
        costs = {"step": [m.seconds for m, _ in found]}
        costs |= {phase: [phases[phase] for _, phases in found] for phase in PHASES}
        costs["memory"] = [m.peak_mib for m, _ in found]
        add(what, [size(shape, what) for shape in each], costs)
    shared = by_ranks(algo, replace(base, samples=4 * base.samples), rounds)
    add("ranks", list(shared), {cost: [costs[cost] for costs in shared.values()] for cost in ("step", *PHASES)})
    say(rows, file, algo=algo, base=base)


if __name__ == "__main__":
    main()
