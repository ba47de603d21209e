"""VIMPO's step against GRPO's with the same reference, and against the same VIMPO with all logits of both models kept.

    python tools/bench/vimpo.py --json vimpo.json

GRPO has the KL to the reference in its loss: over the whole vocabulary, which is what VIMPO needs, or by the usual
estimator, for which the reference's log-probs are enough.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import click
from common import QUICK, Shape, Steps, alternate, make_model, say
from torch import Tensor

from rlkit.ops.head import Head


def all_logits(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    *,
    want: Any,
    observe: Any = frozenset(),
    temperature: float = 1.0,
    reference: tuple[Tensor, Head] | None = None,
) -> dict[str, Tensor]:
    """As `head_stats`, with [N, V] float32 logits of policy and reference in memory."""
    logp = (head.logits(hidden) / temperature).log_softmax(-1)
    found = {"logprobs": logp.gather(-1, tokens[:, None])[:, 0], "entropy": -(logp.exp() * logp).sum(-1)}
    if reference is not None:
        other = (reference[1].logits(reference[0]) / temperature).log_softmax(-1).detach()
        found["ref_logprobs"] = other.gather(-1, tokens[:, None])[:, 0]
        found["token_kl"] = (logp.exp() * (logp - other)).sum(-1)
    found = {name: value for name, value in found.items() if name in want | observe}
    return {name: value if name in want else value.detach() for name, value in found.items()}


@click.command()
@click.option("--rounds", default=8)
@click.option("--hidden", default=128)
@click.option("--layers", default=4)
@click.option("--vocabulary", default=32768)
@click.option("--tokens", default=64)
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Smallest sizes, one round: that it works.")
def main(rounds: int, hidden: int, layers: int, vocabulary: int, tokens: int, file: Path | None, quick: bool) -> None:
    shape = QUICK if quick else Shape(hidden, layers, vocabulary, 16, 8, tokens)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        model = make_model(Path(place) / "model", shape)
        kept: dict[str, Steps] = {}
        for name, algo, *settings in (
            ("VIMPO", "vimpo"),
            ("VIMPO, whiten: running", "vimpo", "algo.whiten=running"),
            ("VIMPO, all logits", "vimpo"),
            ("GRPO, exact KL", "grpo", "algo.kl_coef=0.001", "algo.kl_estimator=exact"),
            ("GRPO, KL by k3", "grpo", "algo.kl_coef=0.001", "algo.kl_estimator=k3"),
        ):
            kept[name] = Steps(algo, model, shape, Path(place) / "runs", "batch.tokens_per_microbatch=4096", *settings)
            stack.callback(kept[name].close)

        def with_all_logits() -> None:
            with mock.patch("rlkit.engine.modules.head_stats", all_logits):
                kept["VIMPO, all logits"]()

        work: dict[str, Callable[[], object]] = {**kept, "VIMPO, all logits": with_all_logits}
        found = alternate(work, 1 if quick else rounds)
        rows = [
            {
                "what": name, "seconds": each.seconds, "lowest": each.lowest, "highest": each.highest,
                "relative": each.seconds / found["GRPO, KL by k3"].seconds, "peak MiB": each.peak_mib,
                **{phase: kept[name].metrics[f"time/{phase}_s"] for phase in ("sample", "measure", "update")},
            }
            for name, each in found.items()
        ]  # fmt: skip
    say(rows, file, shape=shape, relative_to="GRPO, KL by k3", phases="of the last step")


if __name__ == "__main__":
    main()
