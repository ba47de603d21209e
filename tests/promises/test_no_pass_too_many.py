"""Forward passes are counted: what the models make of a step is what the plan said, and no more than the method needs.

VIMPO's pass before the update is there for the whitening of its advantages alone. Without it (`whiten: running`, or no
actor part) the value loss and its gradient are the same.

A reference stands still within a rollout, so where several passes compare with its hidden states it passes once, and
these are kept: whatever is learnt is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from click.testing import CliRunner
from random_batches import fresh_seed
from rank_worker import TwoRanks, engine_of, keep_gradients, random_batch, run, settings
from rlkit_algorithms.implied import Measured
from rlkit_algorithms.vimpo import VimpoConfig, vimpo

import rlkit
from rlkit import config as configs
from rlkit import registry
from rlkit.assembly import run as runs
from rlkit.cli import main
from rlkit.engine.passes import Passes, passes_of
from rlkit.engine.reference import FrozenModel
from rlkit.errors import RlkitError
from rlkit.interfaces.learning import Algorithm
from rlkit.loop.learner import Learner, _tokens
from rlkit.loop.state import RunState
from rlkit.records.folder import RunFolder

Role = Literal["policy", "reference", "critic"]
Counts = dict[str, tuple[int, int]]

CASES: list[tuple[str, dict[str, Any], int, int, Counts]] = [
    # algorithm, options, minibatches, epochs; of each sequence: passes without gradient, and with
    ("vimpo", {}, 1, 1, {"policy": (1, 1), "reference": (1, 0)}),
    ("vimpo", {"estimator": "k3"}, 1, 1, {"policy": (1, 1), "reference": (1, 0)}),
    ("vimpo", {"whiten": "running"}, 1, 1, {"policy": (0, 1), "reference": (1, 0)}),
    ("vimpo", {"whiten": "running", "estimator": "k3"}, 1, 1, {"policy": (0, 1), "reference": (1, 0)}),
    ("vimpo", {"actor_coef": 0.0}, 1, 1, {"policy": (0, 1), "reference": (1, 0)}),
    ("vimpo", {"actor_ratio": 0.0, "whiten": "running"}, 1, 1, {"policy": (0, 1), "reference": (1, 0)}),
    # The group's mean of the KL is part of its targets.
    ("vimpo", {"value": "soft"}, 1, 1, {"policy": (1, 1), "reference": (1, 0)}),
    # With several updates the ratio's denominator takes a pass.
    ("vimpo", {}, 2, 1, {"policy": (2, 1), "reference": (1, 0)}),
    ("vimpo", {"whiten": "running"}, 2, 1, {"policy": (1, 1), "reference": (1, 0)}),
    ("vimpo", {"actor_coef": 0.0}, 2, 1, {"policy": (1, 1), "reference": (1, 0)}),
    ("vimpo", {"value": "soft"}, 2, 1, {"policy": (1, 1), "reference": (1, 0)}),
    ("vimpo", {}, 2, 3, {"policy": (4, 3), "reference": (1, 0)}),
    ("vimpo", {}, 1, 2, {"policy": (3, 2), "reference": (1, 0)}),
    ("vimpo", {"whiten": "running"}, 2, 3, {"policy": (1, 3), "reference": (1, 0)}),
    ("vimpo", {"whiten": "running", "estimator": "k3"}, 2, 3, {"policy": (1, 3), "reference": (1, 0)}),
    ("vimpo_auto", {}, 1, 1, {"policy": (1, 1), "reference": (1, 0)}),
    ("vimpo_auto", {}, 2, 1, {"policy": (2, 1), "reference": (1, 0)}),
    ("vimpo_auto", {}, 1, 2, {"policy": (3, 2), "reference": (1, 0)}),
    ("grpo", {}, 1, 1, {"policy": (0, 1)}),
    ("grpo", {"entropy_coef": 0.1}, 1, 1, {"policy": (0, 1)}),
    ("grpo", {"kl_coef": 0.1}, 1, 1, {"policy": (0, 1), "reference": (1, 0)}),
    ("grpo", {"kl_coef": 0.1, "kl_estimator": "exact"}, 1, 1, {"policy": (0, 1), "reference": (1, 0)}),
    ("grpo", {}, 2, 2, {"policy": (1, 2)}),
    ("grpo", {"kl_coef": 0.1}, 2, 2, {"policy": (1, 2), "reference": (1, 0)}),
    ("grpo", {"kl_coef": 0.1, "kl_estimator": "exact"}, 2, 2, {"policy": (1, 2), "reference": (1, 0)}),
    ("grpo", {"kl_coef": 0.1, "kl_estimator": "exact"}, 1, 2, {"policy": (1, 2), "reference": (1, 0)}),
    ("dapo", {}, 1, 1, {"policy": (0, 1)}),
    ("ppo", {}, 1, 1, {"policy": (0, 1), "critic": (1, 1)}),
    ("ppo", {}, 2, 2, {"policy": (1, 2), "critic": (1, 2)}),
    ("ppo", {"reward_kl_coef": 0.1}, 1, 1, {"policy": (1, 1), "reference": (1, 0), "critic": (1, 1)}),
    # Both the reward and the loss compare.
    (
        "ppo",
        {"reward_kl_coef": 0.1, "kl_coef": 0.1, "kl_estimator": "exact"},
        1,
        1,
        {"policy": (1, 1), "reference": (1, 0), "critic": (1, 1)},
    ),
]


@pytest.fixture(scope="module")
def engines(models: dict[str, Path]) -> dict[Role, Any]:
    return {
        "policy": engine_of(settings(models["tied"])),
        "reference": engine_of(settings(models["reference"]), frozen=True),
        "critic": engine_of(settings(models["tied"]), critic=True),
    }


@contextmanager
def counted(engines: dict[Role, Any]) -> Iterator[dict[str, list[int]]]:
    """Model -> sequences that have passed through it: without gradient, and with."""
    found = {role: [0, 0] for role in engines}

    def watch(role: Role) -> Any:
        def count(module: Any, args: Any, given: dict[str, Any]) -> None:
            found[role][torch.is_grad_enabled()] += len(given["cu_seq_lens_q"]) - 1  # packed

        return engines[role]._module.register_forward_pre_hook(count, with_kwargs=True)

    hooks = [watch(role) for role in engines]
    yield found
    for hook in hooks:
        hook.remove()


def learner_of(algorithm: Algorithm, config: Any, engines: dict[Role, Any]) -> Learner:
    reference = FrozenModel(engines["reference"]) if algorithm.needs.reference else None
    critic = engines["critic"] if algorithm.value_loss is not None else None
    return Learner(config, algorithm, engines["policy"], reference, critic, RunState())


def planned(algorithm: Algorithm, config: Any, *, learns: bool = True) -> Passes:
    return passes_of(algorithm, config, 1, 64, learns=learns)


def passes_made(algorithm: Algorithm, config: Any, engines: dict[Role, Any], step: int = 1) -> Counts:
    """By the models, in a step on a rollout in which every second group is alive."""
    batch, _ = random_batch(fresh_seed(), rows=16)
    live = int(batch.rollout.mask.any(1).sum())
    learner = learner_of(algorithm, config, engines)
    with counted(engines) as found:
        learner.learn(batch.rollout, learner.measure(batch.rollout, step), step)
    assert all(count % live == 0 for pair in found.values() for count in pair)
    made = {role: (pair[0] // live, pair[1] // live) for role, pair in found.items() if any(pair)}
    # What the share of the peak is reckoned from; a reference is as large as the policy.
    without = made["policy"][0] + made.get("reference", (0, 0))[0]
    assert learner.passed["policy", "measure"] == without * _tokens(batch.rollout)
    return made


def named(case: Any) -> str:
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[1].items()), f"{case[2]}x{case[3]}"])


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_step_passes_as_often_as_the_plan_says(
    case: tuple[str, dict[str, Any], int, int, Counts], engines: dict[Role, Any], models: dict[str, Path]
) -> None:
    algo, options, minibatches, epochs, expected = case
    algorithm: Algorithm = registry.build("algorithms", algo, options)
    config = settings(models["tied"], batch={"minibatches": minibatches, "epochs": epochs})
    assert passes_made(algorithm, config, engines) == expected
    assert planned(algorithm, config).forwards() == expected

    changes = [f"algo.{key}={value}" for key, value in options.items()]
    shape = [f"batch.minibatches={minibatches}", f"batch.epochs={epochs}"]
    plan = runs.plan(configs.load("embedded_xs", [*changes, *shape], algo), 1)
    said = [
        f"{role} {sum(count)} forward" + (f", {count[1]} backward" if count[1] else "")
        for role, count in expected.items()
    ]
    rows = {line.split()[0]: line for line in plan.splitlines()}
    assert rows["passes"].endswith("; each sequence: " + " + ".join(said))
    keeps = planned(algorithm, config).keeps
    assert ("the reference's hidden states are kept; " in rows["passes"]) == keeps
    assert any(line.split()[:2] == ["hidden", "states"] for line in plan.splitlines()) == keeps
    # No pass, no model: what is not compared with is not loaded.
    assert ("reference" in expected) == ("reference" in rows)


def test_a_policy_that_waits_for_its_critic_passes_once(engines: dict[Role, Any], models: dict[str, Path]) -> None:
    algorithm: Algorithm = registry.build("algorithms", "ppo", {"critic_warmup_steps": 2})
    config = settings(models["tied"])
    waiting = {"policy": (1, 0), "critic": (1, 1)}
    assert passes_made(algorithm, config, engines, step=2) == waiting
    assert planned(algorithm, config, learns=False).forwards() == waiting
    assert passes_made(algorithm, config, engines, step=3) == {"policy": (0, 1), "critic": (1, 1)}


@pytest.mark.parametrize("algo", ["vimpo", "grpo"])
def test_a_correction_takes_a_pass(algo: str, engines: dict[Role, Any], models: dict[str, Path]) -> None:
    algorithm: Algorithm = registry.build("algorithms", algo, {"whiten": "running"} if algo == "vimpo" else {})
    config = settings(models["tied"], correction={"limit": 2.0})
    made = passes_made(algorithm, config, engines)
    assert made["policy"] == (1, 1)
    assert made == planned(algorithm, config).forwards()


# What is kept of the reference

COMPARES: list[tuple[str, dict[str, Any]]] = [
    ("vimpo", {"beta": 0.05}),
    ("vimpo_auto", {}),
    ("grpo", {"kl_coef": 0.1, "kl_estimator": "exact"}),
]


@pytest.mark.parametrize("algo", COMPARES, ids=lambda algo: algo[0])
def test_without_room_the_reference_passes_each_time(
    algo: tuple[str, dict[str, Any]],
    engines: dict[Role, Any],
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The size of the longest responses decides, to the byte: what the plan says, and what the learner does."""
    algorithm: Algorithm = registry.build("algorithms", *algo)
    config = settings(
        models["tied"],
        batch={"epochs": 3, "prompts_per_step": 5, "samples_per_prompt": 2},
        sampling={"max_tokens": 12, "temperature": 0.8},
    )
    taken = 5 * 2 * 12 * 64 * 4
    assert planned(algorithm, config).states == taken
    for room, passed in ((taken, 1), (taken - 1, 3)):
        monkeypatch.setattr("rlkit.engine.passes.KEPT_BYTES", room)
        assert planned(algorithm, config).forwards()["reference"] == (passed, 0)
        assert passes_made(algorithm, config, engines)["reference"] == (passed, 0)
        said = "; ".join(planned(algorithm, config).lines())
        assert ("the reference's hidden states are not kept (30 KiB are over 30 KiB)" in said) == (passed == 3)


def test_with_minibatches_and_ranks_rows_move_so_nothing_is_kept(models: dict[str, Path]) -> None:
    algorithm: Algorithm = registry.build("algorithms", *COMPARES[0])
    for minibatches, ranks, passed in ((1, 2, 1), (2, 1, 1), (2, 2, 2)):
        config = settings(models["tied"], batch={"minibatches": minibatches, "epochs": 2})
        passes = passes_of(algorithm, config, ranks, 64)
        assert passes.forwards()["reference"] == (passed, 0)
        assert ("not kept (rows change ranks between passes)" in "; ".join(passes.lines())) == (passed == 2)
    plan = runs.plan(configs.load("embedded_xs", ["batch.minibatches=2", "batch.epochs=2"], "vimpo"), 2)
    assert "not kept (rows change ranks between passes); each sequence: policy 5 forward, 2 backward + ref" in plan
    assert "for the reference's hidden states" not in plan
    assert passes_of(algorithm, config, 1, None).forwards()["reference"] == (2, 0)


CORRECTED = {"correction": {"mode": "mask", "level": "token", "limit": 1.5}}
LORA = {"model": {"lora": {"rank": 4}}}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:step 3")
@pytest.mark.parametrize("algo", COMPARES, ids=lambda algo: algo[0])
@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [{}, CORRECTED, {"reference": {"kind": "average", "decay": 0.5}}, LORA],
    ids=["frozen", "corrected", "average", "lora"],
)
def test_what_is_learnt_does_not_miss_the_reference(
    algo: tuple[str, dict[str, Any]], minibatches: int, changes: dict[str, Any], models: dict[str, Path]
) -> None:
    seed = fresh_seed()
    config = settings(models["tied"], batch={"minibatches": minibatches, "epochs": 2}, **changes)
    kept, anew = (run("reuse", config, models["reference"], seed, algo, keeps) for keeps in (True, False))
    agree(kept, anew, exactly=minibatches == 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"zero_stage": 3}},
        LORA | {"engine": {"zero_stage": 3}, "reference": {"kind": "average", "decay": 0.5}},
    ],
    ids=["model", "lora"],
)
def test_each_rank_keeps_its_rows(changes: dict[str, Any], models: dict[str, Path], two_ranks: TwoRanks) -> None:
    seed = fresh_seed()
    config = settings(models["tied"], batch={"epochs": 2, "tokens_per_microbatch": 20}, **changes)
    kept, anew = (
        two_ranks.run("reuse", config, models["reference"], seed, COMPARES[0], keeps) for keeps in (True, False)
    )
    for here, there in zip(kept, anew, strict=True):
        agree(here, there, exactly=True)


@pytest.mark.slow
def test_no_rank_looks_for_what_another_keeps(models: dict[str, Path], two_ranks: TwoRanks) -> None:
    config = settings(models["tied"], batch={"epochs": 2, "minibatches": 2})
    seed = fresh_seed()
    found = [two_ranks.run("reuse", config, models["reference"], seed, COMPARES[0], keeps) for keeps in (True, False)]
    for here, there in zip(*found, strict=True):
        assert here["asked"] == there["asked"] > 0
        assert here["metrics"] == there["metrics"]


def agree(kept: dict[str, Any], anew: dict[str, Any], *, exactly: bool) -> None:
    """Of two learners, of which one has kept the reference's hidden states from epoch to epoch."""
    assert 0 < kept["asked"] < anew["asked"]
    tolerance = {"rtol": 0.0, "atol": 0.0} if exactly else {"rtol": 1e-3, "atol": 1e-6}
    assert kept["metrics"][1]["policy/kl"] > 1e-5
    # In the third step one row counts, of which the correction may limit none.
    assert all(row.get("correction/limited", 1) > 0 for row in kept["metrics"][:2])
    for here, there in zip(kept["metrics"], anew["metrics"], strict=True):
        assert here.keys() == there.keys()
        for name, value in here.items():
            torch.testing.assert_close(torch.tensor(value), torch.tensor(there[name]), equal_nan=True, **tolerance)
    for name, weight in kept["weights"].items():
        assert (weight - anew["weights"][name]).norm() <= tolerance["rtol"] * weight.norm(), name


def test_states_of_another_rollout_are_not_taken(engines: dict[Role, Any], models: dict[str, Path]) -> None:
    algorithm: Algorithm = registry.build("algorithms", *COMPARES[0])
    learner = learner_of(algorithm, settings(models["tied"], batch={"epochs": 2}), engines)
    rollout = random_batch(fresh_seed(), rows=16)[0].rollout
    old = learner.measure(rollout, 1)
    other = dataclasses.replace(rollout, keys=[dataclasses.replace(key, rollout_step=2) for key in rollout.keys])
    with pytest.raises(RlkitError, match="0 hidden states of the reference are kept, and its mask has"):
        learner.learn(other, old, 1)
    assert learner.reference is not None
    assert learner.reference.kept is not None
    learner.learn(rollout, old, 1)
    assert learner.reference.kept is None  # a reference that moves does so now


# What is learnt without the pass


class MeasuredBefore(VimpoConfig):
    """VIMPO whose KL_t is of a pass of its own, whether its actor part needs one or not."""

    @property
    def measured(self) -> Measured:
        return "now"


@pytest.mark.parametrize("estimator", ["exact", "k3"])
@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (2, 1), (1, 2)])
def test_the_value_loss_and_its_gradient_do_not_miss_the_pass(
    estimator: Any, minibatches: int, epochs: int, models: dict[str, Path]
) -> None:
    seed, found = fresh_seed(), []
    for kind in (VimpoConfig, MeasuredBefore):
        config = settings(models["tied"], batch={"minibatches": minibatches, "epochs": epochs})
        policy = engine_of(config)
        gradients = keep_gradients(policy)
        reference = FrozenModel(engine_of(settings(models["reference"]), frozen=True))
        algorithm = vimpo(kind(beta=0.05, estimator=estimator, actor_coef=0.0))
        learner = Learner(config, algorithm, policy, reference, None, RunState())
        batch, _ = random_batch(seed, rows=16)
        with counted({"policy": policy}) as made:
            metrics, _ = learner.learn(batch.rollout, learner.measure(batch.rollout, 1), 1)
        found.append((metrics, gradients, made["policy"][0]))
    (here, gradients, fewer), (there, expected, more) = found
    assert fewer < more
    assert here["vimpo/value_loss"] == pytest.approx(there["vimpo/value_loss"], rel=1e-5)
    assert here["policy/kl"] == pytest.approx(there["policy/kl"], rel=1e-5)
    assert here["policy/kl"] > 0.1
    assert len(gradients) == len(expected) == minibatches * epochs
    for one, other in zip(gradients, expected, strict=True):
        for name, gradient in other.items():
            assert gradient.norm() > 0
            assert (one[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.filterwarnings("ignore:vimpo")
def test_running_mean_and_spread_are_of_all_rows_however_they_are_cut(
    models: dict[str, Path], two_ranks: TwoRanks
) -> None:
    """Over micro-batches and ranks, which agree to the last digit."""
    seed = fresh_seed()

    def config(budget: int) -> Any:
        return settings(models["tied"], batch={"tokens_per_microbatch": budget, "minibatches": 2})

    whole = run("whiten", config(10_000), models["reference"], seed)
    cut = run("whiten", config(45), models["reference"], seed)
    first, second = two_ranks.run("whiten", config(45), models["reference"], seed)
    assert whole["state"].keys() == {"mean", "variance"}
    assert whole["state"]["variance"] > 0
    assert first["state"] == second["state"]
    for found in (cut, first):
        assert found["state"] == pytest.approx(whole["state"], rel=1e-3)
        for here, there in zip(found["metrics"], whole["metrics"], strict=True):
            assert here["vimpo/actor_coef"] == pytest.approx(there["vimpo/actor_coef"])
            assert here["vimpo/running_scale"] == pytest.approx(there["vimpo/running_scale"], rel=1e-3)
            assert here["policy/grad_norm"] == pytest.approx(there["policy/grad_norm"], rel=1e-3)
        for name, weight in whole["weights"].items():
            assert (found["weights"][name] - weight).norm() < 1e-4 * weight.norm(), name
    coefs = [metrics["vimpo/actor_coef"] for metrics in whole["metrics"]]
    assert 0 < coefs[0] < coefs[1]  # the very first of the first two updates has no actor part


def test_an_update_that_was_not_made_is_not_remembered(models: dict[str, Path]) -> None:
    algorithm = vimpo(VimpoConfig(beta=0.05, whiten="running", actor_coef=0.01))
    config = settings(models["tied"])
    engines: dict[Role, Any] = {
        "policy": engine_of(config),
        "reference": engine_of(settings(models["reference"]), frozen=True),
    }
    batch, _ = random_batch(fresh_seed(), rows=16)
    loss = algorithm.policy_loss

    def broken(*args: Any) -> Any:
        value, metrics = loss(*args)
        return value * float("inf"), metrics

    broken.needs, broken.reads = algorithm.needs, algorithm.reads  # type: ignore[attr-defined]
    learner = learner_of(dataclasses.replace(algorithm, policy_loss=broken), config, engines)
    with pytest.warns(UserWarning, match="not finite"):
        learner.learn(batch.rollout, learner.measure(batch.rollout, 1), 1)
    assert learner.state.algorithm == {}
    learner = learner_of(algorithm, config, engines)
    learner.learn(batch.rollout, learner.measure(batch.rollout, 2), 2)
    assert learner.state.algorithm.keys() == {"mean", "variance"}


@pytest.mark.parametrize("change", ["whiten=running", "actor_coef=0"])
def test_inspect_says_that_no_pass_has_measured_a_credit(change: str, tmp_path: Path) -> None:
    small = ["steps=2", "batch.prompts_per_step=2", "batch.samples_per_prompt=2", "eval.problems=2", f"out={tmp_path}"]
    folder = RunFolder.open(rlkit.train(configs.load("embedded_xs", [*small, f"algo.{change}"], "vimpo"), quiet=True))
    result = CliRunner().invoke(main, ["inspect", str(folder.path)])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert f"vimpo, as set in {folder.path.name}, has measured nothing of the tokens before the update" in said
    assert "nothing is kept of what these tokens were credited" in said
    assert list((folder.path / "inspection").glob("*.html"))
    assert len(rlkit.Run(folder.path).credit())
