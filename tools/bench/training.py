"""Train the embedded model with several algorithms and seeds, and print what came out as two Markdown tables.

    python tools/bench/training.py --algos vimpo,grpo,ppo --seeds 0,1,2 --out runs/learning

Runs that are done already are read, not made again.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

import click

import rlkit
from rlkit import config as configs
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import Row, last_step, series
from rlkit.records.statistics import final_value

PHASES = ("sample", "score", "measure", "update", "sync", "step")


@click.command()
@click.argument("preset", default="embedded")
@click.option("--algos", default="vimpo,grpo,ppo")
@click.option("--seeds", default="0,1,2")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/learning"))
@click.option("-s", "overrides", multiple=True)
def main(preset: str, algos: str, seeds: str, out: Path, overrides: tuple[str, ...]) -> None:
    runs: dict[str, list[list[Row]]] = {}
    for algo in algos.split(","):
        for seed in seeds.split(","):
            config = configs.load(preset, [*overrides, f"seed={seed}", f"out={out}"], algo)
            if not RunFolder(config.folder).learning_curve.exists():
                rlkit.train(config, quiet=True)
            runs.setdefault(algo, []).append(RunFolder.open(config.folder).read_metrics())
            click.echo(f"{config.folder} done", err=True)
    print_learning(runs)
    print_seconds(runs)


def print_learning(runs: dict[str, list[list[Row]]]) -> None:
    print("| algorithm | seeds | pass rate before | after | train reward, last tenth | length before, after | KL |")
    print("|---|---|---|---|---|---|---|")
    for algo, rows in runs.items():
        held_out = [[row["eval/heldout/mean@1"] for row in run if "eval/heldout/mean@1" in row] for run in rows]
        cells = [
            algo,
            str(len(rows)),
            _spread([h[0] for h in held_out]),
            _spread([h[-1] for h in held_out]),
            _spread([final_value(*series(run, "reward/mean"), last_step(run)) for run in rows]),
            f"{_mean(run[1]['response/length'] for run in rows):.1f}, "
            f"{_mean(run[-1]['response/length'] for run in rows):.1f}",
            _spread([run[-1]["policy/kl"] for run in rows]) if "policy/kl" in rows[0][-1] else "",
        ]
        print(f"| {' | '.join(cells)} |")
    print()


def print_seconds(runs: dict[str, list[list[Row]]]) -> None:
    print(f"| algorithm | {' | '.join(PHASES)} | tokens/s | largest sampler-trainer gap |")
    print("|---" * (len(PHASES) + 3) + "|")
    for algo, rows in runs.items():
        # The first steps warm up, and evaluations are counted in the step they follow.
        steps = [row for run in rows for row in run if row["step"] > 2 and "time/eval_s" not in row]
        cells = [f"{statistics.median(row[f'time/{phase}_s'] for row in steps):.3f}" for phase in PHASES]
        cells += [f"{statistics.median(row['throughput/tokens_per_s'] for row in steps):.0f}"]
        cells += [f"{max(row['sampler/gap_max'] for run in rows for row in run if 'sampler/gap_max' in row):.1e}"]
        print(f"| {algo} | {' | '.join(cells)} |")


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
