"""How a step's time and memory grow with tokens, samples, vocabulary and parameters.

    python tools/bench/scale.py --json scale.json

Each is doubled some times, the others held; the power p of the growth, cost ~ size^p, is fitted by least squares, and
what grows worse than linearly (p above 1.15) is marked.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import QUICK, Measured, Shape, Steps, alternate, make_model, say

BASE = Shape(hidden=64, layers=2, vocabulary=1024, prompts=8, samples=4, tokens=32)
LINEAR = 1.15
PHASES = ("sample", "measure", "update")


def grown(base: Shape, what: str, factor: int) -> Shape:
    match what:
        case "tokens":
            return replace(base, tokens=base.tokens * factor)
        case "samples":
            return replace(base, samples=base.samples * factor)
        case "vocabulary":
            return replace(base, vocabulary=base.vocabulary * factor)
        case _:
            return replace(base, layers=base.layers * factor)


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
@click.option("--rounds", default=4)
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Smallest sizes, one round: that it works.")
def main(algo: str, doublings: int, rounds: int, file: Path | None, quick: bool) -> None:
    base, doublings, rounds = (QUICK, 1, 1) if quick else (BASE, doublings, rounds)
    rows: list[dict[str, Any]] = []
    for what in ("tokens", "samples", "vocabulary", "layers"):
        sizes = [2**n for n in range(doublings + 1)]
        found = [measured(grown(base, what, size), algo, rounds) for size in sizes]
        costs = {"step": [m.seconds for m, _ in found]}
        costs |= {phase: [phases[phase] for _, phases in found] for phase in PHASES}
        costs["memory"] = [m.peak_mib for m, _ in found]
        for cost, values in costs.items():
            p = power(sizes, values, 8.0 if cost == "memory" else 1e-3)
            rows.append({
                "grows": what, "cost": cost, "first": values[0], "last": values[-1], "times": sizes[-1], "power": p,
                "worse than linear": "yes" if p > LINEAR else "",
            })  # fmt: skip
    say(rows, file, algo=algo, base=base)


if __name__ == "__main__":
    main()
