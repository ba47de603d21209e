"""Draw the figures of docs/algorithms.md from the code that they are about.

python tools/figures.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from rlkit_algorithms.losses import cispo_surrogate, clipped_surrogate

from rlkit.pages import PALETTE

matplotlib.use("agg")
from matplotlib import pyplot

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def surrogates(file: Path) -> None:
    """How strongly each surrogate pushes a token's log-prob, by its ratio, for an advantage of 1 and of -1."""
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharex=True)
    for axes, advantage in zip(panels, (1.0, -1.0), strict=True):
        log = torch.linspace(0.02, 6.0, 1200, dtype=torch.float64).log().requires_grad_()
        signs = torch.full_like(log, advantage)
        losses = {
            "VIMPO, dual clip 3 (its own is 10)": clipped_surrogate(log, signs, 0.2, 0.28, 3.0)[0],
            "DAPO": clipped_surrogate(log, signs, 0.2, 0.28)[0],
            "PPO, GRPO": clipped_surrogate(log, signs, 0.2, 0.2)[0],
            "CISPO": cispo_surrogate(log, log, signs, 1.0, 4.0)[0],
        }
        for number, (name, loss) in enumerate(losses.items()):
            (push,) = torch.autograd.grad(-loss.sum(), log)
            # Lines that lie on each other are all seen: the first is the widest.
            width = 5.5 - 1.4 * number
            axes.plot(log.detach().exp(), push, label=name, color=PALETTE[number][0], linewidth=width)
        axes.set_title(f"advantage {advantage:+.0f}", loc="left", fontsize=10)
        axes.set_xlabel("ratio of new to old probability")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("push on log pi")
    panels[1].legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(file, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    surrogates(IMAGES / "surrogates.png")
