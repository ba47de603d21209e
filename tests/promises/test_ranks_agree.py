"""One rank, two ranks and plain PyTorch learn the same, in every ZeRO stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_worker import STATS, TwoRanks, policy_loss, random_batch, run, settings
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkit.interfaces.learning import Rollout, TokenStats

SEED = 11


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest relative difference of a tensor, by its norm."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / b[n].norm().clamp(min=1e-12)) for n in b)


def naive_stats(model: Any, reference: Any, rollout: Rollout, temperature: float) -> TokenStats:
    """Row by row, without padding, from whole logits."""
    rows = []
    for row, prompt in enumerate(rollout.prompt_tokens):
        ids = torch.cat([prompt, rollout.tokens[row, : rollout.length[row]]])[None]
        logp = torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1] / temperature, -1)
        with torch.no_grad():
            ref = torch.log_softmax(reference(ids).logits[0, len(prompt) - 1 : -1] / temperature, -1)
        said = rollout.tokens[row, : rollout.length[row], None]
        found = [
            logp.gather(-1, said)[:, 0],
            (logp.exp() * (logp - ref)).sum(-1),
            -(logp.exp() * logp).sum(-1),
            ref.gather(-1, said)[:, 0],
        ]
        missing = rollout.tokens.shape[1] - int(rollout.length[row])
        rows.append(torch.stack([torch.nn.functional.pad(f, (0, missing)) for f in found]))
    whole = torch.stack(rows, 1) * rollout.mask
    return TokenStats(logprobs=whole[0], token_kl=whole[1], entropy=whole[2], ref_logprobs=whole[3])


def learn_plainly(model_path: Path, reference_path: Path) -> dict[str, Any]:
    config = settings(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    reference = AutoModelForCausalLM.from_pretrained(reference_path).eval()
    wanted = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=wanted.lr, betas=wanted.betas, eps=wanted.eps, weight_decay=wanted.weight_decay
    )
    batch, targets = random_batch(SEED)
    gradients, metrics = [], []
    with torch.no_grad():
        before = naive_stats(model, reference, batch.rollout, config.sampling.temperature)
    for update in range(3):
        new = naive_stats(model, reference, batch.rollout, config.sampling.temperature)
        batch.old.logprobs = new.get("logprobs").detach()
        loss, _ = policy_loss(new, batch, targets)
        loss.backward()
        gradients.append({"lm." + n: p.grad.clone() for n, p in model.named_parameters()})
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), wanted.clip_norm)
        assert norm > wanted.clip_norm, "the test is meant to see clipping"
        optimizer.param_groups[0]["lr"] = wanted.lr * min(1.0, (update + 1) / wanted.warmup_updates)
        optimizer.step()
        optimizer.zero_grad()
        gap = (new.get("logprobs").detach() - batch.rollout.sampler_logprobs).abs()[batch.mask]
        metrics.append(
            {
                "policy/loss": float(loss.detach()),
                "policy/grad_norm": float(norm),
                "policy/lr": optimizer.param_groups[0]["lr"],
                "policy/kl": float(new.get("token_kl").detach().sum() / batch.n_tokens),
                "policy/entropy": float(new.get("entropy").detach().sum() / batch.n_tokens),
                "sampler/gap_mean": float(gap.mean()),
                "sampler/gap_max": float(gap.max()),
            }
        )
    return {
        "before": {name: before.get(name) for name in STATS | {"ref_logprobs"}},
        "gradients": gradients,
        "metrics": metrics,
        "weights": {name: parameter.detach() for name, parameter in model.named_parameters()},
    }


@pytest.fixture(scope="module")
def plain(models: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return {name: learn_plainly(models[name], models["reference"]) for name in ("tied", "untied")}


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, values in expected["before"].items():
        torch.testing.assert_close(found["before"][name], values, rtol=1e-5, atol=2e-5, msg=f"{name} differs")
    torch.testing.assert_close(found["ref_alone"], expected["before"]["ref_logprobs"], rtol=1e-5, atol=2e-5)
    assert difference(found["gradients"][0], expected["gradients"][0]) < 1e-5
    assert difference(found["weights"], expected["weights"]) < 1e-5
    assert len(found["metrics"]) == 3
    for here, there in zip(found["metrics"], expected["metrics"], strict=True):
        assert here == pytest.approx(there, rel=1e-4)


@pytest.mark.parametrize(("stage", "model"), [(0, "tied"), (2, "tied"), (3, "tied"), (3, "untied")])
@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_and_weights_are_those_of_plain_pytorch(
    stage: int, model: str, ranks: int, models: dict[str, Path], two_ranks: TwoRanks, plain: dict[str, Any]
) -> None:
    config = settings(models[model], engine={"zero_stage": stage})
    if ranks == 1:
        check(run("learn", config, models["reference"], SEED), plain[model])
    else:
        for found in two_ranks.run("learn", config, models["reference"], SEED):
            check(found, plain[model])


def test_the_ranks_of_this_test_have_unequal_shares() -> None:
    from rlkit.ops.packing import plan_microbatches

    rollout = random_batch(SEED)[0].rollout
    valid = rollout.valid.nonzero().flatten().tolist()
    prompts = [tuple(rollout.prompt_tokens[row].tolist()) for row in valid]
    lengths = [len(prompt) + int(rollout.length[row]) for row, prompt in zip(valid, prompts, strict=True)]
    first, second = plan_microbatches(lengths, 60, ranks=2, packed=True, prompts=prompts)
    assert sum(map(len, first)) != sum(map(len, second))


def test_two_threads_of_a_rank_speak_with_the_others_at_once_and_hear_their_own(two_ranks: TwoRanks) -> None:
    count = 50
    for found in two_ranks.run("two_conversations", count):
        assert found["main"][::2] == [[("main", rank, number) for rank in (0, 1)] for number in range(count)]
        assert found["main"][1::2] == [True] * count
        assert found["thread"][::2] == [[("thread", rank, number) for rank in (0, 1)] for number in range(count)]
        assert found["thread"][1::2] == [[2 * number, 21] for number in range(count)]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_rank_without_samples_takes_part(stage: int, models: dict[str, Path], two_ranks: TwoRanks) -> None:
    config = settings(models["tied"], engine={"zero_stage": stage})
    alone = run("learn", config, models["reference"], SEED, rows=2)
    for found in two_ranks.run("learn", config, models["reference"], SEED, rows=2):
        assert difference(found["weights"], alone["weights"]) < 1e-5
        assert found["metrics"][2] == pytest.approx(alone["metrics"][2], rel=1e-4)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_critic_learns_the_same(stage: int, models: dict[str, Path], two_ranks: TwoRanks) -> None:
    config = settings(models["tied"], engine={"zero_stage": stage})
    alone = run("learn_values", config, SEED)
    losses = [metrics["critic/loss"] for metrics in alone["metrics"]]
    assert losses == sorted(losses, reverse=True)
    assert alone["values"].abs().max() > 1e-3
    for found in two_ranks.run("learn_values", config, SEED):
        torch.testing.assert_close(found["values"], alone["values"], rtol=1e-4, atol=1e-6)
        for here, there in zip(found["metrics"], alone["metrics"], strict=True):
            assert here == pytest.approx(there, rel=1e-4)


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_what_is_not_finite_makes_no_step(stage: int, kind: str, models: dict[str, Path], two_ranks: TwoRanks) -> None:
    """On whichever rank it is, and what comes after is as if it had not been."""
    config = settings(models["tied"], engine={"zero_stage": stage})
    clean = run("stumble", config, SEED, "nothing")
    assert clean["said"] == "nothing"
    for found in [run("stumble", config, SEED, kind), *two_ranks.run("stumble", config, SEED, kind)]:
        assert "policy, update 0: the loss is" in found["said"]
        assert ("SampleKey(prompt_id='p0'" in found["said"]) == (kind == "loss")
        assert found["updates"] == 1
        assert difference(found["weights"], clean["weights"]) < 1e-5
