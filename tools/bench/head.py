"""The head's statistics of tokens against a naive form that keeps all logits: time and peak memory, both ways.

    python tools/bench/head.py --json head.json

For each vocabulary and number of tokens: log-probs alone, with the entropy, with the exact KL to a reference. What the
naive form would need more memory for than there is, by the head's own formula, is left out of it. On a GPU where
liger_kernel is installed, its fused linear cross-entropy stands beside them for the log-probs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from common import alternate, say
from torch import Tensor

from rlkit.interfaces.names import Stat
from rlkit.ops.head import Head, head_stats

WANTS: dict[str, set[Stat]] = {
    "log-probs": {"logprobs"},
    "and entropy": {"logprobs", "entropy"},
    "and exact KL": {"logprobs", "token_kl"},
}
NAIVE = 6
"""Float32 logits that the naive form holds at its peak."""


def naive(hidden: Tensor, head: Head, tokens: Tensor, want: set[Stat], reference: tuple[Tensor, Head]) -> Any:
    logp = (hidden @ head.weight.T).float().log_softmax(-1)
    found = {"logprobs": logp.gather(-1, tokens[:, None])[:, 0]}
    if "entropy" in want:
        found["entropy"] = -(logp.exp() * logp).sum(-1)
    if "token_kl" in want:
        with torch.no_grad():
            other = (reference[0] @ reference[1].weight.T).float().log_softmax(-1)
        found["token_kl"] = (logp.exp() * (logp - other)).sum(-1)
    return found


def liger() -> Callable[..., Any] | None:
    """Its log-probs; None: it is not here, or there is no GPU for its kernels."""
    if not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="none")

    def stats(hidden: Tensor, head: Head, tokens: Tensor, **_: Any) -> Any:
        return {"logprobs": -loss(head.weight, hidden, tokens)}

    return stats


@click.command()
@click.option("--vocabularies", default="32768,49152,152064,262144")
@click.option("--tokens", "counts", default="512,2048,8192,32768")
@click.option("--hidden", "width", default=1024)
@click.option("--memory-gib", default=8.0, help="What the naive form may take.")
@click.option("--rounds", default=3)
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Smallest sizes, one round: that it works.")
def main(
    vocabularies: str, counts: str, width: int, memory_gib: float, rounds: int, file: Path | None, quick: bool
) -> None:
    if quick:
        vocabularies, counts, width, rounds = "1000", "64", 16, 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    theirs = liger()
    rows = []
    for vocabulary in map(int, vocabularies.split(",")):
        for count in map(int, counts.split(",")):
            torch.manual_seed(0)
            weight = torch.randn(vocabulary, width, device=device, dtype=dtype) / width**0.5
            hidden, other = torch.randn(2, count, width, device=device, dtype=dtype)
            tokens = torch.randint(vocabulary, (count,), device=device)
            own, reference = Head(weight.requires_grad_()), (other, Head(weight.detach()))
            fits = NAIVE * 4 * count * vocabulary <= memory_gib * 2**30
            for name, want in WANTS.items():

                def backward(
                    stats: Callable[..., Any],
                    want: set[Stat] = want,
                    own: Head = own,
                    hidden: Tensor = hidden,
                    tokens: Tensor = tokens,
                    reference: tuple[Tensor, Head] = reference,
                ) -> None:
                    states = hidden.clone().requires_grad_()
                    found = stats(states, own, tokens, want=want, reference=reference)
                    torch.stack([found[each].sum() for each in sorted(want)]).sum().backward()
                    own.weight.grad = None

                work: dict[str, Callable[[], object]] = {"rlkit": lambda run=backward: run(head_stats)}
                if fits:
                    work["naive"] = lambda run=backward: run(naive)
                if theirs is not None and name == "log-probs":
                    work["Liger"] = lambda run=backward: run(theirs)
                found = alternate(work, rounds)
                rows += [
                    {
                        "V": vocabulary, "tokens": count, "what": name, "by": by, "seconds": each.seconds,
                        "lowest": each.lowest, "highest": each.highest,
                        "relative": each.seconds / found["naive"].seconds if "naive" in found else "-",
                        "peak MiB": each.peak_mib, "gradient MiB": vocabulary * width * dtype.itemsize / 2**20,
                        "logits MiB": 4 * count * vocabulary / 2**20,
                    }
                    for by, each in found.items()
                ]  # fmt: skip
    say(rows, file, hidden=width, dtype=str(dtype), liger="beside" if theirs else "needs a GPU, and liger_kernel")


if __name__ == "__main__":
    main()
