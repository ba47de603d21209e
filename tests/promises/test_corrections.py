"""A correction weighs what a loss learns for the difference between sampler and learner; what it masks is not there.

The mathematics is held against loops over the tokens that are left; then runs with a truncated sampler are made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from learner_help import Update, learner_of, settings
from random_batches import actions, fresh_case
from torch import Tensor

import rlkit
from rlkit import config as configs
from rlkit import registry
from rlkit.cli import main
from rlkit.config import CorrectionConfig
from rlkit.conformance.batches import Case
from rlkit.errors import RlkitError
from rlkit.generation import transformers
from rlkit.interfaces.generation import Completion, Request
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, Targets, TokenStats
from rlkit.records.folder import RunFolder

LIMIT = 1.5
MASKS = [CorrectionConfig(mode="mask", level=level, limit=LIMIT) for level in ("token", "sequence")]
EVERY = [
    *MASKS,
    *(CorrectionConfig(mode="truncate", level=level, limit=LIMIT) for level in ("token", "sequence")),
]
names = [f"{each.level}-{each.mode}" for each in EVERY]


def mismatched(**shape: Any) -> Case:
    """A batch whose sampler had a distribution of its own, so that a mask leaves out tokens, rows and not all."""
    case = fresh_case(groups=6, **shape)
    rollout = case.batch.rollout
    apart = torch.where(torch.rand(len(rollout.keys), 1) < 0.4, 1.0, 0.1) * torch.randn(rollout.mask.shape)
    rollout.sampler_logprobs = torch.where(rollout.mask, case.batch.now.logprobs + apart, 0.0)
    return case


def naive_weights(case: Case, correction: CorrectionConfig) -> dict[tuple[int, int], float]:
    """(row, column) -> weight, of the tokens that are left."""
    rollout, old = case.batch.rollout, case.batch.now.get("logprobs")
    found = {}
    for i in range(len(rollout.keys)):
        columns = actions(rollout, i)
        ratios = {t: math.exp(old[i, t].item() - rollout.sampler_logprobs[i, t].item()) for t in columns}
        for t in columns:
            weight = math.prod(ratios.values()) if correction.level == "sequence" else ratios[t]
            if correction.mode == "truncate":
                found[i, t] = min(weight, LIMIT)
            elif 1 / LIMIT <= weight <= LIMIT:
                found[i, t] = weight
    return found


def learnt(case: Case, algo: str, correction: CorrectionConfig, *more: str, algorithm: Algorithm | None = None) -> Any:
    """Every update that the learner makes of the batch: of the policy, and of a critic."""
    config = settings(algo, *more).model_copy(update={"correction": correction})
    learner, policy = learner_of(case, config, algorithm)
    learner.learn(case.batch.rollout, learner.measure(case.batch.rollout, 1), 1)
    return policy.made, [] if learner.critic is None else learner.critic.made


def left(update: Update, weights: dict[tuple[int, int], float]) -> dict[int, list[int]]:
    """Row -> columns of its tokens that are left, of the rows in this update."""
    found: dict[int, list[int]] = {}
    for i, t in weights:
        if i in update.rows:
            found.setdefault(i, []).append(t)
    return found


def surrogate(update: Update, case: Case, i: int, t: int, low: float, high: float, dual: float = math.inf) -> Tensor:
    """PPO's, of one token."""
    a = update.targets.get("advantages")[update.rows.index(i), t].item()
    ratio = (case.new.get("logprobs")[i, t] - case.batch.now.get("logprobs")[i, t]).exp()
    clipped = ratio.clamp(1 - low, 1 + high)
    gain = torch.minimum(ratio * a, clipped * a)
    return -gain.clamp(min=dual * a) if a < 0 and dual < math.inf else -gain


def assert_same(update: Update, naive: Tensor, case: Case, *, moves: bool = True) -> None:
    torch.testing.assert_close(update.loss, naive, rtol=1e-9, atol=1e-12)
    for name, gradient in update.gradients.items():
        leaf = getattr(case.new, name)
        (expected,) = torch.autograd.grad(naive, [leaf], allow_unused=True, retain_graph=True)
        expected = torch.zeros_like(leaf) if expected is None else expected
        here = case.batch.rollout.mask
        torch.testing.assert_close(gradient[here], expected[here], rtol=1e-8, atol=1e-12)
    assert not moves or any(gradient[case.batch.rollout.mask].any() for gradient in update.gradients.values())


AVERAGES: dict[str, Callable[[dict[int, list[int]]], Callable[[int], float]]] = {
    "token_mean": lambda tokens: lambda i: sum(map(len, tokens.values())),
    "sequence_mean": lambda tokens: lambda i: len(tokens) * len(tokens[i]),
    "sequence_sum": lambda tokens: lambda i: len(tokens) * 64.0,
}


@pytest.mark.parametrize("correction", EVERY, ids=names)
@pytest.mark.parametrize(
    ("algo", "average", "high"),
    [("grpo", "token_mean", 0.2), ("grpo", "sequence_mean", 0.2), ("grpo", "sequence_sum", 0.2), ("dapo", None, 0.28)],
)
def test_what_is_masked_leaves_sum_and_count_and_what_is_left_is_weighted(
    algo: str, average: str | None, high: float, correction: CorrectionConfig
) -> None:
    case = mismatched()
    weights = naive_weights(case, correction)
    masked = {(int(i), int(t)) for i, t in case.batch.rollout.mask.nonzero()} - weights.keys()
    assert bool(masked) == (correction.mode == "mask")
    options = ["algo.sequence_constant=64", f"algo.aggregation={average}"] if average else []
    (update,), _ = learnt(case, algo, correction, *options)
    tokens = left(update, weights)
    count = AVERAGES[average or "token_mean"](tokens)
    naive = torch.zeros((), dtype=torch.float64)
    for i, columns in tokens.items():
        for t in columns:
            naive = naive + weights[i, t] * surrogate(update, case, i, t, 0.2, high) / count(i)
    assert_same(update, naive, case)
    for i, t in masked:
        assert update.gradients["logprobs"][i, t] == 0


@pytest.mark.parametrize("correction", EVERY, ids=names)
def test_at_the_weights_that_it_began_with_a_tokens_gradient_is_its_weight_times_its_advantage(
    correction: CorrectionConfig,
) -> None:
    """In closed form: with pi = pi_old the ratio is 1 and no clip acts, so dL/dlog pi = -w A / n."""
    case = mismatched()
    with torch.no_grad():
        case.new.get("logprobs").copy_(case.batch.now.get("logprobs"))
    weights = naive_weights(case, correction)
    (update,), _ = learnt(case, "grpo", correction, "algo.aggregation=token_mean")
    expected = torch.zeros_like(update.gradients["logprobs"])
    assert expected.dtype == torch.float64
    for (i, t), weight in weights.items():
        expected[i, t] = -weight * update.targets.get("advantages")[update.rows.index(i), t] / len(weights)
    mask = case.batch.rollout.mask
    torch.testing.assert_close(update.gradients["logprobs"][mask], expected[mask], rtol=1e-9, atol=1e-14)
    assert expected.any()


@pytest.mark.parametrize("correction", MASKS, ids=names[:2])
def test_kl_and_entropy_of_masked_tokens_leave_too(correction: CorrectionConfig) -> None:
    """They are not weighted: they are of states, not of what was drawn."""
    case = mismatched()
    weights = naive_weights(case, correction)
    (update,), _ = learnt(
        case, "grpo", correction, "algo.kl_coef=0.3", "algo.kl_estimator=exact", "algo.entropy_coef=0.1",
        "algo.aggregation=token_mean",
    )  # fmt: skip
    naive = torch.zeros((), dtype=torch.float64)
    for i, t in weights:
        rest = 0.3 * case.new.get("token_kl")[i, t] - 0.1 * case.new.get("entropy")[i, t]
        naive = naive + (weights[i, t] * surrogate(update, case, i, t, 0.2, 0.2) + rest) / len(weights)
    assert_same(update, naive, case)


@pytest.mark.parametrize("correction", MASKS, ids=names[:2])
def test_each_of_several_minibatches_counts_what_is_left_of_its_own(correction: CorrectionConfig) -> None:
    case = mismatched()
    weights = naive_weights(case, correction)
    updates, _ = learnt(
        case, "grpo", correction, "batch.prompts_per_step=6", "batch.minibatches=3", "algo.aggregation=token_mean"
    )
    assert len(updates) == 3
    for update in updates:
        tokens = left(update, weights)
        naive = torch.zeros((), dtype=torch.float64)
        for i, columns in tokens.items():
            for t in columns:
                term = surrogate(update, case, i, t, 0.2, 0.2)
                naive = naive + weights[i, t] * term / sum(map(len, tokens.values()))
        assert_same(update, naive, case, moves=False)
        assert update.batch.n_tokens == sum(map(len, tokens.values()))
        assert update.batch.n_sequences == len(tokens)


@pytest.mark.parametrize("correction", EVERY, ids=names)
def test_of_ppo_the_critics_loss_loses_the_masked_tokens_and_is_not_weighted(correction: CorrectionConfig) -> None:
    case = mismatched(compares_groups=False)
    weights = naive_weights(case, correction)
    (update,), (critic,) = learnt(case, "ppo", correction)
    naive, values = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for i, t in weights:
        naive = naive + weights[i, t] * surrogate(update, case, i, t, 0.2, 0.2) / len(weights)
        new, old = case.new.get("values")[i, t], case.batch.now.get("values")[i, t].item()
        goal = critic.targets.get("returns")[critic.rows.index(i), t].item()
        near = new.clamp(old - 0.2, old + 0.2)
        values = values + torch.maximum((new - goal) ** 2, (near - goal) ** 2) / 2 / len(weights)
    assert_same(update, naive, case)
    assert_same(critic, values, case)


class Plain:
    """A loss as a user would write it."""

    reads: ClassVar[frozenset[str]] = frozenset({"advantages", "importance"})

    def __call__(self, new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        ratio = (new.get("logprobs") - batch.old.get("logprobs")).exp()
        gain = ratio * targets.get("advantages")
        if targets.importance is not None:
            gain = gain * targets.importance
        return -(gain[batch.mask].sum() / batch.n_tokens), {}


@pytest.mark.parametrize("correction", EVERY, ids=names)
def test_a_plain_loss_of_ones_own_is_corrected_by_mask_and_count(correction: CorrectionConfig) -> None:
    case = mismatched(outside=0.0)
    weights = naive_weights(case, correction)
    algorithm = Algorithm(advantage=registry.build("advantages", "group", {}), policy_loss=Plain())
    (update,), _ = learnt(case, "grpo", correction, algorithm=algorithm)
    naive = torch.zeros((), dtype=torch.float64)
    for i, t in weights:
        ratio = (case.new.get("logprobs")[i, t] - case.batch.now.get("logprobs")[i, t]).exp()
        a = update.targets.get("advantages")[update.rows.index(i), t].item()
        naive = naive - weights[i, t] * ratio * a / len(weights)
    assert_same(update, naive, case)


@pytest.mark.filterwarnings("ignore:vimpo")
@pytest.mark.parametrize("correction", EVERY, ids=names)
def test_of_vimpo_the_value_part_stays_whole_and_the_surrogate_alone_is_corrected(correction: CorrectionConfig) -> None:
    case = mismatched()
    beta, coef, rollout = 0.05, 0.3, case.batch.rollout
    weights = naive_weights(case, correction)
    (update,), _ = learnt(case, "vimpo", correction, f"algo.beta={beta}", f"algo.actor_coef={coef}")
    valid = [i for i in range(len(rollout.keys)) if rollout.valid[i]]
    assert correction.mode == "truncate" or len({i for i, _ in weights}) < len(valid) or correction.level == "token"
    naive = torch.zeros((), dtype=torch.float64)
    for i in valid:
        members = [j for j in valid if rollout.group[j] == rollout.group[i]]
        baseline = sum(rollout.reward[j].item() for j in members) / len(members)
        residual: Tensor | float = baseline - rollout.reward[i].item()
        for t in actions(rollout, i):
            residual = residual + beta * (case.new.get("logprobs")[i, t] - case.batch.now.get("ref_logprobs")[i, t])
            residual = residual - beta * case.batch.now.get("token_kl")[i, t].item()
        naive = naive + residual**2 / 2 / len(valid)
    value = naive
    for i, t in weights:
        term = surrogate(update, case, i, t, 0.2, 0.28, dual=10.0)
        naive = naive + coef * weights[i, t] * term / len(weights)
    assert_same(update, naive, case)

    (alone,), _ = learnt(case, "vimpo", correction, f"algo.beta={beta}", "algo.actor_coef=0")
    assert_same(alone, value, case)


def test_advantages_and_targets_are_of_all_tokens_whatever_a_correction_masks() -> None:
    case = mismatched()
    for algo in ("grpo", "vimpo", "vimpo_auto"):
        found = []
        for correction in (MASKS[0], None):
            config = settings(algo).model_copy(update={"correction": correction})
            learner, policy = learner_of(case, config)
            learner.learn(case.batch.rollout, learner.measure(case.batch.rollout, 1), 1)
            found.append(policy.made[0].targets)
        for name in ("advantages", "scores"):
            one, other = (getattr(targets, name) for targets in found)
            assert (one is None and other is None) or torch.equal(one, other)
        assert found[0].coefs == found[1].coefs


def test_a_running_whitening_remembers_all_tokens_whatever_a_correction_masks() -> None:
    case, states = mismatched(), []
    for correction in (*MASKS, None):
        config = settings("vimpo", "algo.whiten=running").model_copy(update={"correction": correction})
        learner, _ = learner_of(case, config)
        learner.learn(case.batch.rollout, learner.measure(case.batch.rollout, 1), 1)
        states.append(learner.state.algorithm)
    assert states[-1]["variance"] > 0
    for state in states:
        assert state == pytest.approx(states[-1], rel=1e-9)


def test_a_batch_of_which_nothing_is_left_makes_no_update_and_is_counted() -> None:
    case = mismatched()
    case.batch.rollout.sampler_logprobs -= 5.0
    learner, policy = learner_of(case, settings("grpo").model_copy(update={"correction": MASKS[0]}))
    with pytest.warns(UserWarning, match=r"1 of 1 updates had no sample to learn from .*correction/limited"):
        metrics, _ = learner.learn(case.batch.rollout, learner.measure(case.batch.rollout, 1), 1)
    assert not policy.made
    assert metrics["updates/skipped"] == 1
    assert metrics["correction/limited"] == 1
    assert metrics["correction/weight_max"] == 0
    assert metrics["correction/effective"] == 0


@pytest.mark.parametrize("correction", EVERY, ids=names)
def test_what_is_logged_of_a_correction(correction: CorrectionConfig) -> None:
    case = mismatched()
    learner, _ = learner_of(case, settings("grpo").model_copy(update={"correction": correction}))
    metrics, _ = learner.learn(case.batch.rollout, learner.measure(case.batch.rollout, 1), 1)
    weights = naive_weights(case, correction)
    count = int(case.batch.rollout.mask.sum())
    limited = sum(w == LIMIT for w in weights.values()) if correction.mode == "truncate" else count - len(weights)
    assert metrics["correction/weight_mean"] == pytest.approx(sum(weights.values()) / count)
    assert metrics["correction/weight_max"] == pytest.approx(max(weights.values()))
    assert metrics["correction/limited"] == pytest.approx(limited / count)
    squares = sum(w**2 for w in weights.values())
    assert metrics["correction/effective"] == pytest.approx(sum(weights.values()) ** 2 / squares / count)


# Runs whose sampler draws from a part of the distribution.

SMALL = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=6", "eval.every=0", "steps=3"]
TRUNCATED = ["sampling.top_p=0.8", "sampling.top_k=5"]


@pytest.mark.parametrize(
    ("algo", "truncation", "correction"),
    [
        ("vimpo", ["sampling.top_p=0.8"], "{}"),
        ("grpo", ["sampling.top_k=5"], "{}"),
        ("ppo", TRUNCATED, "{mode: mask, level: sequence}"),
    ],
)
def test_a_truncated_sampler_trains_and_its_weights_are_what_it_could_draw(
    algo: str, truncation: list[str], correction: str, tmp_path: Path
) -> None:
    more = [f"out={tmp_path}", f"correction={correction}", "sampling.check_every=1", "optimizer.lr=1e-3"]
    folder = RunFolder.open(rlkit.train(configs.load("embedded_xs", [*SMALL, *truncation, *more], algo), quiet=True))
    rows = folder.read_metrics()
    steps = [row for row in rows if "correction/weight_mean" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert not [name for row in rows for name in row if name.startswith("sampler/gap_")]
    for row in steps:
        assert 0 < row["correction/weight_mean"] < 1
        assert row["updates/made"] == row["step"]
        drawn = pq.read_table(folder.rollout_file(int(row["step"]))).to_pylist()
        shares = [
            [math.exp(p - q) for p, q in zip(each["logprobs"], each["sampler_logprobs"], strict=True)] for each in drawn
        ]
        flat = [share for each in shares for share in each]
        assert max(flat) < 1 + 1e-4
        if algo != "ppo":
            assert row["correction/weight_mean"] == pytest.approx(sum(flat) / len(flat), rel=1e-4)
            assert row["correction/limited"] == 0
            assert algo == "grpo" or min(flat) > 0.8 - 1e-4
        else:
            left = [math.prod(each) >= 0.5 for each in shares]
            count = sum(len(each) for each, here in zip(shares, left, strict=True) if not here)
            assert row["correction/limited"] == pytest.approx(count / len(flat))
    assert {row["step"] for row in rows if "eval/heldout/mean@1" in row} == {0, 3}


def test_a_stale_sampler_is_found_out_though_it_draws_from_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(self: transformers._Transformers, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self._version = version

    monkeypatch.setattr(transformers._Transformers, "sync", deaf)
    config = configs.load("embedded_xs", [*SMALL, *TRUNCATED, f"out={tmp_path}", "correction={}"])
    with pytest.raises(RlkitError, match="does not hold the trainer's weights"):
        rlkit.train(config, quiet=True)


def test_checks_and_evaluations_draw_from_distributions_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[float, int, float], int] = {}
    generate = transformers._Transformers.generate

    def watched(self: transformers._Transformers, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for request in requests:
            key = (request.params.top_p, request.params.top_k, request.params.temperature)
            seen[key] = seen.get(key, 0) + 1
        return generate(self, requests)

    monkeypatch.setattr(transformers._Transformers, "generate", watched)
    more = ["correction={}", "eval.top_p=0.7", "eval.temperature=0.9", f"out={tmp_path}", "steps=2"]
    rlkit.train(configs.load("embedded_xs", [*SMALL, *TRUNCATED, *more]), quiet=True)
    training, evaluation, checks = (0.8, 5, 1.0), (0.7, 0, 0.9), (1.0, 0, 1.0)
    assert seen.keys() == {training, evaluation, checks}
    assert seen[training] == 2 * 16
    assert seen[evaluation] == 2 * 6


@pytest.mark.parametrize("setting", ["sampling.top_p=0.8", "sampling.top_k=5"])
def test_without_a_correction_it_is_refused_and_what_to_set_is_said(setting: str) -> None:
    result = CliRunner().invoke(main, ["run", "embedded_xs", "--dry-run", "-s", setting])
    assert result.exit_code == 2
    assert "samples come from another distribution than the loss speaks of" in result.output
    assert "Set correction: {}" in result.output
    allowed = CliRunner().invoke(main, ["run", "embedded_xs", "--dry-run", "-s", setting, "-s", "correction={}"])
    assert allowed.exit_code == 0, allowed.output


LOSS = """
from rlkit import loss


@loss("corrections_deaf")
def deaf():
    def compute(new, batch, targets):
        gain = targets.get("advantages") * (new.get("logprobs") - batch.old.get("logprobs")).exp()
        return -gain[batch.mask].sum() / batch.n_tokens, {}

    return compute


@loss("corrections_heard")
def heard():
    def compute(new, batch, targets):
        gain = targets.get("advantages") * (new.get("logprobs") - batch.old.get("logprobs")).exp()
        return -(gain * targets.get("importance"))[batch.mask].sum() / batch.n_tokens, {}

    compute.reads = frozenset({"advantages", "importance"})
    return compute
"""


def test_a_loss_that_would_not_hear_of_a_correction_is_refused_with_one(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LOSS)
    run = ["run", "embedded_xs", "--algo", "grpo", "--dry-run", "--plugin", str(tmp_path / "mine.py")]
    deaf = CliRunner().invoke(main, [*run, "-s", "loss=corrections_deaf", "-s", "correction={}"])
    assert deaf.exit_code == 2
    assert "does not read `importance`, so nothing would be corrected" in deaf.output
    assert "targets.importance" in deaf.output
    for sound in (["-s", "loss=corrections_deaf"], ["-s", "loss=corrections_heard", "-s", "correction={}"]):
        result = CliRunner().invoke(main, [*run, *sound])
        assert result.exit_code == 0, result.output
    more = [*SMALL, *TRUNCATED, "steps=1", f"out={tmp_path}", f"plugins=[{tmp_path / 'mine.py'}]"]
    config = configs.load("embedded_xs", [*more, "loss=corrections_heard", "correction={mode: mask}"], "grpo")
    assert RunFolder.open(rlkit.train(config, quiet=True)).read_metrics()[1]["updates/made"] == 1


def test_the_learner_leaves_the_rollout_as_it_was() -> None:
    """A mask is of the losses: what is written to disk, and what the next epoch's advantage sees, is whole."""
    case = mismatched()
    before = case.batch.rollout.mask.clone()
    learner, policy = learner_of(case, settings("grpo", "batch.epochs=2").model_copy(update={"correction": MASKS[0]}))
    learner.learn(case.batch.rollout, learner.measure(case.batch.rollout, 1), 1)
    assert torch.equal(case.batch.rollout.mask, before)
    assert [dataclasses.replace(u.batch, kept=None).mask.equal(before) for u in policy.made] == [True, True]
    assert all(u.batch.mask.sum() < before.sum() for u in policy.made)
