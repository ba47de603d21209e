"""What waiting for environments costs: the same trajectories with an environment that takes its time, and with one that
answers at once, in turn in one run; in seconds of sampling.

    python tools/bench/waiting.py --rounds 5

64 trajectories of 4 turns, 200 ms a step. The servers' row wants a core more, for the server, and vLLM as `vllm` does.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from common import QUICK, Shape, make_model, run_settings, say
from schedules import served

from rlkit import config as configs
from rlkit.assembly.build import build_loop
from rlkit.assembly.run import prepare_environment
from rlkit.generation.sampled import draws

TURNS = 4
SHAPE = Shape(prompts=8, samples=8, tokens=2048, mean=32)
"""Tokens are of a trajectory, the mean of a turn: no trajectory is cut before its last turn, or as good as none."""
SAMPLERS = ("transformers", "vllm", "vllm_server")


@click.command()
@click.option("--sampler", "samplers", multiple=True, type=click.Choice(SAMPLERS), help="All.")
@click.option("--step-s", default=0.2, help="That the environment takes for a step.")
@click.option("--rounds", default=5, help="After one that warms up.")
@click.option("--quick", is_flag=True, help="Small, with transformers where none is named: that it runs.")
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(samplers: tuple[str, ...], step_s: float, rounds: int, quick: bool, file: Path | None) -> None:
    shape, samplers = SHAPE, samplers or SAMPLERS[: 1 if quick else None]
    if quick:
        shape, rounds = replace(QUICK, tokens=256, mean=8), 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model", shape)
        for sampler in samplers:
            with ExitStack() as stack:
                options: dict[str, Any] = {"kind": sampler}
                if sampler == "vllm_server":
                    options |= {"urls": [stack.enter_context(served(str(model)))]}
                found = list(rollouts(stack, shape, model, Path(folder) / sampler, options, step_s, rounds))
            rows.append(row(sampler, found))
            click.echo(f"{sampler} done", err=True)
    say(rows, file, trajectories=shape.prompts * shape.samples, turns=TURNS, step_s=step_s, rounds=rounds)


def rollouts(
    stack: ExitStack, shape: Shape, model: Path, runs: Path, sampler: dict[str, Any], step_s: float, rounds: int
) -> Iterator[tuple[float, float, int]]:
    """Of each round: seconds without waiting, seconds with it, and the tokens that were sampled: the same, by their
    seeds, but for what batches of other sizes round."""
    prepare_environment()
    from rlkit.engine import distributed

    runs.mkdir()
    seconds_of_a_step = runs / "seconds"
    seconds_of_a_step.write_text("0")
    settings = [
        *run_settings(model, shape, runs, "waiting"),
        f"sampler={json.dumps(sampler)}",
        f"plugins=['{Path(__file__).with_name('slow.py')}']",
        f"environment={{kind: slow, file: '{seconds_of_a_step}'}}",
        "reward=[]",
        f"conversation.max_turns={TURNS}",
    ]
    resolved, algorithm = configs.resolve_with_algorithm(configs.load("embedded_xs", settings, "grpo"))
    distributed.init()
    loop: Any = build_loop(resolved, algorithm, stack, resume=False)
    problems, params = loop.problems[: shape.prompts], loop.gatherer.params
    for number in range(1 + rounds):
        took = []
        for waits_s in (0.0, step_s):
            seconds_of_a_step.write_text(str(waits_s))
            loop.sync.version = None
            loop.sync.newest()  # and with it what is cached of the prompts is forgotten
            scored, seconds = loop.gatherer.collector.collect(draws(problems, shape.samples, number), params, "train")
            took.append(seconds["sample"])
        if number:
            yield took[0], took[1], sum(len(one.completion.tokens) for one in scored)


def row(sampler: str, found: list[tuple[float, float, int]]) -> dict[str, Any]:
    without, waiting, tokens = (list(values) for values in zip(*found, strict=True))
    ratios = [one / other for other, one, _ in found]
    return {
        "what": sampler,
        "tokens": statistics.median(tokens),
        "seconds": statistics.median(waiting),
        "least to greatest": f"{min(waiting):.3g} to {max(waiting):.3g}",
        "without waiting": statistics.median(without),
        "its least to greatest": f"{min(without):.3g} to {max(without):.3g}",
        "times as long": statistics.median(waiting) / statistics.median(without),
        "in a round": f"{min(ratios):.3g} to {max(ratios):.3g}",
    }


if __name__ == "__main__":
    main()
