"""The methods in docs/examples/plugins/ against loops from their papers' formulas, in float64, with gradients."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from random_batches import Case, actions, by_group, fresh_case, fresh_seed, make_case
from torch import Tensor

import rlkit
from rlkit import config as configs
from rlkit import registry
from rlkit.conformance import check_algorithm
from rlkit.errors import ConfigError
from rlkit.interfaces.learning import Algorithm, Targets
from rlkit.records.folder import RunFolder

PLUGINS = Path(__file__).resolve().parents[2] / "docs" / "examples" / "plugins"
NAMES = sorted(file.stem for file in PLUGINS.glob("*.py"))

Advantages = dict[tuple[int, int], float]
"""(Row, column) of each token that counts -> its advantage."""


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    registry.load([str(PLUGINS / f"{name}.py") for name in NAMES])


def run(name: str, case: Case, **options: Any) -> tuple[Tensor, Targets]:
    algorithm: Algorithm = registry.build("algorithms", name, options)
    targets = algorithm.advantage(case.batch, {})
    loss, _ = algorithm.policy_loss(case.new, case.batch, targets)
    return loss, targets


def assert_advantages(targets: Targets, expected: Advantages) -> None:
    found = targets.get("advantages")
    naive = torch.zeros_like(found)
    for place, value in expected.items():
        naive[place] = value
    torch.testing.assert_close(found, naive, rtol=1e-9, atol=1e-9)


def assert_same_gradient(loss: Tensor, naive: Tensor, case: Case) -> None:
    torch.testing.assert_close(loss, naive, rtol=1e-9, atol=1e-9)
    logprobs = case.new.get("logprobs")
    found, expected = (torch.autograd.grad(value, logprobs, retain_graph=True)[0] for value in (loss, naive))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert expected.abs().max() > 0


def surrogate(case: Case, at: tuple[int, int], advantage: float, low: float = 0.2, high: float = 0.2) -> Tensor:
    """PPO's, of one token."""
    ratio = (case.new.get("logprobs")[at] - case.batch.old.get("logprobs")[at]).exp()
    clipped = ratio.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def of_rows(case: Case, scores: dict[int, float]) -> Advantages:
    """Each row's number for each of its tokens."""
    return {(row, t): score for row, score in scores.items() for t in actions(case.batch.rollout, row)}


def naive_loss(case: Case, advantages: Advantages, how: str) -> Tensor:
    """The clipped surrogate, averaged over tokens, or over each row's and then over rows, or summed over each row."""
    terms: dict[int, list[Tensor]] = {}
    for (row, t), value in advantages.items():
        terms.setdefault(row, []).append(surrogate(case, (row, t), value))
    if how == "token_mean":
        flat = [term for row in terms.values() for term in row]
        return torch.stack(flat).sum() / len(flat)
    each = [torch.stack(row).sum() / (len(row) if how == "sequence_mean" else 1024.0) for row in terms.values()]
    return torch.stack(each).sum() / len(each)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("beta", "baseline"), [(0.0, "none"), (0.3, "none"), (0.3, "group")])
def test_reinforce_pp(dense: bool, beta: float, baseline: str) -> None:
    case = fresh_case(dense=dense)
    rollout, old = case.batch.rollout, case.batch.old
    returns: Advantages = {}
    for rows in by_group(rollout).values():
        mean = statistics.fmean(float(rollout.reward[row]) for row in rows) if baseline == "group" else 0.0
        for row in rows:
            columns = actions(rollout, row)
            for t in columns:
                later = [s for s in columns if s >= t]
                k1 = sum(float(old.get("logprobs")[row, s] - old.get("ref_logprobs")[row, s]) for s in later)
                earned = float(rollout.reward[row])
                if rollout.token_reward is not None:
                    earned = sum(float(rollout.token_reward[row, s]) for s in later)
                returns[row, t] = earned - beta * k1 - mean
    mean, spread = statistics.fmean(returns.values()), statistics.pstdev(returns.values())
    expected = {at: (value - mean) / math.hypot(spread, 1e-4) for at, value in returns.items()}
    loss, targets = run("reinforce_pp", case, reward_kl_coef=beta, baseline=baseline)
    assert_advantages(targets, expected)
    assert_same_gradient(loss, naive_loss(case, expected, "token_mean"), case)


def test_maxrl() -> None:
    case = fresh_case(p_invalid=0.1)
    rollout = case.batch.rollout
    # Rewards of 0 and 1, of one group all 0.
    rollout.reward = torch.where(rollout.valid, (rollout.reward > 0.5).double(), rollout.reward)
    unsolved, *others = by_group(rollout).values()
    rollout.reward[unsolved] = 0.0
    rollout.reward[others[0][0]] = 1.0
    scores: dict[int, float] = dict.fromkeys(unsolved, 0.0)
    for rows in others:
        mean = statistics.fmean(float(rollout.reward[row]) for row in rows)
        scores |= {row: (float(rollout.reward[row]) - mean) / mean if mean else 0.0 for row in rows}
    expected = of_rows(case, scores)
    loss, targets = run("maxrl", case)
    assert_advantages(targets, expected)
    naive = naive_loss(case, expected, "sequence_sum")
    torch.testing.assert_close(loss, naive, rtol=1e-9, atol=1e-9)


def test_maxrl_s_gradient_is_the_mean_over_right_responses() -> None:
    """The paper's first form: of the K right responses alone, 1/K sum of their scores; the rest is a control variate
    of expectation 0."""
    case = make_case(fresh_seed(), groups=1, p_invalid=0.0, p_env=0.0, off_policy=0.0)
    rollout = case.batch.rollout
    rows = len(rollout.keys)
    rollout.reward = torch.zeros(rows, dtype=torch.float64)
    rollout.reward[:2] = 1.0
    logprobs = case.new.get("logprobs")
    case.batch.old.logprobs = logprobs.detach()
    loss, _ = run("maxrl", case, sequence_constant=1.0)
    right, everyone = (torch.where(rollout.mask, logprobs, 0.0)[:n].sum() for n in (2, rows))
    naive = -(right / 2 - everyone / rows)
    # The surrogate's value is that of ratios, its gradient that of log-probs.
    assert_same_gradient(loss - loss.detach(), naive - naive.detach(), case)


@pytest.mark.parametrize("off_policy", [0.05, 0.8])
def test_gmpo(off_policy: float) -> None:
    case = fresh_case(off_policy=off_policy)
    rollout, old, new = case.batch.rollout, case.batch.old.get("logprobs"), case.new.get("logprobs")
    terms = []
    for rows in by_group(rollout).values():
        rewards = {row: float(rollout.reward[row]) for row in rows}
        mean, spread = statistics.fmean(rewards.values()), statistics.stdev(rewards.values())
        for row, reward in rewards.items():
            score = (reward - mean) / (spread + 1e-6)
            sign = math.copysign(1.0, score)
            columns = actions(rollout, row)
            product = torch.ones((), dtype=torch.float64)
            for t in columns:
                ratio = (new[row, t] - old[row, t]).exp()
                clipped = ratio.clamp(math.exp(-0.4), math.exp(0.4))
                product = product * torch.minimum(ratio**sign, clipped**sign) ** sign
            terms.append(-score * product ** (1 / len(columns)))
    loss, _ = run("gmpo", case)
    assert_same_gradient(loss, torch.stack(terms).sum() / len(terms), case)


def test_opo() -> None:
    case = fresh_case()
    rollout = case.batch.rollout
    scores = {}
    for rows in by_group(rollout).values():
        lengths = {row: len(actions(rollout, row)) for row in rows}
        weighted = sum(lengths[row] * float(rollout.reward[row]) for row in rows)
        scores |= {row: float(rollout.reward[row]) - weighted / sum(lengths.values()) for row in rows}
    expected = of_rows(case, scores)
    loss, targets = run("opo", case, scale=7.0)
    assert_advantages(targets, expected)
    naive = torch.stack([-value * case.new.get("logprobs")[at] for at, value in expected.items()]).sum()
    assert_same_gradient(loss, naive / (7.0 * len(scores)), case)


def test_process_grpo() -> None:
    case = fresh_case(dense=True, p_invalid=0.1)
    rollout = case.batch.rollout
    assert rollout.token_reward is not None
    rollout.token_reward *= torch.rand(rollout.mask.shape) < 0.5  # the others end no step
    rollout.token_reward = torch.where(rollout.mask, rollout.token_reward, 0.0)
    expected: Advantages = {}
    for rows in by_group(rollout).values():
        steps = {
            (row, t): float(rollout.token_reward[row, t])
            for row in rows
            for t in actions(rollout, row)
            if rollout.token_reward[row, t] != 0 or t == actions(rollout, row)[-1]
        }
        mean, spread = statistics.fmean(steps.values()), statistics.stdev(steps.values())
        for row in rows:
            for t in actions(rollout, row):
                later = [reward for (of, at), reward in steps.items() if of == row and at >= t]
                expected[row, t] = sum((reward - mean) / (spread + 1e-6) for reward in later)
    loss, targets = run("process_grpo", case)
    assert_advantages(targets, expected)
    assert_same_gradient(loss, naive_loss(case, expected, "sequence_mean"), case)


def test_process_grpo_without_steps_is_grpo() -> None:
    case = fresh_case()
    grpo: Algorithm = registry.build("algorithms", "grpo", {})
    _, targets = run("process_grpo", case)
    torch.testing.assert_close(targets.get("advantages"), grpo.advantage(case.batch, {}).get("advantages"))


def test_options_that_cannot_be() -> None:
    for name, options in (("gmpo", {"clip": 0}), ("opo", {"scale": -1}), ("reinforce_pp", {"baseline": "mean"})):
        with pytest.raises(ConfigError, match=r"'algorithm\.(clip|scale|baseline)'"):
            registry.build("algorithms", name, options)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract(name: str) -> None:
    check_algorithm(name)


def test_the_table_says_what_there_is() -> None:
    rows = re.findall(r"^\| \[`(\w+)\.py`\]\(\w+\.py\) \| .* \| (\d+) \| ", (PLUGINS / "README.md").read_text(), re.M)
    lines = {name: len((PLUGINS / f"{name}.py").read_text().splitlines()) for name in NAMES}
    assert {name: int(count) for name, count in rows} == lines
    assert max(lines.values()) < 60


STEPS = """
from rlkit import RewardResult, reward


@reward("credited_steps")
def steps(samples):
    return [judge(sample) for sample in samples]


def judge(sample):
    earned = [0.0] * len(sample.tokens)
    earned[0] = float(sample.response[:1] == sample.answer[:1])
    earned[-1] += float(sample.response.endswith(sample.answer))
    return RewardResult(value=sum(earned), token_values=earned)
"""


@pytest.mark.slow
def test_steps_that_a_reward_credits_are_learnt(tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text(STEPS)
    plugins = f"plugins=[{PLUGINS / 'process_grpo.py'},{tmp_path / 'steps.py'}]"
    own = [f"out={tmp_path}", "name=r", plugins, "reward=credited_steps", "eval.problems=2", "steps=20"]
    rlkit.train(configs.load("embedded_xs", own, "process_grpo"), quiet=True)
    rewards = [row["reward/clean"] for row in RunFolder.open(tmp_path / "r").read_metrics() if "reward/clean" in row]
    assert statistics.fmean(rewards[-5:]) > statistics.fmean(rewards[:5]) + 0.02
