"""The learner: how far a policy moved, what is left out and counted, how a rollout is cut, and what is remembered."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_help import StatsEngine, learner_of, settings
from random_batches import actions, fresh_case, fresh_seed
from rank_worker import TwoRanks, engine_of, logprob_loss, random_batch, run
from rank_worker import settings as tiny
from torch import Tensor

from rlkit import config as configs
from rlkit import registry
from rlkit.assembly import run as runs
from rlkit.conformance.batches import Case
from rlkit.engine.reference import FrozenModel
from rlkit.errors import NotFiniteError, RlkitError
from rlkit.interfaces.learning import Algorithm, Batch, Metrics, Needs, Rollout, Targets, TokenStats
from rlkit.loop.learner import Learner
from rlkit.loop.state import VERSION, Place, RunState
from rlkit.records.folder import RunFolder

# How far it moved


def naive_movement(case: Case, rows: list[int]) -> tuple[float, float, float]:
    """approx_kl, ratio_mean and ratio_max from the case's `now`, which the learner takes for old, to its `new`."""
    x = [
        (case.batch.now.get("logprobs")[i, t] - case.new.get("logprobs")[i, t]).item()
        for i in rows
        for t in actions(case.batch.rollout, i)
    ]
    kls, ratios = [math.exp(-each) - 1 + each for each in x], [math.exp(-each) for each in x]
    return sum(kls) / len(x), sum(ratios) / len(x), max(ratios)


def moved(case: Case) -> None:
    """Make the gradient forward's log-probs differ from those that were measured."""
    with torch.no_grad():
        case.new.get("logprobs").add_(0.4 * torch.randn(case.batch.mask.shape, dtype=torch.float64))


def test_movement_is_that_of_all_tokens_whatever_the_micro_batches() -> None:
    case = fresh_case(groups=5)
    moved(case)
    learner, policy = learner_of(case, settings("grpo"))
    rollout = case.batch.rollout
    metrics, _ = learner.learn(rollout, learner.policy.token_stats(rollout, frozenset({"logprobs"})), 1)
    kl, mean, largest = naive_movement(case, policy.made[0].rows)
    assert metrics["policy/approx_kl"] == pytest.approx(kl)
    assert metrics["policy/ratio_mean"] == pytest.approx(mean)
    assert metrics["policy/ratio_max"] == pytest.approx(largest)
    assert kl > 0.01


def test_of_several_updates_kl_and_mean_are_means_and_the_maximum_is_the_largest() -> None:
    case = fresh_case(groups=9)
    moved(case)
    learner, policy = learner_of(case, settings("grpo", "batch.prompts_per_step=9", "batch.minibatches=3"))
    metrics, _ = learner.learn(case.batch.rollout, learner.measure(case.batch.rollout, 1), 1)
    found = [naive_movement(case, update.rows) for update in policy.made]
    assert len(found) == 3
    assert metrics["policy/approx_kl"] == pytest.approx(sum(kl for kl, _, _ in found) / 3)
    assert metrics["policy/ratio_mean"] == pytest.approx(sum(mean for _, mean, _ in found) / 3)
    assert metrics["policy/ratio_max"] == pytest.approx(max(largest for _, _, largest in found))


def test_one_update_a_rollout_has_not_moved() -> None:
    case = fresh_case()
    learner, _ = learner_of(case, settings("grpo"))
    metrics, _ = learner.learn(case.batch.rollout, TokenStats(), 1)
    assert (metrics["policy/approx_kl"], metrics["policy/ratio_mean"], metrics["policy/ratio_max"]) == (0, 1, 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_movement_is_that_of_all_ranks(ranks: int, models: dict[str, Path], two_ranks: TwoRanks) -> None:
    config = tiny(models["tied"])
    seed = random.Random(fresh_seed()).randrange(1 << 30)
    founds = [run("move", config, seed, 0.5)] if ranks == 1 else two_ranks.run("move", config, seed, 0.5)
    for found in founds:
        x = (found["old"] - found["now"])[found["mask"]].double()
        metrics = found["metrics"]
        assert metrics["policy/approx_kl"] == pytest.approx(float(((-x).exp() - 1 + x).mean()), rel=1e-3)
        assert metrics["policy/ratio_mean"] == pytest.approx(float((-x).exp().mean()), rel=1e-4)
        assert metrics["policy/ratio_max"] == pytest.approx(float((-x).exp().max()), rel=1e-4)


# What is left out


def test_updates_that_are_not_finite_are_left_out_and_counted() -> None:
    case = fresh_case(groups=4)
    engine = StatsEngine(case, not_finite={0, 2})
    config = settings("grpo", "batch.prompts_per_step=4", "batch.minibatches=2", "batch.epochs=2")
    learner, _ = learner_of(case, config, engine=engine)
    with pytest.warns(UserWarning, match=r"step 7: policy, update [01]: the loss is not finite"):
        metrics, _ = learner.learn(case.batch.rollout, learner.measure(case.batch.rollout, 7), 7)
    assert metrics["updates/not_finite"] == 2.0
    assert metrics["updates/skipped"] == 0
    assert metrics["updates/made"] == 2
    assert learner.state.not_finite == 0


def test_three_in_a_row_end_the_run_across_steps_and_across_a_resume(tmp_path: Path) -> None:
    case = fresh_case(groups=4)
    config = settings("grpo", "batch.prompts_per_step=4", "batch.minibatches=2")
    learner, _ = learner_of(case, config, engine=StatsEngine(case, not_finite={0, 1}))
    old = learner.measure(case.batch.rollout, 1)
    with pytest.warns(UserWarning, match="not finite"):
        metrics, _ = learner.learn(case.batch.rollout, old, 1)
    assert metrics["updates/not_finite"] == 2
    torch.save(learner.state.saved(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)

    again, _ = learner_of(case, config, engine=StatsEngine(case, not_finite={0}))
    again.state = RunState.restored(saved, "here")
    with pytest.raises(NotFiniteError, match=r"(?s)step 2: policy, update 0.*3 updates in a row were not finite"):
        again.learn(case.batch.rollout, old, 2)

    # One that is finite, and they are counted anew.
    other, _ = learner_of(case, config, engine=StatsEngine(case, not_finite={1, 2}))
    other.state = RunState.restored(saved, "here")
    for step in (2, 3):
        with pytest.warns(UserWarning, match=f"step {step}: .*not finite"):
            other.learn(case.batch.rollout, old, step)
    assert other.state.not_finite == 0


DIVERGING = """
from rlkit import loss


@loss("learner_diverging")
def diverging(*, after: int):
    def compute(new, batch, targets):
        gain = targets.get("advantages") * new.get("logprobs")
        value = -gain[batch.mask].sum() / batch.n_tokens
        return value * (float("inf") if batch.update >= after else 1.0), {}

    return compute
"""


@pytest.mark.filterwarnings("ignore:step .*not finite")
def test_a_run_counts_them_across_a_resume(tmp_path: Path) -> None:
    (tmp_path / "diverging.py").write_text(DIVERGING)
    small = ["batch.prompts_per_step=2", "batch.samples_per_prompt=2", "eval.problems=2", f"out={tmp_path}", "name=r"]
    loss = [f"plugins=[{tmp_path / 'diverging.py'}]", "loss={kind: learner_diverging, after: 1}"]

    def config(steps: int) -> configs.RunConfig:
        # Groups with equal rewards have a gradient of 0; infinity times 0 is not finite all the same.
        return configs.load("embedded_xs", [*small, *loss, f"steps={steps}"], "grpo")

    folder = RunFolder.open(runs.train(config(3), quiet=True))
    rows = [row for row in folder.read_metrics() if "updates/not_finite" in row]
    assert [row["updates/not_finite"] for row in rows] == [0, 1, 1]
    assert [row["updates/made"] for row in rows] == [1, 1, 1]
    with pytest.raises(NotFiniteError, match=r"(?s)step 4: policy, update 1:.*3 updates in a row"):
        runs.train(config(5), resume=True, quiet=True)


def test_update_and_progress_follow_the_engine_which_does_not_count_what_it_left_out(models: dict[str, Path]) -> None:
    """With DeepSpeed itself: of five planned updates the second and third cannot be made."""
    seen: list[tuple[int, float]] = []

    def loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        seen.append((batch.update, batch.progress))
        value, metrics = logprob_loss(new, batch, targets)
        return value * (math.inf if len(seen) in (2, 3) else 1.0), metrics

    batch, targets = random_batch(fresh_seed())
    config = tiny(models["tied"], batch={"tokens_per_microbatch": 10_000, "epochs": 4})
    policy = engine_of(config)
    algorithm = Algorithm(advantage=lambda batch, state: targets, policy_loss=loss)
    learner = Learner(config, algorithm, policy, None, None, RunState())
    with pytest.warns(UserWarning, match="not finite"):
        metrics, _ = learner.learn(batch.rollout, learner.measure(batch.rollout, 1), 1)
    assert seen == [(0, 0.0), (1, 0.2), (1, 0.2), (1, 0.2)]
    assert (metrics["updates/not_finite"], metrics["updates/made"], policy.updates) == (2, 2, 2)


def test_a_batch_without_a_sample_to_learn_from_makes_no_update_and_is_counted() -> None:
    case = fresh_case(groups=4)
    rollout = case.batch.rollout
    alone = rollout.group == rollout.group[rollout.valid][0]
    rollout.valid &= alone
    rollout.mask &= alone.unsqueeze(1)
    learner, policy = learner_of(case, settings("grpo", "batch.prompts_per_step=4", "batch.minibatches=4"))
    with pytest.warns(UserWarning, match="step 3: 3 of 4 updates had no sample to learn from"):
        metrics, credited = learner.learn(rollout, learner.measure(rollout, 3), 3)
    assert (metrics["updates/skipped"], metrics["updates/made"], metrics["updates/not_finite"]) == (3, 1, 0)
    assert len(policy.made) == 1
    assert [rows for rows, _ in credited] == [policy.made[0].rows]


# How a rollout is cut


def uneven(rng: random.Random) -> Rollout:
    """Groups of one to six rows, mixed, under random numbers; some of them without a valid row."""
    numbers = rng.sample(range(-(10**9), 10**9), rng.randint(1, 12))
    rows = [(number, rng.random() < 0.3) for number in numbers for _ in range(rng.randint(1, 6))]
    dead = set(rng.sample(numbers, rng.randint(0, len(numbers) // 2)))
    rng.shuffle(rows)
    group = torch.tensor([number for number, _ in rows])
    valid = torch.tensor([number not in dead and not lost for number, lost in rows])
    length = torch.randint(1, 5, (len(rows),))
    base = random_batch(0, rows=len(rows) + 1)[0].rollout.rows(range(len(rows)))
    mask = (torch.arange(4) < length.unsqueeze(1)) & valid.unsqueeze(1)
    zeros = torch.zeros(len(rows), 4)
    return dataclasses.replace(
        base, group=group, valid=valid, mask=mask, length=length, sampler_logprobs=zeros, tokens=zeros.long()
    )


@pytest.mark.parametrize("repeat", range(40))
def test_optimizer_batches_are_whole_groups_and_share_out_those_that_teach(repeat: int) -> None:
    rng = random.Random(fresh_seed())
    rollout = uneven(rng)
    minibatches, epochs = rng.randint(1, 5), rng.randint(1, 3)
    learner, _ = learner_of(
        fresh_case(),
        settings("grpo", f"batch.prompts_per_step={minibatches}", f"batch.minibatches={minibatches}",
                 f"batch.epochs={epochs}", f"seed={rng.randint(0, 99)}"),
    )  # fmt: skip
    batches = list(learner._optimizer_batches(rollout, 5))
    assert len(batches) == minibatches * epochs
    groups = rollout.group.tolist()
    live = {groups[row] for row in range(len(groups)) if rollout.valid[row]}
    for epoch in range(epochs):
        parts = batches[epoch * minibatches : (epoch + 1) * minibatches]
        assert sorted(row for part in parts for row in part) == list(range(len(groups)))
        home: dict[int, set[int]] = {}
        for number, part in enumerate(parts):
            for row in part:
                home.setdefault(groups[row], set()).add(number)
        assert all(len(parts_of) == 1 for parts_of in home.values())
        for kind in (live, set(groups) - live):
            counts = Counter(dict.fromkeys(range(minibatches), 0))
            counts.update(next(iter(home[group])) for group in kind)
            assert max(counts.values()) - min(counts.values()) <= 1
    assert batches == list(learner._optimizer_batches(rollout, 5))


def test_the_order_is_the_seeds_the_steps_and_the_epochs() -> None:
    rollout = random_batch(0, rows=64)[0].rollout
    changes = ["batch.prompts_per_step=32", "batch.minibatches=2", "batch.epochs=2"]
    found = []
    for seed, step in ((0, 1), (0, 2), (1, 1)):
        learner, _ = learner_of(fresh_case(), settings("grpo", *changes, f"seed={seed}"))
        batches = list(learner._optimizer_batches(rollout, step))
        found += [tuple(batches[0]), tuple(batches[2])]
    assert len(set(found)) == 6


def test_the_counts_of_a_batch_are_of_its_own_rows() -> None:
    case = fresh_case(groups=6)
    learner, policy = learner_of(case, settings("grpo", "batch.prompts_per_step=6", "batch.minibatches=3"))
    learner.learn(case.batch.rollout, learner.measure(case.batch.rollout, 1), 1)
    for update in policy.made:
        tokens = [len(actions(case.batch.rollout, row)) for row in update.rows]
        assert update.batch.n_tokens == sum(tokens)
        assert update.batch.n_sequences == update.batch.n_valid == sum(count > 0 for count in tokens)
    assert [update.batch.update for update in policy.made] == list(range(len(policy.made)))


# The reference


class Counted(FrozenModel):
    """A reference that remembers how often it was asked."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.asked = 0

    def hidden_states(self, place: Mapping[str, Tensor]) -> Tensor:
        self.asked += 1
        return super().hidden_states(place)

    def logprobs(self, rollout: Rollout) -> Tensor:
        self.asked += 1
        return super().logprobs(rollout)


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("vimpo", {"estimator": "k3"}),  # asks before each update
        ("grpo", {"kl_coef": 0.1}),  # asks once
    ],
)
def test_the_references_log_probs_are_computed_once_a_rollout(
    algo: str, options: dict[str, Any], models: dict[str, Path]
) -> None:
    batch, _ = random_batch(fresh_seed(), rows=16)
    config = tiny(models["tied"], batch={"tokens_per_microbatch": 10_000, "minibatches": 2, "epochs": 2})
    policy, reference = engine_of(config), Counted(engine_of(tiny(models["reference"]), frozen=True))
    algorithm: Algorithm = registry.build("algorithms", algo, options)
    seen: list[TokenStats] = []
    advantage = algorithm.advantage

    def watched(batch: Batch, state: dict[str, Any]) -> Targets:
        seen.append(batch.now if algo == "vimpo" else batch.old)
        return advantage(batch, state)

    watched.needs, watched.gives = algorithm.needs, algorithm.gives  # type: ignore[attr-defined]
    algorithm.advantage = watched
    learner = Learner(config, algorithm, policy, reference, None, RunState())
    old = learner.measure(batch.rollout, 1)
    assert reference.asked == 1
    learner.learn(batch.rollout, old, 1)
    assert reference.asked == 1
    assert policy.updates == len(seen) == 4
    rows = list(learner._optimizer_batches(batch.rollout, 1))
    for stats, mine in zip(seen, rows, strict=True):
        assert torch.equal(stats.get("ref_logprobs"), old.get("ref_logprobs")[mine])


def test_a_loss_that_asks_for_them_with_the_gradient_finds_the_same(models: dict[str, Path]) -> None:
    batch, _ = random_batch(fresh_seed(), rows=16)
    config = tiny(models["tied"], batch={"tokens_per_microbatch": 60, "minibatches": 2})
    policy, reference = engine_of(config), Counted(engine_of(tiny(models["reference"]), frozen=True))
    seen: dict[int, Tensor] = {}

    def loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        for row, tokens in enumerate(batch.rollout.tokens):
            seen[hash(tuple(tokens.tolist()))] = new.get("ref_logprobs")[row]
        return logprob_loss(new, batch, targets)

    loss.needs = Needs(grad=frozenset({"logprobs", "ref_logprobs"}))  # type: ignore[attr-defined]
    algorithm = Algorithm(
        advantage=lambda batch, state: Targets(advantages=torch.ones(batch.mask.shape)), policy_loss=loss
    )
    learner = Learner(config, algorithm, policy, reference, None, RunState())
    old = learner.measure(batch.rollout, 1)
    asked = reference.asked
    learner.learn(batch.rollout, old, 1)
    assert reference.asked == asked
    expected = reference.logprobs(batch.rollout)
    torch.testing.assert_close(old.get("ref_logprobs"), expected)
    live = batch.rollout.mask.any(1).nonzero().flatten().tolist()
    assert len(seen) == len(live)
    for row in live:
        assert torch.equal(seen[hash(tuple(batch.rollout.tokens[row].tolist()))], old.get("ref_logprobs")[row])


# What is remembered


def test_a_state_that_is_saved_and_restored_is_the_same(tmp_path: Path) -> None:
    state = RunState(step=3, place=Place(48, 5), not_finite=2, algorithm={"spread": 0.25, "x": torch.ones(3)})
    torch.save(state.saved(), tmp_path / "state.pt")
    found = RunState.restored(torch.load(tmp_path / "state.pt", weights_only=True), "here")
    assert torch.equal(found.algorithm.pop("x"), state.algorithm.pop("x"))
    assert found == state
    assert RunState.restored(RunState().saved(), "here") == RunState()


def test_what_is_saved_does_not_change_with_the_run() -> None:
    state = RunState(algorithm={"x": torch.zeros(2)})
    saved = state.saved()
    state.algorithm["x"] += 1
    assert not saved["algorithm"]["x"].any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": VERSION + 1}, rf"version {VERSION + 1}, and this rlkit reads version {VERSION}:"),
        ({"version": None}, rf"version none, and this rlkit reads version {VERSION}:"),
        ({"not_finite": None}, rf"version {VERSION}, .*reads version {VERSION} \(not_finite is missing\)"),
        ({"later": 1}, rf"version {VERSION}, .*reads version {VERSION} \(later is unknown\)"),
    ],
)
def test_a_state_of_another_rlkit_is_refused_and_says_what_to_do(change: dict[str, Any], said: str) -> None:
    saved = {n: value for n, value in (RunState().saved() | change).items() if value is not None or n not in change}
    with pytest.raises(RlkitError, match=rf"runs/r/step-2 holds a run's state of {said}") as caught:
        RunState.restored(saved, "runs/r/step-2")
    assert "resume it with the rlkit that made it (provenance.json names it), or begin the run anew" in str(
        caught.value
    )


@pytest.mark.parametrize(("algo", "passes"), [("grpo", 0), ("vimpo", 2)])
def test_the_share_of_the_peak_counts_each_pass(algo: str, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two updates a rollout VIMPO measures policy and reference before each."""
    case = fresh_case(groups=4)
    learner, engine = learner_of(case, settings(algo, "batch.minibatches=2"))
    rollout = case.batch.rollout
    learner.learn(rollout, case.batch.old, 1)
    rows = rollout.mask.any(1).nonzero().flatten().tolist()
    prompts = 0
    for part in learner._optimizer_batches(rollout, 1):  # of each, every prompt once
        prompts += sum(map(len, {tuple(rollout.prompt_tokens[row].tolist()) for row in part if row in rows}))
    tokens = prompts + int(rollout.length[rows].sum())
    assert learner.passed["policy", "update"] == tokens
    assert learner.passed["policy", "measure"] == passes * tokens

    assert learner.utilisation() == {}, "the peak is not known here"
    monkeypatch.setattr("rlkit.engine.flops.peak", lambda model: 1000.0)
    monkeypatch.setattr(engine, "identity", {"parameters": {"weight": [3, 5]}}, raising=False)
    learner.timer.update(measure=1.5, update=2.5, sample=99.0)
    expected = 15 * (6 + 2 * passes) * tokens / (4.0 * 1000.0)
    assert learner.utilisation() == {"throughput/mfu": pytest.approx(expected)}
