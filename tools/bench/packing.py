"""Learning from a rollout with rows padded, packed, and packed with each prompt once for its group.

    python tools/bench/packing.py --json packing.json

VIMPO's measuring and its update, without sampling. Lengths are drawn like those of GSM8K, and with a heavy tail like
those of long reasoning. Where a prompt is not to be shared, each row of a group has another one, as long as the first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import torch
from common import QUICK, Shape, Steps, alternate, make_model, say

from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.rewards import SampleKey

Drawn = tuple[float, float, int]
"""Median, spread of the logarithm, most."""
LENGTHS: dict[str, tuple[Drawn, Drawn]] = {
    "like GSM8K": ((90, 0.3, 256), (150, 0.4, 512)),
    "long reasoning": ((120, 0.4, 512), (600, 1.0, 4096)),
}
"""Of prompts and of responses."""


def draw(rng: np.random.Generator, of: Drawn, count: int) -> list[int]:
    median, spread, most = of
    return [int(length) for length in np.clip(rng.lognormal(np.log(median), spread, count), 2, most)]


def make_rollout(lengths: tuple[Drawn, Drawn], shape: Shape, shared: bool) -> Rollout:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    count = shape.prompts * shape.samples
    sizes = [size for size in draw(rng, lengths[0], shape.prompts) for _ in range(shape.samples)]
    length = torch.tensor(draw(rng, lengths[1], count))
    longest = int(length.max())
    prompts = [torch.randint(shape.vocabulary, (size,)) for size in sizes]
    group = torch.arange(shape.prompts).repeat_interleave(shape.samples)
    if shared:
        prompts = [prompts[row - row % shape.samples] for row in range(count)]
    reward = torch.randint(2, (count,)).float()
    return Rollout(
        keys=[SampleKey(f"p{row // shape.samples}", 0, row % shape.samples, 0) for row in range(count)],
        prompt_tokens=prompts,
        tokens=torch.randint(shape.vocabulary, (count, longest)),
        length=length,
        mask=torch.arange(longest) < length[:, None],
        valid=torch.ones(count, dtype=torch.bool),
        group=group,
        reward=reward,
        clean_reward=reward,
        sampler_logprobs=torch.zeros(count, longest),
        version=torch.zeros(count, dtype=torch.long),
        truncated=torch.zeros(count, dtype=torch.bool),
    )


@click.command()
@click.option("--rounds", default=5)
@click.option("--hidden", default=128)
@click.option("--layers", default=4)
@click.option("--vocabulary", default=1024)
@click.option("--prompts", default=8)
@click.option("--budget", default=8192, help="Tokens of a micro-batch.")
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Smallest sizes, one round: that it works.")
def main(
    rounds: int, hidden: int, layers: int, vocabulary: int, prompts: int, budget: int, file: Path | None, quick: bool
) -> None:
    shape = QUICK if quick else Shape(hidden, layers, vocabulary, prompts, 8, 64)
    rows = []
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        model = make_model(Path(place) / "model", shape)
        steps = Steps("vimpo", model, shape, Path(place) / "runs", f"batch.tokens_per_microbatch={budget}")
        stack.callback(steps.close)
        learner = steps.learner
        module = learner.policy._module

        def learn(rollout: Rollout, packed: bool) -> Callable[[], object]:
            def work() -> None:
                module.packs = packed
                learner.learn(rollout, learner.measure(rollout, 1), 1)

            return work

        for name, lengths in LENGTHS.items():
            alone, shared = (make_rollout(lengths, shape, shared) for shared in (False, True))
            work = {
                "padded": learn(shared, packed=False),
                "packed": learn(alone, packed=True),
                "packed, prompts shared": learn(shared, packed=True),
            }
            found = alternate(work, 1 if quick else rounds)
            prompt = sum(map(len, shared.prompt_tokens)) / len(shared.prompt_tokens)
            for what, each in found.items():
                rows.append({
                    "lengths": name, "what": what, "seconds": each.seconds, "lowest": each.lowest,
                    "highest": each.highest, "relative": each.seconds / found["packed"].seconds,
                    "peak MiB": each.peak_mib, "mean prompt": prompt,
                    "mean response": float(shared.length.float().mean()), "longest": int(shared.length.max()),
                })  # fmt: skip
    say(rows, file, shape=shape, relative_to="packed", budget=budget)


if __name__ == "__main__":
    main()
