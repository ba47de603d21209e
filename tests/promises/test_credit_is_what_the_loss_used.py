"""What `rlkit inspect` shows of a token is what the loss made of it: recomputed here from the run's files alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from random_batches import fresh_case

import rlkit
from rlkit import config as configs
from rlkit import registry
from rlkit.interfaces.learning import Batch, Targets, TokenStats
from rlkit.loop.learner import Learner as Trainer
from rlkit.records.folder import DIAGNOSED, RunFolder

Row = dict[str, Any]
Numbers = list[list[float]]


def trained(folder: Path, algo: str, *more: str) -> RunFolder:
    """Three steps of 4 prompts x 4 samples, far enough from the reference to be seen."""
    settings = [f"out={folder}", "steps=3", "batch.prompts_per_step=4", "batch.samples_per_prompt=4", "seed=3"]
    small = ["eval.problems=2", "optimizer.lr=2e-3", "sampling.max_tokens=24", *more]
    return RunFolder.open(rlkit.train(configs.load("embedded_xs", settings + small, algo), quiet=True))


def rows_of(folder: RunFolder, step: int) -> list[Row]:
    """The step's samples, with what was credited under `kept`."""
    rows: list[Row] = pq.read_table(folder.rollout_file(step)).to_pylist()
    for credit in pq.read_table(folder.credit_file(step)).to_pylist():
        rows[credit.pop("row")]["kept"] = credit
    return rows


def group_means(rows: Sequence[Row]) -> list[float]:
    by_group: dict[int, list[float]] = {}
    for row in rows:
        by_group.setdefault(row["group"], []).append(row["reward"])
    return [math.fsum(by_group[row["group"]]) / len(by_group[row["group"]]) for row in rows]


def whitened(numbers: Numbers, floor: float) -> Numbers:
    every = [x for row in numbers for x in row]
    mean = math.fsum(every) / len(every)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in every) / len(every) + floor**2)
    return [[(x - mean) / spread for x in row] for row in numbers]


def agree(rows: Sequence[Row], name: str, expected: Numbers, tolerance: float) -> None:
    for row, numbers in zip(rows, expected, strict=True):
        assert row["kept"][name] == pytest.approx(numbers, rel=1e-3, abs=tolerance)


def implied(row: Row, beta: float) -> list[float]:
    """rho_t - kappa_t of each token."""
    columns = zip(row["logprobs"], row["ref_logprobs"], row["token_kl"], strict=True)
    return [beta * (new - ref - kl) for new, ref, kl in columns]


def test_vimpo_soft_starts_below_the_mean_reward(tmp_path: Path) -> None:
    """By beta times the group's mean KL; and the KL is in no token's credit."""
    folder = trained(tmp_path, "vimpo", "algo.value=soft")
    beta = folder.read_config().algo.options["beta"]
    rows = rows_of(folder, 3)
    soft = [{**row, "reward": row["reward"] - beta * math.fsum(row["token_kl"])} for row in rows]
    credit, value = [], []
    for row, start in zip(rows, group_means(soft), strict=True):
        credit.append([beta * (a - b) for a, b in zip(row["logprobs"], row["ref_logprobs"], strict=True)])
        value.append([start + math.fsum(credit[-1][:t]) for t in range(len(credit[-1]))])
    agree(rows, "credit", credit, 1e-7)
    agree(rows, "value", value, 1e-6)
    assert max(abs(a - b) for a, b in zip(group_means(soft), group_means(rows), strict=True)) > 1e-3


def test_vimpo_implied_value_and_credit(tmp_path: Path) -> None:
    folder = trained(tmp_path, "vimpo", "noise=[{kind: flip, prob: 0.3}]")
    beta, lam = folder.read_config().algo.options["beta"], folder.read_config().algo.options["lam"]
    for step in (1, 3):
        rows = rows_of(folder, step)
        assert all(all(row["mask"]) for row in rows)
        credit, value, suffix = [], [], []
        for row, start in zip(rows, group_means(rows), strict=True):
            terms = implied(row, beta)
            credit.append(terms)
            value.append([start + math.fsum(terms[:t]) for t in range(len(terms))])
            suffix.append(
                [math.fsum(lam ** (k - t) * terms[k] for k in range(t, len(terms))) for t in range(len(terms))]
            )
        agree(rows, "credit", credit, 1e-7)
        agree(rows, "value", value, 1e-6)
        agree(rows, "advantages", whitened(suffix, 0.2 * beta), 1e-3)
    assert max(abs(term) for row in credit for term in row) > 1e-3
    assert len({row["kept"]["value"][0] for row in rows}) > 1


def test_ppo_critic_and_whitened_advantage(tmp_path: Path) -> None:
    folder = trained(tmp_path, "ppo", "algo.lam=0.9", "algo.gamma=0.95")
    for step in (1, 3):
        rows = rows_of(folder, step)
        advantages = []
        for row in rows:
            values, found = [*row["values"], 0.0], []
            last = len(values) - 2
            for t in range(last + 1):
                total = 0.0
                for later in range(t, last + 1):
                    reward = row["reward"] if later == last else 0.0
                    delta = reward + 0.95 * values[later + 1] - values[later]
                    total += (0.95 * 0.9) ** (later - t) * delta
                found.append(total)
            advantages.append(found)
        agree(rows, "value", [row["values"] for row in rows], 0)
        agree(rows, "advantages", whitened(advantages, 1e-4), 1e-4)
    assert max(abs(value) for row in rows for value in row["values"]) > 1e-3


@pytest.mark.parametrize("minibatches", [1, 2])
def test_grpo_one_number_for_all_tokens(tmp_path: Path, minibatches: int) -> None:
    """With two minibatches the groups come in another order: each row's numbers must find back to it."""
    folder = trained(tmp_path, "grpo", f"batch.minibatches={minibatches}", "noise=[{kind: gaussian, std: 0.5}]")
    for step in (1, 2, 3):
        rows = rows_of(folder, step)
        means = group_means(rows)
        for row, mean in zip(rows, means, strict=True):
            members = [other["reward"] for other in rows if other["group"] == row["group"]]
            deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in members) / (len(members) - 1))
            score = (row["reward"] - mean) / (deviation + 1e-6)
            assert row["kept"] == {"advantages": pytest.approx([score] * len(row["tokens"]), rel=1e-4, abs=1e-5)}
        assert len({row["kept"]["advantages"][0] for row in rows}) == len(rows)


def test_the_loss_itself_saw_these_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first epoch, and of the first samples alone, wherever the minibatches put them; a sample without a
    reward has none, and what is kept is not what a later epoch made of it."""
    seen: list[dict[tuple[str, int], list[float]]] = []
    update = Trainer._update

    def watched(trainer: Trainer, batch: Batch, targets: Targets, *rest: Any) -> dict[str, float]:
        loss = trainer.algorithm.policy_loss
        part: dict[tuple[str, int], list[float]] = {}

        def watching(new: TokenStats, batch: Batch, targets: Targets) -> Any:
            for row, key in enumerate(batch.rollout.keys):
                length = int(batch.rollout.length[row])
                part[key.prompt_id, key.index] = targets.get("advantages")[row, :length].tolist()
            return loss(new, batch, targets)

        trainer.algorithm.policy_loss = watching
        result = update(trainer, batch, targets, *rest)
        trainer.algorithm.policy_loss = loss
        seen.append(part)
        return result

    monkeypatch.setattr(Trainer, "_update", watched)
    monkeypatch.setattr("rlkit.records.folder.DIAGNOSED", 10)
    folder = trained(
        tmp_path, "vimpo", "steps=2", "batch.minibatches=2", "batch.epochs=2", "batch.tokens_per_microbatch=64",
        "noise=[{kind: drop, prob: 0.2}]",
    )  # fmt: skip
    assert DIAGNOSED == 64
    assert len(seen) == 2 * 2 * 2
    for step in (1, 2):
        rows = rows_of(folder, step)
        assert ["kept" in row for row in rows] == [True] * 10 + [False] * 6
        first, second, later, _ = seen[4 * (step - 1) : 4 * step]
        used = first | second
        assert not all(row["valid"] for row in rows)
        for row in rows[:10]:
            kept, key = row["kept"]["advantages"], (row["prompt_id"], row["index"])
            if row["valid"]:
                assert kept == used[key]
            else:
                assert key not in used
                assert not any(kept)
        assert step == 1 or any(
            row["kept"]["advantages"] != later.get((row["prompt_id"], row["index"])) for row in rows[:10]
        )


def test_a_resume_drops_the_credit_of_later_steps(tmp_path: Path) -> None:
    folder = trained(tmp_path, "grpo")
    assert sorted(file.name for file in folder.credit.iterdir()) == [f"step-00000{n}.parquet" for n in (1, 2, 3)]
    folder.cut_after(1, folder.read_config())
    assert [file.name for file in folder.credit.iterdir()] == ["step-000001.parquet"]


def test_a_loss_is_not_swayed_by_credit() -> None:
    """Credit is for people: with it or without, with any numbers in it, the losses are the same."""
    case = fresh_case()
    for name in ("vimpo", "ppo"):
        algorithm = registry.build("algorithms", name, {})
        targets = algorithm.advantage(case.batch, {})
        assert targets.credit
        assert all(
            values.shape == case.batch.mask.shape and not values.requires_grad for values in targets.credit.values()
        )
        loss, _ = algorithm.policy_loss(case.new, case.batch, targets)
        targets.credit = {name: torch.full_like(values, math.nan) for name, values in targets.credit.items()}
        assert algorithm.policy_loss(case.new, case.batch, targets)[0].equal(loss)
