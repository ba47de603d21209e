"""An algorithm of one's own: REINFORCE against the mean of the other samples of the group, beside GRPO.

From the shell, with this file in the working directory:

    rlkit run embedded_xs --plugin own_algorithm.py --algo others --steps 40 --name others
    rlkit run embedded_xs --algo grpo --steps 40 --name grpo
    rlkit compare runs/others runs/grpo
"""

from __future__ import annotations

import torch

import rlkit


@rlkit.algorithm("others")
def others(*, scale: float = 1.0) -> rlkit.Algorithm:
    """REINFORCE; the baseline of a sample is the mean reward of the other valid ones of its group."""

    def advantage(batch: rlkit.Batch, state: rlkit.State) -> rlkit.Targets:
        reward, valid = batch.rollout.reward.double(), batch.rollout.valid
        same = (batch.rollout.group[:, None] == batch.rollout.group[None, :]) & valid[None, :]
        beside = same & ~torch.eye(len(reward), dtype=torch.bool)
        baseline = (beside * reward).sum(1) / beside.sum(1).clamp(min=1)
        return rlkit.Targets(advantages=(scale * (reward - baseline)).float()[:, None] * batch.mask)

    advantage.compares_groups = True  # type: ignore[attr-defined]

    def loss(new: rlkit.TokenStats, batch: rlkit.Batch, targets: rlkit.Targets) -> tuple[torch.Tensor, rlkit.Metrics]:
        gain = new.get("logprobs") * targets.get("advantages")
        return -gain[batch.mask].sum() / batch.n_tokens, {}

    return rlkit.Algorithm(advantage=advantage, policy_loss=loss)


def main(steps: int = 40) -> rlkit.Comparison:
    runs = [
        rlkit.train("embedded_xs", algo=algo, steps=steps, plugins=[__file__], name=algo, exist="new")
        for algo in ("others", "grpo")
    ]
    compared = rlkit.compare(*runs)
    print(compared.arms[["arm", "metric", "final", "auc"]].to_string(index=False))
    return compared


if __name__ == "__main__":
    main()
