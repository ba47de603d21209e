"""A sweep read back as a table: two algorithms under noise, two seeds.

From the shell:

    rlkit sweep --algos vimpo,grpo --seeds 0-1 --noise none,group_flip:0.25 --base embedded_xs --steps 20 --name noisy
    rlkit compare runs/noisy
"""

from __future__ import annotations

import rlkit


def main(steps: int = 20, seeds: str = "0-1", noise: str = "none,group_flip:0.25") -> rlkit.Sweep:
    sweep = rlkit.sweep(
        algos=["vimpo", "grpo"],
        seeds=seeds,
        noise=noise,
        base="embedded_xs",
        steps=steps,
        jobs=2,
        name="noisy",
        exist="resume",
    )
    # One table of every step of every run, for pandas: here the reward before noise, by arm, in the last five steps.
    metrics = sweep.metrics
    last = metrics[metrics["step"] > steps - 5]
    print(last.groupby(["condition", "arm"])["reward/clean"].agg(["mean", "std"]).round(3))
    # And what rlkit makes of it: differences over seeds that both arms have, and whether they mean anything.
    print(sweep.compare().pairs[["condition", "metric", "a", "b", "difference", "verdict"]].to_string(index=False))
    return sweep


if __name__ == "__main__":
    main()
