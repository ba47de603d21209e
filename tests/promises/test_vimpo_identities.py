"""What VIMPO's value loss is, in float64 on an enumerable tree.

Each path of the tree stands in the batch as often as its share of a common denominator says: the means of the
batch are exact expectations under that policy, and a policy and its rewards then decide the reference.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from random_batches import fresh_seed
from torch import Tensor

from rlkit import registry
from rlkit.interfaces.learning import Algorithm, Batch, Rollout, TokenStats
from rlkit.interfaces.rewards import SampleKey
from rlkit.ops.gae import gae
from rlkit.ops.masked import group_mean

ACTIONS = 2
BETA = 0.4


@dataclass
class Tree:
    """Paths of (state, action), and how many of the `rows` go each way."""

    depth: int
    rng: random.Random
    paths: list[list[tuple[int, int]]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    states: int = 0

    def __post_init__(self) -> None:
        self._grow([])
        for path in range(len(self.paths)):
            self.rows += [path] * self.rng.randint(1, 3)
        self.reward = [self.rng.random() for _ in self.paths]

    def _grow(self, path: list[tuple[int, int]]) -> None:
        state, self.states = self.states, self.states + 1
        for action in range(ACTIONS):
            here = [*path, (state, action)]
            if len(here) == self.depth or (len(here) > 1 and self.rng.random() < 0.3):
                self.paths.append(here)
            else:
                self._grow(here)

    def mean_below(self, weight: list[float]) -> tuple[Tensor, list[float]]:
        """For path weights: log of each action's share at its state [states, ACTIONS], and each state's weight."""
        at = torch.zeros(self.states, ACTIONS, dtype=torch.float64)
        for path, w in zip(self.paths, weight, strict=True):
            for state, action in path:
                at[state, action] += w
        total = at.sum(1, keepdim=True)
        return torch.log(at / total), total.squeeze(1).tolist()

    @property
    def counts(self) -> list[float]:
        return [float(self.rows.count(path)) for path in range(len(self.paths))]

    @property
    def policy(self) -> Tensor:
        """log pi of the rows' own distribution, [states, ACTIONS]."""
        return self.mean_below(self.counts)[0]

    def values(self) -> tuple[Tensor, Tensor]:
        """V(s) = E R from s under the rows' distribution, [states]; Q(s, a) = V(s') or the reward."""
        visits = torch.zeros(self.states, ACTIONS, dtype=torch.float64)
        sums = torch.zeros_like(visits)
        for path in self.rows:
            for state, action in self.paths[path]:
                visits[state, action] += 1
                sums[state, action] += self.reward[path]
        return sums.sum(1) / visits.sum(1), sums / visits

    def stats(self, theta: Tensor, ref: Tensor, rows: list[int]) -> TokenStats:
        """What the policy of logits `theta` and the reference of log-probs `ref` say of the rows."""
        logp = theta.log_softmax(1)
        kl = (logp.exp() * (logp - ref)).sum(1)
        filler = torch.zeros((), dtype=torch.float64)

        def spread(of: Any) -> Tensor:
            table = [
                [of(*self.paths[p][t]) if t < len(self.paths[p]) else filler for t in range(self.depth)] for p in rows
            ]
            return torch.stack([torch.stack(row) for row in table])

        return TokenStats(
            logprobs=spread(lambda s, a: logp[s, a]),
            ref_logprobs=spread(lambda s, a: ref[s, a]),
            token_kl=spread(lambda s, a: kl[s]),
        )

    def batch(self, rows: list[int], group: list[int], at: TokenStats) -> Batch:
        b = len(rows)
        lengths = torch.tensor([len(self.paths[p]) for p in rows])
        mask = torch.arange(self.depth) < lengths.unsqueeze(1)
        reward = torch.tensor([self.reward[p] for p in rows], dtype=torch.float64)
        rollout = Rollout(
            keys=[SampleKey("tree", 1, 0, i) for i in range(b)],
            prompt_tokens=[torch.tensor([0])] * b,
            tokens=torch.zeros(b, self.depth, dtype=torch.long),
            length=lengths,
            mask=mask,
            valid=torch.ones(b, dtype=torch.bool),
            group=torch.tensor(group),
            reward=reward,
            clean_reward=reward,
            sampler_logprobs=torch.zeros(b, self.depth, dtype=torch.float64),
            version=torch.zeros(b, dtype=torch.long),
            truncated=torch.zeros(b, dtype=torch.bool),
        )
        frozen = at._map(torch.Tensor.detach)
        return Batch(rollout=rollout, old=frozen, now=frozen, n_sequences=b, n_tokens=int(mask.sum()))


@pytest.fixture
def tree() -> Tree:
    return Tree(3, random.Random(fresh_seed()))


def algorithm(name: str = "vimpo", **options: Any) -> Algorithm:
    if name == "vimpo":
        options = {"beta": BETA, "actor_coef": 0.0} | options
    made: Algorithm = registry.build("algorithms", name, options)
    return made


def whole(tree: Tree, ref: Tensor) -> tuple[Tensor, TokenStats, Batch]:
    """Logits of the rows' policy (a leaf), its stats, and the batch of all rows as one group."""
    theta = tree.policy.clone().requires_grad_()
    stats = tree.stats(theta, ref, tree.rows)
    return theta, stats, tree.batch(tree.rows, [0] * len(tree.rows), stats)


def residuals(made: Algorithm, stats: TokenStats, batch: Batch) -> Tensor:
    """sum(rho - kappa) - target of each row; for soft, sum(rho) - target."""
    scores = made.advantage(batch, {}).get("scores")
    implied: Tensor = made.policy_loss.rewards(stats.get("logprobs"), stats, batch.mask)  # type: ignore[attr-defined]
    return implied.sum(1) - scores


def random_policy(tree: Tree) -> Tensor:
    return torch.randn(tree.states, ACTIONS, dtype=torch.float64).log_softmax(1)


def optimum_reference(tree: Tree) -> Tensor:
    """The reference for which the rows' policy is pi*: path probability proportional to ref * exp(R / beta)."""
    return tree.mean_below([c * math.exp(-r / BETA) for c, r in zip(tree.counts, tree.reward, strict=True)])[0]


def backward_reference(tree: Tree) -> Tensor:
    """The reference for which the rows' policy is pi+: pi+(a|s) proportional to ref(a|s) exp(Q(s,a) / beta)."""
    _, q = tree.values()
    return (tree.policy - q / BETA).log_softmax(1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def gradient(loss: Tensor, theta: Tensor) -> Tensor:
    return torch.autograd.grad(loss, [theta], retain_graph=True)[0]


def test_1_rho_less_kappa_is_0_in_expectation_at_every_state(tree: Tree) -> None:
    _, stats, batch = whole(tree, random_policy(tree))
    implied = algorithm().policy_loss.rewards(stats.get("logprobs"), stats, batch.mask)  # type: ignore[attr-defined]
    at_state: dict[int, list[float]] = {}
    for row, path in enumerate(tree.rows):
        for t, (state, _) in enumerate(tree.paths[path]):
            at_state.setdefault(state, []).append(implied[row, t].item())
    assert len(at_state) == tree.states
    for values in at_state.values():
        assert sum(values) == pytest.approx(0, abs=1e-12)
    assert implied.abs().max() > 1e-3


def test_2_at_the_trajectory_optimum_soft_vanishes_and_the_papers_residual_does_not(tree: Tree) -> None:
    _, stats, batch = whole(tree, optimum_reference(tree))
    close(residuals(algorithm(value="soft"), stats, batch), torch.zeros(len(tree.rows), dtype=torch.float64))
    left = residuals(algorithm(), stats, batch)
    # A constant over all paths would be a matter of the baseline.
    assert left.max() - left.min() > 1e-4

    rho = BETA * (stats.get("logprobs") - stats.get("ref_logprobs")).sum(1)
    ref_path = tree.stats(optimum_reference(tree), optimum_reference(tree), list(range(len(tree.paths))))
    value = (
        BETA
        * sum(
            p.exp() * math.exp(r / BETA) for p, r in zip(ref_path.get("logprobs").sum(1), tree.reward, strict=True)
        ).log()
    )
    close(rho, batch.rollout.reward - value)
    close(value, batch.rollout.reward.mean() - BETA * stats.get("token_kl").sum(1).mean())


def test_3_the_papers_residual_vanishes_on_every_path_at_the_policy_of_backward_induction(tree: Tree) -> None:
    _, stats, batch = whole(tree, backward_reference(tree))
    made = algorithm()
    close(residuals(made, stats, batch), torch.zeros(len(tree.rows), dtype=torch.float64))
    loss, _ = made.policy_loss(stats, batch, made.advantage(batch, {}))
    assert loss.item() == pytest.approx(0, abs=1e-20)
    assert residuals(algorithm(value="soft"), stats, batch).abs().max() > 1e-4

    v, q = tree.values()
    implied = made.policy_loss.rewards(stats.get("logprobs"), stats, batch.mask)  # type: ignore[attr-defined]
    suffix = gae(implied, torch.zeros_like(implied), batch.mask)
    for row, path in enumerate(tree.rows):
        for t, (state, action) in enumerate(tree.paths[path]):
            assert implied[row, t].item() == pytest.approx((q[state, action] - v[state]).item(), abs=1e-12)
            assert suffix[row, t].item() == pytest.approx(tree.reward[path] - v[state].item(), abs=1e-12)


def test_3_at_depth_1_the_two_policies_agree() -> None:
    tree = Tree(1, random.Random(fresh_seed()))
    close(optimum_reference(tree), backward_reference(tree))
    _, stats, batch = whole(tree, optimum_reference(tree))
    for value in ("mean", "soft"):
        left = residuals(algorithm(value=value), stats, batch)
        close(left, torch.zeros_like(left))


def reinforce(tree: Tree, theta: Tensor, ref: Tensor, baseline: float) -> Tensor:
    """mean over rows of -(R - baseline) sum log pi."""
    stats = tree.stats(theta, ref, tree.rows)
    reward = torch.tensor([tree.reward[p] for p in tree.rows], dtype=torch.float64)
    return (-(reward - baseline) * stats.get("logprobs").sum(1)).mean()


def test_4_at_the_reference_the_gradient_is_reinforce_times_beta(tree: Tree) -> None:
    theta, stats, batch = whole(tree, tree.policy)
    made = algorithm()
    loss, _ = made.policy_loss(stats, batch, made.advantage(batch, {}))
    expected = BETA * gradient(reinforce(tree, theta, tree.policy, batch.rollout.reward.mean().item()), theta)
    close(gradient(loss, theta), expected)
    assert expected.abs().max() > 1e-4


def test_4_on_policy_it_adds_the_gradient_of_the_kl_at_the_states_visited(tree: Tree) -> None:
    ref = random_policy(tree)
    theta, stats, batch = whole(tree, ref)
    made = algorithm()
    targets = made.advantage(batch, {})
    loss, _ = made.policy_loss(stats, batch, targets)
    pull = BETA * stats.get("token_kl").sum(1).mean()
    descent = gradient(reinforce(tree, theta, ref, batch.rollout.reward.mean().item()), theta)
    expected = BETA * (descent + gradient(pull, theta))
    close(gradient(loss, theta), expected)
    # The stop-gradient is the loss's own, whoever measured the KL.
    close(gradient(made.policy_loss(stats, dataclasses.replace(batch, now=stats), targets)[0], theta), expected)

    grpo = algorithm("dr_grpo", sequence_constant=1.0, kl_coef=BETA, kl_estimator="exact")
    grpo_loss, _ = grpo.policy_loss(stats, batch, grpo.advantage(batch, {}))
    close(gradient(BETA * grpo_loss, theta), expected)

    rho = BETA * (stats.get("logprobs") - stats.get("ref_logprobs"))
    through_kappa = ((rho - BETA * stats.get("token_kl")).sum(1) - targets.get("scores")) ** 2 / 2
    assert (gradient(through_kappa.mean(), theta) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("size", [2, 3])
def test_4_a_finite_groups_mean_shrinks_the_rewards_part(size: int) -> None:
    """Every group of that size that the policy could draw, each as often as it would be drawn."""
    tree = Tree(2, random.Random(fresh_seed()))
    tree.rows = sorted(set(tree.rows)) + tree.rows[:2]
    ref = random_policy(tree)
    theta = tree.policy.clone().requires_grad_()
    drawn = list(itertools.product(tree.rows, repeat=size))
    rows = [path for group in drawn for path in group]
    stats = tree.stats(theta, ref, rows)
    batch = tree.batch(rows, [g for g in range(len(drawn)) for _ in range(size)], stats)
    made = algorithm()
    loss, _ = made.policy_loss(stats, batch, made.advantage(batch, {}))
    descent = gradient(reinforce(tree, theta, ref, sum(tree.reward[p] for p in tree.rows) / len(tree.rows)), theta)
    pull = gradient(BETA * stats.get("token_kl").sum(1).mean(), theta)
    close(gradient(loss, theta), BETA * ((1 - 1 / size) * descent + pull))


@pytest.mark.parametrize("together", [True, False], ids=["group flips", "independent flips"])
def test_5_flips_and_small_groups_shrink_the_target(together: bool) -> None:
    """E[target | response i] = (1 - 2p)(1 - 1/G)(R_i - V)."""
    rng = random.Random(fresh_seed())
    p, solved, size = 0.5 * rng.random(), rng.random(), 4
    for own in (0.0, 1.0):
        expected = 0.0
        for others in itertools.product((0.0, 1.0), repeat=size - 1):
            clean = [own, *others]
            chance = math.prod(solved if r else 1 - solved for r in others)
            for flips in itertools.product((False, True), repeat=1 if together else size):
                weight = chance * math.prod(p if f else 1 - p for f in flips)
                each = flips * size if together else flips
                noisy = torch.tensor([1 - r if f else r for r, f in zip(clean, each, strict=True)], dtype=torch.float64)
                one = torch.zeros(size, dtype=torch.long)
                target = noisy - group_mean(noisy, one, torch.ones(size, dtype=torch.bool))
                expected += weight * target[0].item()
        assert expected == pytest.approx((1 - 2 * p) * (1 - 1 / size) * (own - solved))
