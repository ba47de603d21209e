"""VIMPO's two forms over turns, in float64 on a bandit of two turns whose optimal values are known.

A first action, an answer of the environment that depends on it by chance, a second action; rewards come by turn, and
one answer ends the trajectory at once. Every group that a policy could draw is in the batch, weighed by its chance, so
that expectations are exact.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from random_batches import fresh_seed
from torch import Tensor

from rlkit import registry
from rlkit.interfaces.learning import Batch, Rollout, Targets, TokenStats
from rlkit.interfaces.rewards import SampleKey

BETA = 0.4
PLAYS = [(a, o, b) for a in (0, 1) for o in (0, 1) for b in (0, 1) if (a, o) != (1, 1)] + [(1, 1, None)]
"""First action, answer, second action; after the first action 1 the answer 1 ends it."""
STATES = {(0, 0): 1, (0, 1): 2, (1, 0): 3}
"""In which the second action is chosen; the first is in state 0."""
FORMS = ("trajectory", "turn")


@dataclass
class Bandit:
    answers: Tensor
    """[first action, answer], chances."""
    first: Tensor
    """[first action, answer], rewards of the first turn."""
    second: Tensor
    """[state, second action], rewards of the second."""
    ref: Tensor
    """[state, action], log-probs."""

    def worth(self, policy: Tensor) -> tuple[Tensor, Tensor]:
        """V [state] and Q [state, action] of a policy's log-probs: the reward to come, on average."""
        q = self.second.clone()
        value = (policy.exp() * q).sum(1)
        follows = torch.stack([value[1:3], torch.stack([value[3], value.new_zeros(())])])
        q[0] = (self.answers * (self.first + follows)).sum(1)
        value[0] = policy[0].exp() @ q[0]
        return value, q

    def optimum(self, beta: float) -> Tensor:
        """log pi+ [state, action]: proportional to ref exp(Q / beta), Q its own; from the end to the beginning."""
        later = (self.ref + self.second / beta).log_softmax(1)
        return (self.ref + self.worth(later)[1] / beta).log_softmax(1)

    def chances(self, policy: Tensor) -> list[float]:
        """Of each play."""
        p = policy.exp()
        return [float(p[0, a] * self.answers[a, o] * (1 if b is None else p[STATES[a, o], b])) for a, o, b in PLAYS]

    def stats(self, policy: Tensor, plays: list[int]) -> TokenStats:
        kl = (policy.exp() * (policy - self.ref)).sum(1)
        none = torch.zeros(()).double()

        def table(first: Any, second: Any) -> Tensor:
            found = []
            for a, o, b in (PLAYS[play] for play in plays):
                found.append(torch.stack([first(a), none, none if b is None else second(STATES[a, o], b)]))
            return torch.stack(found)

        return TokenStats(
            logprobs=table(lambda a: policy[0, a], lambda s, b: policy[s, b]),
            ref_logprobs=table(lambda a: self.ref[0, a], lambda s, b: self.ref[s, b]),
            token_kl=table(lambda _: kl[0], lambda s, _: kl[s]),
        )

    def batch(self, plays: list[int], group: list[int], at: TokenStats) -> Batch:
        which = [PLAYS[play] for play in plays]
        ends = torch.tensor([b is None for _, _, b in which])
        mask = torch.tensor([[True, False, b is not None] for _, _, b in which])
        rewards = torch.zeros(len(plays), 3).double()
        for row, (a, o, b) in enumerate(which):
            rewards[row, 0] = self.first[a, o]
            if b is not None:
                rewards[row, 2] = self.second[STATES[a, o], b]
        rollout = Rollout(
            keys=[SampleKey("bandit", 1, 0, i) for i in range(len(plays))],
            prompt_tokens=[torch.tensor([0])] * len(plays),
            tokens=torch.tensor([[a, 10 + o, b or 0] for a, o, b in which]),
            length=torch.where(ends, 1, 3),
            mask=mask,
            valid=torch.ones(len(plays), dtype=torch.bool),
            group=torch.tensor(group),
            reward=rewards.sum(1),
            clean_reward=rewards.sum(1),
            token_reward=rewards,
            sampler_logprobs=torch.zeros(len(plays), 3).double(),
            version=torch.zeros(len(plays), dtype=torch.long),
            turns=[[(0, 1)] if b is None else [(0, 1), (2, 3)] for _, _, b in which],
            truncated=torch.zeros(len(plays), dtype=torch.bool),
        )
        frozen = at._map(Tensor.detach)
        return Batch(rollout=rollout, old=frozen, now=frozen, n_sequences=len(plays), n_tokens=int(mask.sum()))

    def gradients(self, policy: Tensor, size: int, **options: Any) -> tuple[Tensor, Tensor]:
        """Of VIMPO's loss at a policy's logits: mean and variance, each [state, action], over the groups it draws."""
        algorithm = registry.build("algorithms", "vimpo", {"beta": BETA, "actor_coef": 0.0} | options)
        drawn = list(itertools.product(range(len(PLAYS)), repeat=size))
        plays = [play for group in drawn for play in group]
        chances = self.chances(policy)
        weight = torch.tensor([math.prod(chances[play] for play in group) for group in drawn], dtype=torch.float64)
        stats = self.stats(policy, plays)._map(lambda x: x.detach().requires_grad_())
        batch = self.batch(plays, [g for g in range(len(drawn)) for _ in range(size)], stats)
        loss, _ = algorithm.policy_loss(stats, batch, algorithm.advantage(batch, {}))
        (by_token,) = torch.autograd.grad(loss * len(drawn), [stats.get("logprobs")])
        by_group = torch.zeros(len(drawn), 4, 2).double()
        for row, play in enumerate(plays):
            a, o, b = PLAYS[play]
            for column, state, action in ((0, 0, a), (2, STATES.get((a, o), 0), b)):
                if action is not None:
                    score = torch.eye(2).double()[action] - policy[state].exp()
                    by_group[row // size, state] += by_token[row, column] * score
        mean = torch.einsum("g,gsa->sa", weight, by_group)
        return mean, torch.einsum("g,gsa->sa", weight, (by_group - mean) ** 2)


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


def randint(low: int, high: int) -> int:
    return int(torch.randint(low, high, ()))


@pytest.fixture
def bandit() -> Bandit:
    fresh_seed()
    chance = 0.2 + 0.6 * rand(2)
    return Bandit(
        answers=torch.stack([chance, 1 - chance], 1),
        first=rand(2, 2),
        second=rand(4, 2),
        ref=(rand(4, 2)).log_softmax(1),
    )


def close(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize("value", ["mean", "soft"])
@pytest.mark.parametrize("size", [2, 3])
def test_on_policy_both_forms_have_the_same_expected_gradient(bandit: Bandit, size: int, value: str) -> None:
    """At any policy, in groups of any size: the estimates of V differ, and are no function of what is then done."""
    policy = rand(4, 2).log_softmax(1)
    one, other = (bandit.gradients(policy, size, residual=form, value=value)[0] for form in FORMS)
    close(one, other)
    assert one.abs().max() > 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_descent_ends_at_the_policy_of_backward_induction(bandit: Bandit, form: str) -> None:
    """In groups of n at that of beta / (1 - 1 / n), since their mean shrinks the target. Each step is Newton's on what
    the expected gradient says of a state: divided by how often it is come to, and by the policy's chance."""
    size = 2
    expected = bandit.optimum(BETA / (1 - 1 / size))
    logits = bandit.ref.clone()
    for _ in range(30):
        policy = logits.log_softmax(1)
        p = policy.exp()
        visits = torch.stack([p.new_ones(()), *(p[0, a] * bandit.answers[a, o] for a, o in STATES)])
        gradient, _ = bandit.gradients(policy, size, residual=form)
        logits = policy - gradient / (visits.unsqueeze(1) * p) / BETA**2
    close(logits.log_softmax(1), expected, 1e-9)
    assert (expected - bandit.ref).abs().max() > 1e-2


def test_what_came_before_a_turn_is_no_noise_to_it(bandit: Bandit) -> None:
    """Where the first turn's reward is a matter of luck, and large, the second action's gradient varies much less."""
    bandit.first[:, 0] += 5
    policy = rand(4, 2).log_softmax(1)
    spread = {form: bandit.gradients(policy, 3, residual=form)[1][1:].sum().item() for form in FORMS}
    assert spread["turn"] < 0.6 * spread["trajectory"]


def at_the_optimum(bandit: Bandit, copies: int, by_chance: bool) -> tuple[TokenStats, Batch, list[int]]:
    """A batch, one group, in which every play is as frequent as at pi+, and the plays. To that end policy and chances
    are made of small whole numbers, and the reference to go with them. Not by chance: an action has one answer."""
    answer = torch.randint(0, 2, (2,)).tolist()
    counts = [randint(1, 4) if by_chance or answer[a] == o else 0 for a, o, _ in PLAYS]
    visits, answers = torch.zeros(4, 2).double(), torch.zeros(2, 2).double()
    for (a, o, b), count in zip(PLAYS, counts, strict=True):
        answers[a, o] += count
        visits[0, a] += count
        if b is not None:
            visits[STATES[a, o], b] += count
    visits[visits.sum(1) == 0] = 1  # never come to
    policy = (visits / visits.sum(1, keepdim=True)).log()
    bandit.answers = answers / answers.sum(1, keepdim=True)
    bandit.ref = (policy - bandit.worth(policy)[1] / BETA).log_softmax(1)
    close(bandit.optimum(BETA), policy)
    plays = [play for play, count in enumerate(counts) for _ in range(count * copies)]
    stats = bandit.stats(policy, plays)
    return stats, bandit.batch(plays, [0] * len(plays), stats), plays


def of_the_loss(stats: TokenStats, batch: Batch, **options: Any) -> tuple[float, Targets]:
    algorithm = registry.build("algorithms", "vimpo", {"beta": BETA} | options)
    targets = algorithm.advantage(batch, {})
    _, metrics = algorithm.policy_loss(stats, batch, targets)
    total, weight = metrics["vimpo/value_loss"]
    return (total / weight).item(), targets


@pytest.mark.filterwarnings("ignore:vimpo")
def test_where_an_action_has_one_answer_both_forms_vanish_at_the_optimum(bandit: Bandit) -> None:
    """By turn as the visitors of each state grow many; and the credit's value is the optimal one at each turn."""
    stats, batch, plays = at_the_optimum(bandit, 200, by_chance=False)
    whole, targets = of_the_loss(stats, batch)
    assert whole == pytest.approx(0, abs=1e-20)
    by_turn, _ = of_the_loss(stats, batch, residual="turn")
    assert by_turn < 1e-5
    assert of_the_loss(stats, batch, residual="turn", beta=3 * BETA)[0] > 1e-4

    value = bandit.worth(bandit.optimum(BETA))[0]
    for row, (a, o, b) in enumerate(PLAYS[play] for play in plays):
        assert targets.credit["value"][row, 0].item() == pytest.approx(value[0].item())
        if b is not None:
            assert targets.credit["value"][row, 2].item() == pytest.approx(value[STATES[a, o]].item())


@pytest.mark.filterwarnings("ignore:vimpo")
def test_by_chance_what_the_environment_draws_is_left(bandit: Bandit) -> None:
    """To a trajectory all of it, to a turn what is drawn from then on: nothing, for the second."""
    stats, batch, plays = at_the_optimum(bandit, 200, by_chance=True)
    whole, targets = of_the_loss(stats, batch)
    by_turn, turns = of_the_loss(stats, batch, residual="turn")
    value, q = bandit.worth(bandit.optimum(BETA))
    drawn = []
    for row, (a, o, b) in enumerate(PLAYS[play] for play in plays):
        comes = bandit.first[a, o] + (0 if b is None else value[STATES[a, o]])
        drawn.append((comes - q[0, a]).item())
        if b is not None:
            # The credit is not told what was drawn: its value is the mean over the answers.
            assert targets.credit["value"][row, 2].item() == pytest.approx((q[0, a] - bandit.first[a, o]).item())
    left = sum(x * x / 2 for x in drawn) / len(drawn)
    assert whole == pytest.approx(left)
    assert by_turn == pytest.approx(left, rel=0.02, abs=1e-5)
    implied = BETA * (stats.get("logprobs") - stats.get("ref_logprobs") - stats.get("token_kl"))
    second = batch.mask[:, 2]
    assert (implied - turns.get("returns"))[second, 2].abs().max() < 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_at_the_optimum_every_groups_gradient_is_0_on_average_and_elsewhere_it_is_not(
    bandit: Bandit, form: str
) -> None:
    n = 3
    at = bandit.optimum(BETA / (1 - 1 / n))
    close(bandit.gradients(at, n, residual=form)[0], torch.zeros(4, 2).double())
    assert bandit.gradients(bandit.optimum(BETA / 3), n, residual=form)[0].abs().max() > 1e-4
