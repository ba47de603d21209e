"""A step of rlkit's GRPO and VIMPO against one of TRL's GRPOTrainer: same model, prompts, lengths and updates.

    python tools/bench/step.py --trl-python /path/to/an/environment/with/trl/bin/python --json step.json

Each side runs in a process of its own, and steps take turns. Models are random Qwen3s, of responses that are all as
long as can be and of ragged ones, and any that --model names. Without --trl-python rlkit's own rows are made alone. TRL
runs with its own Python, which needs torch, transformers, datasets and trl.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from common import QUICK, Shape, make_model, say

from rlkit.embedded.arithmetic import problems

SIZES = {"0.7 M": Shape(128, 4, 64, 16, 8, 256, 70), "16 M": Shape(512, 6, 64, 8, 8, 256, 70)}
EQUAL = 64
"""Tokens of responses that are all as long."""


class Side:
    """A process that makes a step when told to."""

    def __init__(self, command: list[str], asked: Mapping[str, Any]) -> None:
        # Variables that rlkit sets for DeepSpeed would have TRL look for other ranks.
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LOCAL_RANK")}
        with socket.socket() as probe:  # TRL's vLLM joins a group of its own, and two sides may be TRL's
            probe.bind(("127.0.0.1", 0))
            environment["MASTER_PORT"] = str(probe.getsockname()[1])
        self._process = subprocess.Popen(
            [*command, json.dumps(asked)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def __call__(self) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                said: dict[str, float] = json.loads(line)
                return said
        raise click.ClickException("a side ended before its step: see what it said above")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def compare(
    model: Path, shape: Shape, rounds: int, trl: str | None, sampler: str, lr: float, out: Path
) -> dict[str, list[dict[str, float]]]:
    """Name of a side -> what it said of each step; the first, which warms up, is left out."""
    asked = {
        "model": str(model), "prompts": [p.prompt for p in problems(held_out=False)[: 8 * shape.prompts]],
        "prompts_per_step": shape.prompts, "samples": shape.samples, "tokens": shape.tokens, "steps": rounds + 2,
        "sampler": sampler, "lr": lr,
    }  # fmt: skip
    here = Path(__file__).parent
    ours, theirs = [sys.executable, str(here / "step_rlkit.py")], [trl or "", str(here / "step_trl.py")]
    commands = {"rlkit GRPO": (ours, {"algo": "grpo"}), "rlkit VIMPO": (ours, {"algo": "vimpo"})}
    if trl:
        commands["TRL GRPO"] = theirs, {"beta": 0.0}
        commands["TRL GRPO, reference"] = theirs, {"beta": 0.001}
    with ExitStack() as stack:
        sides = {
            name: Side(command, asked | more | {"out": str(out / f"{number}")})
            for number, (name, (command, more)) in enumerate(commands.items())
        }
        for side in sides.values():
            stack.callback(side.close)
        said = [{name: side() for name, side in sides.items()} for _ in range(rounds + 1)]
    return {name: [each[name] for each in said[1:]] for name in sides}


@click.command()
@click.option("--trl-python", help="The Python of an environment with TRL.")
@click.option("--sizes", default=",".join(SIZES), help="Of the random models.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="A model's folder, in their place.")
@click.option("--prompts", default=2, help="With --model: a step's.")
@click.option("--tokens", default=64, help="With --model: of a response, at most.")
@click.option("--sampler", default="transformers", help="Or vllm.")
@click.option("--rounds", default=8)
@click.option("--lr", default=1e-6, help="Small, so that lengths stay as drawn; 1e-3 to see both learn.")
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Smallest sizes, ragged alone, one round: that it works.")
def main(
    trl_python: str | None, sizes: str, model: Path | None, prompts: int, tokens: int, sampler: str, rounds: int,
    lr: float, file: Path | None, quick: bool,
) -> None:  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        cases: dict[tuple[str, str], tuple[Path, Shape]] = {}
        if model is not None:
            cases[model.name, "its own"] = model, Shape(prompts=prompts, samples=8, tokens=tokens)
        for size in [] if model else ["quick"] if quick else sizes.split(","):
            ragged = replace(QUICK, mean=3) if quick else SIZES[size]
            equal = replace(ragged, tokens=EQUAL, mean=0)
            for lengths, shape in (("equal", equal), ("ragged", ragged))[quick:]:
                cases[size, lengths] = make_model(folder / f"{size} {lengths}", shape), shape
        for number, ((size, lengths), (path, shape)) in enumerate(cases.items()):
            found = compare(path, shape, 1 if quick else rounds, trl_python, sampler, lr, folder / f"out{number}")
            own = {name: statistics.median(step["seconds"] for step in steps) for name, steps in found.items()}
            for name, steps in found.items():
                seconds = [step["seconds"] for step in steps]
                peer = "TRL GRPO" if name.endswith("GRPO") else "TRL GRPO, reference"
                rows.append({
                    "model": size, "lengths": lengths, "what": name, "seconds": own[name], "lowest": min(seconds),
                    "highest": max(seconds), "TRL's / it": own[peer] / own[name] if peer in own else "-",
                    "peak MiB": max(step["peak"] for step in steps),
                    "mean length": statistics.mean(step["length"] for step in steps),
                    "first reward": steps[0]["reward"], "last reward": steps[-1]["reward"],
                })  # fmt: skip
    say(rows, file, sampler=sampler, rounds=rounds, sizes={name: str(SIZES[name]) for name in SIZES})
    if not trl_python:
        print("\nrlkit's own rows alone: name an environment with TRL by --trl-python to have it beside them")


if __name__ == "__main__":
    main()
