"""A step of rlkit's GRPO and VIMPO against one of TRL's GRPOTrainer: same model, prompts, lengths and updates.

    python tools/bench/step.py --trl-python /path/to/an/environment/with/trl/bin/python --json step.json

Steps alternate within one run, for responses that are all as long as can be and for ragged ones. Without --trl-python
rlkit's own rows are made alone. TRL runs with its own Python, which needs torch, transformers, datasets and trl.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click
from common import QUICK, Measured, Shape, Steps, alternate, make_model, say

from rlkit.embedded.arithmetic import problems


class Trl:
    """The peer, in its own process and environment."""

    def __init__(self, python: str, model: Path, shape: Shape, steps: int, folder: Path) -> None:
        prompts = [problem.prompt for problem in problems(held_out=False)[: 8 * shape.prompts]]
        asked = {
            "model": str(model), "prompts": prompts, "steps": steps, "out": str(folder),
            "prompts_per_step": shape.prompts, "samples": shape.samples, "tokens": shape.tokens,
        }  # fmt: skip
        # LOCAL_RANK, which rlkit has set for DeepSpeed, would have TRL look for other ranks.
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LOCAL_RANK")}
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("step_trl.py")), json.dumps(asked)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def __call__(self) -> Measured:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("seconds "):
                seconds = float(line.split()[1])
                return Measured(seconds, seconds, seconds, float(line.split()[2]))
        raise click.ClickException("TRL ended before its step: see what it said above")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@click.command()
@click.option("--trl-python", help="The Python of an environment with TRL.")
@click.option("--rounds", default=8)
@click.option("--hidden", default=128)
@click.option("--layers", default=4)
@click.option("--vocabulary", default=1024)
@click.option("--tokens", default=64)
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Smallest sizes, one round: that it works.")
def main(
    trl_python: str | None, rounds: int, hidden: int, layers: int, vocabulary: int, tokens: int, file: Path, quick: bool
) -> None:
    whole = QUICK if quick else Shape(hidden, layers, vocabulary, 32, 8, tokens)
    rounds = 1 if quick else rounds
    rows = []
    for lengths, shape in (("equal", whole), ("ragged", replace(whole, mean=max(2, whole.tokens // 4)))):
        with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
            folder = Path(place)
            model = make_model(folder / "model", shape)
            work: dict[str, Callable[[], object]] = {}
            for algo in ("grpo", "vimpo"):
                steps = Steps(algo, model, shape, folder / "runs", f"batch.tokens_per_microbatch={2**14}")
                stack.callback(steps.close)
                work[f"rlkit {algo}"] = steps
            if trl_python:
                peer = Trl(trl_python, model, shape, rounds + 3, folder / "trl")
                stack.callback(peer.close)
                work["TRL grpo"] = peer
            found = alternate(work, rounds)
            first = found.get("TRL grpo", found["rlkit grpo"])
            for name, each in found.items():
                rows.append({
                    "lengths": lengths, "what": name, "seconds": each.seconds, "lowest": each.lowest,
                    "highest": each.highest, "relative": each.seconds / first.seconds,
                })  # fmt: skip
    say(rows, file, shape=whole, relative_to="TRL grpo" if trl_python else "rlkit grpo")
    if not trl_python:
        print("\nrlkit's own rows alone: name an environment with TRL by --trl-python to have it beside them")


if __name__ == "__main__":
    main()
