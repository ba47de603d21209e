"""A reward of one's own: the right number, in few tokens.

From the shell, with this file in the working directory:

    rlkit run embedded_xs --plugin own_reward.py -s reward.kind=short -s reward.limit=15 --steps 40 --name short
"""

from __future__ import annotations

from collections.abc import Sequence

import rlkit


@rlkit.reward("short")
def short(samples: Sequence[rlkit.Sample], *, limit: int = 20) -> list[rlkit.RewardResult]:
    """1 for the right number within `limit` tokens, a half for one that takes more."""
    results = []
    for sample in samples:
        right = sample.response.endswith(f"#### {sample.answer}")
        brief = len(sample.tokens) <= limit
        value = float(right) * (1.0 if brief else 0.5)
        results.append(rlkit.RewardResult(value=value, correct=right, parts={"right": right, "brief": brief}))
    return results


def main(steps: int = 40) -> rlkit.Run:
    # The workers that score import this file, to which `plugins` leads them; so what trains stands apart, in `main`.
    run = rlkit.train(
        "embedded_xs",
        settings={"reward.kind": "short", "reward.limit": 15},
        steps=steps,
        plugins=[__file__],
        name="short",
        exist="new",
    )
    parts = run.metrics[["step", "reward/part/right", "reward/part/brief", "response/length"]].dropna()
    print(parts.iloc[[0, -1]].to_string(index=False))
    return run


if __name__ == "__main__":
    main()
