"""Algorithms over trajectories of several turns, with rewards on the way, against loops over rows and turns."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import pytest
import torch
from random_batches import actions, by_group, fresh_case
from test_grpo import assert_same
from torch import Tensor

from rlkit import registry
from rlkit.conformance.batches import Case
from rlkit.interfaces.learning import Rollout

SHAPE = {"groups": 3, "per_group": 6, "length": 9, "p_shared": 0.6}


def turns_of(rollout: Rollout, row: int) -> list[list[int]]:
    """The columns of each turn."""
    assert rollout.turns is not None
    return [list(range(start, end)) for start, end in rollout.turns[row]]


def to_go(rollout: Rollout, row: int) -> list[float]:
    """Of each turn, what is earned from its first token on."""
    if rollout.token_reward is None:
        return [rollout.reward[row].item()] * len(turns_of(rollout, row))
    earned = [rollout.token_reward[row, t].item() for t in range(int(rollout.length[row]))]
    return [sum(earned[columns[0] :]) for columns in turns_of(rollout, row)]


def case_of_turns(dense: bool = True, **shape: Any) -> Case:
    """In which some group has turns of one number in several rows, and some row a turn that no other has."""
    while True:
        case = fresh_case(**{**SHAPE, "dense": dense, **shape})
        counts = [
            [len(turns_of(case.batch.rollout, i)) for i in members] for members in by_group(case.batch.rollout).values()
        ]
        deep = [sorted(each)[-2:] for each in counts if len(each) > 1]
        if any(a > 1 for a, _ in deep) and any(a < b for a, b in deep):
            return case


def advantages(case: Case, **options: Any) -> Tensor:
    found: Tensor = registry.build("algorithms", "grpo", options).advantage(case.batch, {}).get("advantages")
    return found


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_group_compares_what_a_turn_still_earns_among_turns_of_its_number(
    dense: bool, divide: bool, leave_one_out: bool
) -> None:
    case = case_of_turns(dense)
    rollout = case.batch.rollout
    baseline = "leave_one_out" if leave_one_out else "mean"
    found = advantages(case, credit="turn", divide_by_std=divide, baseline=baseline)
    assert not found[~case.batch.mask].any()
    alone = 0
    for members in by_group(rollout).values():
        for i in members:
            for k, columns in enumerate(turns_of(rollout, i)):
                there = {j: to_go(rollout, j)[k] for j in members if len(turns_of(rollout, j)) > k}
                rest = [g for j, g in there.items() if j != i]
                mean = statistics.fmean(rest if leave_one_out and rest else there.values())
                spread = statistics.stdev(there.values()) if rest else 0.0
                expected = (there[i] - mean) / (spread + 1e-6 if divide else 1.0)
                assert found[i, columns].tolist() == pytest.approx([expected] * len(columns), abs=1e-9)
                alone += not rest
                assert rest or expected == 0
    assert alone


def test_with_all_reward_at_the_end_only_members_that_have_ended_are_missing() -> None:
    """Turns that every member reaches have the trajectory's advantage."""
    case = case_of_turns(dense=False)
    rollout = case.batch.rollout
    found, whole = advantages(case, credit="turn"), advantages(case)
    same = 0
    for members in by_group(rollout).values():
        least = min(len(turns_of(rollout, i)) for i in members)
        for i in members:
            for columns in turns_of(rollout, i)[:least]:
                torch.testing.assert_close(found[i, columns], whole[i, columns])
                same += 1
    assert same
    assert not torch.allclose(found, whole)


@pytest.mark.parametrize("named", [True, False])
def test_where_each_response_is_one_turn_the_forms_are_one(named: bool) -> None:
    case = fresh_case(dense=True)
    lengths = case.batch.rollout.length.tolist()
    case.batch.rollout.turns = [[(0, length)] for length in lengths] if named else None
    torch.testing.assert_close(advantages(case, credit="turn"), advantages(case))
    losses = []
    for form in ("trajectory", "turn"):
        algorithm = registry.build("algorithms", "vimpo", {"beta": 0.1, "residual": form})
        loss, metrics = algorithm.policy_loss(case.new, case.batch, algorithm.advantage(case.batch, {}))
        losses.append((loss, metrics))
    assert_same(losses[1][0], losses[0][0], case)
    for name, pair in losses[0][1].items():
        assert [x.item() for x in losses[1][1][name]] == pytest.approx([x.item() for x in pair]), name


def test_an_overlong_penalty_is_taken_off_every_turn() -> None:
    case = case_of_turns()
    penalty = {"limit": 3, "buffer": 2, "scale": 0.5}
    found = advantages(case, credit="turn", divide_by_std=False, overlong_penalty=penalty)
    for i in by_group(case.batch.rollout).values():
        for row in i:
            off = 0.5 * min(max((len(actions(case.batch.rollout, row)) - 1) / 2, 0), 1)
            assert case.batch.rollout.token_reward is not None
            case.batch.rollout.token_reward[row, actions(case.batch.rollout, row)[-1]] -= off
            case.batch.rollout.reward[row] -= off
    torch.testing.assert_close(found, advantages(case, credit="turn", divide_by_std=False))


def naive_turn_scores(case: Case, beta: float, soft: bool) -> dict[tuple[int, int], float]:
    """(row, turn) -> G_k - V_k, from what the formula says of the group's other members."""
    rollout, scores = case.batch.rollout, {}
    for members in by_group(rollout).values():
        n = len(members)
        earns = {(i, k): g for i in members for k, g in enumerate(to_go(rollout, i))}
        kl = {
            (i, k): sum(case.batch.old.token_kl[i, t].item() for c in turns_of(rollout, i)[k:] for t in c)
            for i, k in earns
        }
        worth = {at: g - beta * kl[at] * soft for at, g in earns.items()}
        for i, k in earns:
            reach = [j for j in members if j != i and (j, k) in earns]
            alike = [j for j in reach if k == 0 or _said(rollout, j, k) == _said(rollout, i, k)]
            at = (i, k) if reach else (i, 0)
            others = [worth[j, at[1]] for j in alike or reach or members if j != i]
            scores[i, k] = earns[at] - (worth[at] / n + (1 - 1 / n) * statistics.fmean(others))
    return scores


def _said(rollout: Rollout, row: int, turn: int) -> list[int]:
    """All text from the first turn to the beginning of another."""
    turns = turns_of(rollout, row)
    return [turns[turn][0], *rollout.tokens[row, turns[0][0] : turns[turn][0]].tolist()]


@pytest.mark.parametrize("repeat", range(3))
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("value", ["mean", "soft"])
def test_vimpo_by_turn_holds_each_beginning_against_what_is_still_earned(repeat: int, dense: bool, value: str) -> None:
    case, beta = case_of_turns(dense), 0.3
    batch, rollout = case.batch, case.batch.rollout
    scores = naive_turn_scores(case, beta, value == "soft")
    algorithm = registry.build(
        "algorithms", "vimpo", {"beta": beta, "value": value, "actor_coef": 0.0, "residual": "turn"}
    )
    # Without an actor part KL_t and the reference come from the update's own forward; soft takes them from `old`.
    new = dataclasses.replace(case.new, token_kl=batch.now.token_kl, ref_logprobs=batch.now.ref_logprobs)
    targets = algorithm.advantage(batch, {})
    naive, total, sizes = torch.zeros((), dtype=torch.float64), 0.0, []
    for (i, k), score in scores.items():
        residual: Tensor | float = -score
        for number, columns in enumerate(turns_of(rollout, i)):
            for t in columns:
                step = beta * (new.get("logprobs")[i, t] - new.get("ref_logprobs")[i, t])
                if value == "mean":
                    step = step - beta * new.get("token_kl")[i, t]
                if number >= k:
                    residual = residual + (step if number == k else step.detach())
        assert isinstance(residual, Tensor)
        sizes.append(abs(residual.item()))
        total += residual.item() ** 2
        naive = naive + residual**2 / 2 / batch.n_sequences
        columns = turns_of(rollout, i)[k]
        assert targets.get("returns")[i, columns].tolist() == pytest.approx([score] * len(columns), abs=1e-12)
    loss, metrics = algorithm.policy_loss(new, batch, targets)
    assert_same(loss, naive, case)
    means = {name: (a / b).item() for name, (a, b) in metrics.items()}
    assert means["vimpo/residual"] == pytest.approx(statistics.fmean(sizes))
    squares = sum(s * s for s in scores.values())
    assert means["vimpo/explained"] == pytest.approx(1 - total / squares)
    assert targets.scalars["vimpo/target_rms"] == pytest.approx((squares / len(scores)) ** 0.5)


def test_vimpo_by_trajectory_takes_the_sum_of_rewards_wherever_they_fall() -> None:
    case = case_of_turns()
    algorithm = registry.build("algorithms", "vimpo", {"beta": 0.1})
    found = []
    for _ in range(2):
        targets = algorithm.advantage(case.batch, {})
        loss, _ = algorithm.policy_loss(case.new, case.batch, targets)
        found.append((loss.item(), targets.get("scores"), targets.get("advantages"), targets.credit["credit"]))
        case.batch.rollout.token_reward = None
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("value", ["mean", "soft"])
def test_the_implied_value_is_of_the_rewards_still_to_come(value: str) -> None:
    """What came before a token is no part of its worth."""
    case = case_of_turns()
    rollout, beta = case.batch.rollout, 0.1
    targets = registry.build("algorithms", "vimpo", {"beta": beta, "value": value}).advantage(case.batch, {})
    stats = case.batch.now if value == "mean" else case.batch.old
    assert rollout.token_reward is not None
    for members in by_group(rollout).values():
        kl = {i: sum(stats.token_kl[i, t].item() for t in actions(rollout, i)) for i in members}
        start = statistics.fmean(rollout.reward[i].item() - beta * kl[i] * (value == "soft") for i in members)
        for i in members:
            worth = start
            for t in range(int(rollout.length[i])):
                if rollout.mask[i, t]:
                    assert targets.credit["value"][i, t].item() == pytest.approx(worth)
                    worth += beta * (stats.logprobs[i, t] - stats.ref_logprobs[i, t]).item()
                    worth -= beta * stats.token_kl[i, t].item() * (value == "mean")
                worth -= rollout.token_reward[i, t].item()


@pytest.mark.parametrize(("lam", "gamma"), [(1.0, 1.0), (0.9, 1.0), (0.7, 0.8)])
def test_gae_goes_from_the_last_token_of_a_turn_to_the_first_of_the_next(lam: float, gamma: float) -> None:
    """With each turn's reward at its last token, or on what the environment then says; the critic is asked of the state
    in which a turn begins."""
    case = case_of_turns(compares_groups=False)
    batch, rollout = case.batch, case.batch.rollout
    assert rollout.token_reward is not None
    by_turn: dict[int, list[float]] = {}
    for i in range(len(rollout.keys)):
        if rollout.valid[i]:
            rollout.token_reward[i] = 0.0
            by_turn[i] = torch.randn(len(turns_of(rollout, i)), dtype=torch.float64).tolist()
            for reward, columns in zip(by_turn[i], turns_of(rollout, i), strict=True):
                follows = columns[-1] + 1
                answered = follows < rollout.length[i] and not rollout.mask[i, follows]
                rollout.token_reward[i, follows if answered else columns[-1]] = reward
            rollout.reward[i] = sum(by_turn[i])
    found = registry.build("advantages", "gae", {"lam": lam, "gamma": gamma})(batch, {}).get("returns")
    for i, rewards in by_turn.items():
        steps = [
            (t, reward if t == columns[-1] else 0.0)
            for reward, columns in zip(rewards, turns_of(rollout, i), strict=True)
            for t in columns
        ]
        value = {t: batch.old.get("values")[i, t].item() for t, _ in steps}
        for at, (t, _) in enumerate(steps):
            expected = value[t]
            for later in range(at, len(steps)):
                column, reward = steps[later]
                follows = value[steps[later + 1][0]] if later + 1 < len(steps) else 0.0
                expected += (gamma * lam) ** (later - at) * (reward + gamma * follows - value[column])
            assert found[i, t].item() == pytest.approx(expected, abs=1e-12)


def test_it_gives_and_reads_what_its_form_needs() -> None:
    whole = registry.build("algorithms", "vimpo", {})
    by_turn = registry.build("algorithms", "vimpo", {"residual": "turn"})
    assert whole.gives == whole.reads == {"scores", "coefs", "advantages"}
    assert by_turn.gives == by_turn.reads == {"returns", "coefs", "advantages"}
    assert by_turn.needs == whole.needs
