"""A reference stands still within a rollout, and between two of them moves as its setting says; over a resume too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_worker import TwoRanks, engine_of, run, settings
from torch import Tensor
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

SEED = 13
LORA = {"lora": {"rank": 4}}
AVERAGE = {"kind": "average", "decay": 0.6}
Weights = dict[str, Tensor]


def config_of(path: Path, reference: dict[str, Any], stage: int = 0, **model: Any) -> Any:
    return settings(path, engine={"zero_stage": stage}, reference=reference, model=model)


def expected(held: list[Any], reference: dict[str, Any], mix: Callable[[Any, Any, float], Any]) -> list[Any]:
    """The reference's weights after each rollout of two updates, from the policy's after each update."""
    mean, shown = held[0], []
    for rollout in range(1, (len(held) - 1) // 2 + 1):
        steps = held[2 * rollout - 1 : 2 * rollout + 1]
        if reference["kind"] == "copy":
            mean = steps[-1] if rollout % reference["every"] == 0 else mean
        else:
            for weights in steps if reference.get("by") == "update" else steps[-1:]:
                mean = mix(mean, weights, reference["decay"])
        shown.append(mean)
    return shown


def mix_named(mean: Weights, new: Weights, decay: float) -> Weights:
    return {name: decay * mean[name].double() + (1 - decay) * new[name].double() for name in mean}


def mix_tensors(mean: list[Tensor], new: list[Tensor], decay: float) -> list[Tensor]:
    return [decay * m.double() + (1 - decay) * n.double() for m, n in zip(mean, new, strict=True)]


def said_by(path: Path, weights: Weights, rollout: Any) -> Tensor:
    """Log-probs of the rollout's tokens under these weights, row by row, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    own = dict(model.named_parameters())
    found = torch.zeros(rollout.mask.shape)
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)
        for row, prompt in enumerate(rollout.prompt_tokens):
            tokens = rollout.tokens[row, : rollout.length[row]]
            logits = model(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1]
            logp = torch.log_softmax(logits / 0.8, -1).gather(-1, tokens[:, None])[:, 0]
            found[row, : len(tokens)] = logp
    return found * rollout.mask


def check_resumed(found: dict[str, Any]) -> None:
    for name in ("after", "during", "own"):
        for straight, resumed in zip(found[name][2:], found["resumed"][name], strict=True):
            assert torch.equal(straight, resumed), name


def check_still(found: dict[str, Any]) -> None:
    """What it says while the policy learns is what it said before; and asking it leaves the policy as it was."""
    for before, during in zip([found["before"], *found["after"][:-1]], found["during"], strict=True):
        assert torch.equal(before, during)
    for own, later in itertools.pairwise(found["own"]):
        assert not torch.equal(own, later)


KINDS: list[dict[str, Any]] = [
    AVERAGE,
    {**AVERAGE, "by": "update"},
    {**AVERAGE, "keep_on": "host"},
    {"kind": "copy", "every": 2},
    {"kind": "frozen"},
]


def named(kind: Any) -> str:
    return "-".join(map(str, kind.values())) if isinstance(kind, dict) else str(kind)


@pytest.mark.parametrize(
    ("reference", "stage", "ranks"),
    [*((kind, 0, 1) for kind in KINDS), *((kind, 3, 2) for kind in KINDS), (AVERAGE, 2, 2), (AVERAGE, 3, 1)],
    ids=named,
)
def test_a_model_of_its_own_follows_the_policys_weights(
    reference: dict[str, Any], stage: int, ranks: int, models: dict[str, Path], two_ranks: TwoRanks, tmp_path: Path
) -> None:
    config = config_of(models["tied"], reference, stage)
    every = [run("follow", config, SEED, tmp_path)] if ranks == 1 else two_ranks.run("follow", config, SEED, tmp_path)
    for found in every:
        check_still(found)
        check_resumed(found)
        if reference["kind"] == "frozen":
            assert all(torch.equal(said, found["before"]) for said in found["after"])
            continue
        for weights, said in zip(expected(found["held"], reference, mix_named), found["after"], strict=True):
            torch.testing.assert_close(said, said_by(models["tied"], weights, found["rollout"]), rtol=1e-5, atol=2e-5)
        assert (found["after"][-1] - found["before"]).abs().max() > 1e-2


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("reference", [KINDS[1], KINDS[3]], ids=named)
def test_with_lora_the_adapters_follow(
    reference: dict[str, Any], stage: int, models: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(models["tied"], reference, stage, **LORA)
    found = run("follow", config, SEED, tmp_path)
    check_still(found)
    check_resumed(found)
    if reference["kind"] == "frozen":
        assert all(torch.equal(said, found["before"]) for said in found["after"])
        return
    twin = engine_of(config)
    for adapters, said in zip(expected(found["adapters"], reference, mix_tensors), found["after"], strict=True):
        for tensor, value in zip(twin.local_weights(trained=True), adapters, strict=True):
            tensor.copy_(value)
        torch.testing.assert_close(said, twin.own_logprobs(found["rollout"]), rtol=1e-5, atol=2e-5)
    assert (found["after"][-1] - found["before"]).abs().max() > 1e-3


def test_an_average_of_bfloat16_weights_is_kept_in_float32(models: dict[str, Path], tmp_path: Path) -> None:
    """At a decay of .99 a bfloat16 mean would not move at all: each step is below its resolution."""
    reference = {"kind": "average", "decay": 0.99}
    config = config_of(models["tied"], reference, 1, dtype="bfloat16")
    found = run("follow", config, SEED, tmp_path)
    check_resumed(found)
    kept = torch.load(tmp_path / "step-00000002" / "reference" / "rank-0.pt", weights_only=True)["weights"]
    assert all(tensor.dtype == torch.float32 for tensor in kept)
    policy = [tensor.float() for tensor in found["held"][4].values()]
    first = [tensor.float() for tensor in found["held"][0].values()]
    moved = math.sqrt(sum(float((k - f).norm() ** 2) for k, f in zip(kept, first, strict=True)))
    whole = math.sqrt(sum(float((p - f).norm() ** 2) for p, f in zip(policy, first, strict=True)))
    assert 0.005 < moved / whole < 0.02


def test_a_checkpoint_of_another_reference_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    from rlkit.engine import checkpoint
    from rlkit.engine.reference import reference_of
    from rlkit.errors import ConfigError

    def begin(reference: dict[str, Any]) -> tuple[Any, Any]:
        config = config_of(models["tied"], reference)
        policy = engine_of(config)
        return policy, reference_of(policy, config, lambda: engine_of(config, frozen=True))

    policy, frozen = begin({"kind": "frozen"})
    path = checkpoint.save(tmp_path, 1, {"policy": policy}, {}, keep=1, reference=frozen)
    policy, average = begin(AVERAGE)
    with pytest.raises(ConfigError, match=r"reference: frozen in the checkpoint, average here"):
        checkpoint.load(path, {"policy": policy}, average)
