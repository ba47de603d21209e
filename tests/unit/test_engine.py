"""The engine's choices: dtypes, adapters, offload, checkpointing of activations, schedules, messages."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_worker import (
    TwoRanks,
    engine_of,
    keep_gradients,
    logprob_loss,
    random_batch,
    run,
    save_model,
    settings,
)
from torch import Tensor

from rlkit.config import OptimizerConfig
from rlkit.engine.models import load_policy, load_tokenizer
from rlkit.engine.settings import learning_rate
from rlkit.errors import ConfigError, RlkitError
from rlkit.ops.packing import plan_microbatches

SEED = 3
LORA = {"lora": {"rank": 4, "alpha": 8}}


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].flatten().float() for name in sorted(weights)])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_moves_as_far_as_float32_and_the_same_way(stage: int, models: dict[str, Path]) -> None:
    """An optimizer step taken with nothing, as DeepSpeed's stage 0 takes, would shorten the first update by a
    quarter."""
    moves = {}
    for dtype in ("float32", "bfloat16"):
        config = settings(
            models["tied"],
            model={"dtype": dtype},
            engine={"zero_stage": stage},
            optimizer={"lr": 1e-2, "weight_decay": 0.0, "eps": 1e-4, "warmup_updates": 0},
        )
        policy = engine_of(config)
        before = flat(dict(policy.weights()))
        batch, targets = random_batch(SEED)
        policy.update(batch, targets, logprob_loss)
        moves[dtype] = flat(dict(policy.weights())) - before
    assert float(moves["bfloat16"].norm() / moves["float32"].norm()) == pytest.approx(1.0, abs=0.05)
    assert torch.cosine_similarity(moves["bfloat16"], moves["float32"], dim=0) > 0.95


@pytest.mark.parametrize(
    ("stage", "offload"),
    [
        *((stage, False) for stage in (1, 2, 3)),
        (2, True),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(3, True, marks=pytest.mark.slow),
    ],
)
def test_bfloat16_gradients_add_up_in_float32(stage: int, offload: bool, models: dict[str, Path]) -> None:
    """A hundred passes over one sample: the mean is that sample's gradient. Added up in bfloat16 it is 5 % off."""
    config = settings(
        models["tied"],
        model={"dtype": "bfloat16"},
        engine={"zero_stage": stage, "offload_optimizer": offload},
        batch={"tokens_per_microbatch": 1},
    )
    batch, targets = random_batch(SEED)
    found = {}
    for copies in (1, 100):
        policy = engine_of(config)
        gradients = keep_gradients(policy)
        same = batch.rows([0] * copies)
        same.n_tokens = int(same.mask.sum())
        policy.update(same, targets.rows([0] * copies), logprob_loss)
        found[copies] = flat(gradients[0])
    assert (found[100] - found[1]).norm() < 0.02 * found[1].norm()


@pytest.mark.parametrize(("stage", "engine"), [(1, {}), (2, {}), (2, {"overlap_comm": True}), (3, {})])
def test_bfloat16_gradients_of_two_ranks_add_up_in_float32(
    stage: int, engine: dict[str, Any], models: dict[str, Path], two_ranks: TwoRanks
) -> None:
    """Each row's is of bfloat16, wherever it is computed: what is left is how they are added. Were the ranks' added up
    in bfloat16, they would be 2e-3 off."""
    config = settings(
        models["tied"],
        model={"dtype": "bfloat16"},
        engine={"zero_stage": stage} | engine,
        batch={"tokens_per_microbatch": 1},
    )
    one = flat(run("learn", config, models["reference"], SEED, updates=1)["gradients"][0])
    for found in two_ranks.run("learn", config, models["reference"], SEED, updates=1):
        assert (flat(found["gradients"][0]) - one).norm() < 1e-5 * one.norm()


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_lora_learns_and_its_reference_is_the_base_model(
    stage: int, ranks: int, models: dict[str, Path], two_ranks: TwoRanks
) -> None:
    config = settings(models["tied"], model=LORA, engine={"zero_stage": stage}, optimizer={"lr": 1e-2})
    frozen = engine_of(settings(models["tied"]), frozen=True)
    batch, _ = random_batch(SEED)
    base = frozen.token_stats(batch.rollout, frozenset({"logprobs"})).get("logprobs")
    founds = [run("learn", config, None, SEED)] if ranks == 1 else two_ranks.run("learn", config, None, SEED)
    for found in founds:
        torch.testing.assert_close(found["before"]["ref_logprobs"], base)
        torch.testing.assert_close(found["ref_alone"], base)
        assert not found["before"]["token_kl"].any()
        assert all(".lora_" in name for name in found["gradients"][0])
        torch.testing.assert_close(found["after"]["ref_logprobs"], base)
        assert found["after"]["token_kl"].max() > 1e-4
        losses = [metrics["policy/loss"] for metrics in found["metrics"]]
        assert losses[2] < losses[0]


@pytest.mark.parametrize("stage", [0, 3])
def test_the_weights_given_out_have_the_adapters_merged(stage: int, models: dict[str, Path], tmp_path: Path) -> None:
    policy = engine_of(settings(models["tied"], model=LORA, engine={"zero_stage": stage}, optimizer={"lr": 1e-2}))
    batch, targets = random_batch(SEED)
    policy.update(batch, targets, logprob_loss)
    policy.export(tmp_path / "hf")
    exported = engine_of(settings(tmp_path / "hf"), frozen=True)
    want = frozenset({"logprobs"})
    torch.testing.assert_close(
        exported.token_stats(batch.rollout, want).get("logprobs"),
        policy.token_stats(batch.rollout, want).get("logprobs"),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("stage", "engine", "model"),
    [
        (1, {}, {}),
        (1, {"offload_optimizer": True}, {}),
        (2, {"offload_optimizer": True}, {}),
        (3, {"offload_optimizer": True, "offload_parameters": True}, {}),
        (0, {}, {"gradient_checkpointing": True}),
        (3, {}, {"gradient_checkpointing": True}),
    ],
)
def test_saving_memory_changes_nothing(
    stage: int, engine: dict[str, Any], model: dict[str, Any], models: dict[str, Path]
) -> None:
    plain = run("learn", settings(models["tied"]), models["reference"], SEED)
    config = settings(models["tied"], engine={"zero_stage": stage} | engine, model=model)
    found = run("learn", config, models["reference"], SEED)
    for name, weight in plain["weights"].items():
        assert (found["weights"][name] - weight).norm() < 1e-5 * weight.norm(), name
    assert found["metrics"][2] == pytest.approx(plain["metrics"][2], rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "dtype", "ranks"),
    [
        (2, "bfloat16", 1),
        (3, "bfloat16", 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(2, "float32", 1), (2, "bfloat16", 2), (3, "float32", 1), (3, "bfloat16", 2)]
        ),
    ],
)
def test_states_that_leave_while_the_sampler_works_change_nothing(
    stage: int, dtype: str, ranks: int, models: dict[str, Path], two_ranks: TwoRanks, tmp_path: Path
) -> None:
    config = settings(models["tied"], model={"dtype": dtype}, engine={"zero_stage": stage}, optimizer={"lr": 1e-2})
    job = ("make_room", config, SEED, tmp_path)
    for found in [run(*job)] if ranks == 1 else two_ranks.run(*job):
        for update in range(2):
            held, stayed = found["left", True, update]
            assert held > stayed, "nothing has moved"
            assert found["left", False, update] == (held, held)
        for what in ("weights", "resumed"):
            for name, weight in found[what, False].items():
                assert torch.equal(found[what, True][name], weight), (what, name)
                assert torch.equal(found["resumed", True][name], found["weights", True][name]), name


@pytest.mark.parametrize(
    ("name", "model", "ranks"),
    [
        ("tied", {"dtype": "bfloat16"} | LORA, 1),
        pytest.param("untied", {}, 1, marks=pytest.mark.slow),
        pytest.param("tied", {"dtype": "bfloat16"} | LORA, 2, marks=pytest.mark.slow),
        pytest.param("tied", {"gradient_checkpointing": True}, 2, marks=pytest.mark.slow),
        pytest.param("untied", LORA, 2, marks=pytest.mark.slow),
    ],
)
def test_a_model_cut_while_it_is_loaded_is_the_same(
    name: str, model: dict[str, Any], ranks: int, models: dict[str, Path], two_ranks: TwoRanks
) -> None:
    job = ("load", settings(models[name], model=model, engine={"zero_stage": 3}, optimizer={"lr": 1e-2}), SEED)
    for found in [run(*job)] if ranks == 1 else two_ranks.run(*job):
        assert found["known", False] == found["known", True]
        assert found["metrics", False] == found["metrics", True]
        for what in ("loaded", "learnt"):
            assert found[what, False].keys() == found[what, True].keys()
            assert all(torch.equal(found[what, False][n], weight) for n, weight in found[what, True].items())
        for what in ("values", "frozen"):
            assert torch.equal(found[what, False], found[what, True])
        buffers = found["buffers", True]
        assert any("inv_freq" in name and buffer.dtype == torch.float32 for name, buffer in buffers.items())
        assert all(torch.equal(found["buffers", False][n], buffer) for n, buffer in buffers.items())
        adapters = 0 if "lora" not in model else found["held", True] // 10
        assert found["held", False] <= adapters, "a rank holds whole weights"


def test_zero_3_really_cuts_the_head(models: dict[str, Path]) -> None:
    policy = engine_of(settings(models["untied"], engine={"zero_stage": 3}))
    assert policy._module.head().weight.numel() == 0
    assert dict(policy.weights())["lm_head.weight"].shape == (2048, 64)


@pytest.mark.parametrize(("dtype", "stage"), [("float32", 0), ("bfloat16", 1), ("bfloat16", 3)])
def test_perturbed_weights_are_all_others_and_come_back_to_the_last_bit(
    dtype: str, stage: int, models: dict[str, Path]
) -> None:
    policy = engine_of(settings(models["untied"], model={"dtype": dtype}, engine={"zero_stage": stage}))
    ends = torch.finfo(getattr(torch, dtype))
    awkward = torch.tensor([0.0, -0.0, ends.smallest_normal, 1.5 * ends.smallest_normal, ends.max / 2, -1.0, 1.9])
    with torch.no_grad():
        policy.local_weights()[1].flatten()[: len(awkward)] = awkward.to(getattr(torch, dtype))
    policy.renew()
    before = dict(policy.weights())
    with policy.perturbed():
        for name, weight in policy.weights():
            change = (weight.double() / before[name].double() - 1)[before[name] != 0].abs()
            assert change.min() > 0.06, name
            assert change.max() <= 0.126, name
    for name, weight in policy.weights():
        assert torch.equal(weight.view(torch.uint8), before[name].view(torch.uint8)), name


def test_a_perturbed_weight_shows_behind_a_norm(models: dict[str, Path]) -> None:
    """Queries are normed before they are used: a common factor of their projection would not show."""
    policy = engine_of(settings(models["untied"]))
    rollout = random_batch(SEED)[0].rollout
    lm = policy._module.lm
    with policy.perturbed():
        sound = policy.own_logprobs(rollout)
    stale = lm.model.layers[0].self_attn.q_proj.weight
    old = stale.detach().clone()
    with policy.perturbed():
        stale.data.copy_(old)
        assert (policy.own_logprobs(rollout) - sound).abs()[rollout.mask].mean() > 1e-3


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("model", [{}, LORA], ids=["full", "lora"])
def test_the_weights_given_out_are_copies(stage: int, model: dict[str, Any], models: dict[str, Path]) -> None:
    policy = engine_of(settings(models["untied"], model=model, engine={"zero_stage": stage}, optimizer={"lr": 1e-2}))
    given = dict(policy.weights())
    then = {name: weight.clone() for name, weight in given.items()}
    policy.update(*random_batch(SEED), logprob_loss)
    assert all(torch.equal(weight, then[name]) for name, weight in given.items())
    moved = [name for name, weight in policy.weights() if not torch.equal(weight, then[name])]
    assert len(moved) > 10


@pytest.mark.parametrize(("size", "gathers"), [(2**28, 1), (2**21, 2)])
def test_zero_3_gathers_many_weights_at_once(
    size: int, gathers: int, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedding and head are of half a megabyte each, each of two layers of 1.3."""
    policy = engine_of(settings(models["untied"], engine={"zero_stage": 3}))
    gathered, gather = [], policy._gathered
    monkeypatch.setattr("rlkit.engine.deepspeed.GATHERED_BYTES", size)
    monkeypatch.setattr(
        policy, "_gathered", lambda some: gathered.append([4 * p.ds_numel for p in some]) or gather(some)
    )
    assert len(dict(policy.weights())) == sum(map(len, gathered)) == len(list(policy._module.parameters()))
    assert all(sum(part) <= size for part in gathered)
    assert len(gathered) == gathers


def test_lora_on_a_critic_trains_adapters_and_head(models: dict[str, Path]) -> None:
    critic = engine_of(settings(models["tied"], model=LORA), critic=True)
    trained = {name for name, parameter in critic._module.named_parameters() if parameter.requires_grad}
    assert {"head.weight", "head.bias"} < trained
    assert all(".lora_" in name for name in trained - {"head.weight", "head.bias"})


def test_nothing_to_learn_from_makes_no_step(models: dict[str, Path]) -> None:
    policy = engine_of(settings(models["tied"]))
    batch, targets = random_batch(SEED)
    batch.rollout.mask[:] = False
    assert policy.update(batch, targets, logprob_loss) == {}
    assert policy.updates == 0
    assert not policy.token_stats(batch.rollout, frozenset({"logprobs"})).get("logprobs").any()


def test_a_comparison_without_a_reference_is_refused(models: dict[str, Path]) -> None:
    policy = engine_of(settings(models["tied"]))
    with pytest.raises(RlkitError, match="ref_logprobs, token_kl: needs a reference policy"):
        policy.token_stats(random_batch(SEED)[0].rollout, frozenset({"token_kl", "ref_logprobs"}))


def test_out_of_memory_names_the_setting(models: dict[str, Path]) -> None:
    policy = engine_of(settings(models["tied"], batch={"tokens_per_microbatch": 600}))

    def greedy(*_: Any) -> Any:
        return torch.empty(2**60)

    with pytest.raises(RlkitError, match=r"tokens_per_microbatch: 600.*tokens_per_microbatch=300"):
        policy.update(*random_batch(SEED), greedy)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    for load in (load_policy, load_tokenizer):
        with pytest.raises(ConfigError, match=r"model\.path .*nothing. does not exist"):
            load(settings(tmp_path / "nothing").model)


def test_dropout_is_off(tmp_path: Path) -> None:
    policy = load_policy(settings(save_model(tmp_path, 0, tied=True)).model).train()
    ids = torch.randint(2048, (2, 9))
    assert policy.lm.config.attention_dropout == 0
    assert torch.equal(policy.lm(ids).logits, policy.lm(ids).logits)


def test_the_learning_rate_warms_up_and_follows_its_schedule() -> None:
    def rates(schedule: str) -> list[float]:
        config = OptimizerConfig.model_validate({"lr": 2.0, "warmup_updates": 4, "schedule": schedule})
        return [learning_rate(config, update, 12) for update in range(13)]

    for schedule in ("constant", "linear", "cosine"):
        assert rates(schedule)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert set(rates("constant")[4:]) == {2.0}
    assert rates("linear")[4:] == pytest.approx([2.0 - update / 4 for update in range(9)])
    assert rates("cosine")[4:] == pytest.approx([1 + math.cos(math.pi * update / 8) for update in range(9)])


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 50))), st.integers(1, 120), st.integers(1, 5), st.booleans()
)
def test_a_plan_has_every_row_once_and_as_many_passes_on_each_rank(
    drawn: list[tuple[int, int]], budget: int, ranks: int, packed: bool
) -> None:
    prompts = [(prompt,) * (1 + 3 * prompt) for prompt, _ in drawn]
    lengths = [len(prompt) + response for prompt, (_, response) in zip(prompts, drawn, strict=True)]

    def packed_tokens(rows: list[int]) -> int:
        """Of rows behind each other, where a prompt is left out that is that of the row before."""
        pairs = itertools.pairwise(rows)
        return sum(lengths[row] for row in rows) - sum(len(prompts[b]) for a, b in pairs if prompts[a] == prompts[b])

    def padded_tokens(rows: list[int]) -> int:
        return len(rows) * max(lengths[row] for row in rows)

    plan = plan_microbatches(lengths, budget, ranks, packed, prompts)
    assert len(plan) == ranks
    assert len({len(share) for share in plan}) == 1
    parts = [part for share in plan for part in share if part]
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    size = packed_tokens if packed else padded_tokens
    assert all(len(part) == 1 or size(part) <= budget for part in parts)
    if packed:
        # First come, first served, in the same order, needs at least as many.
        assert max(map(len, plan), default=0) <= max(1, 2 * sum(lengths) // budget + 1)
        for part in parts:
            changes = sum(prompts[a] != prompts[b] for a, b in itertools.pairwise(part))
            assert changes == len({prompts[row] for row in part}) - 1, "rows of one prompt are not side by side"
    if lengths:
        plan = plan_microbatches(lengths, budget, ranks, packed, [(row,) for row in range(len(lengths))])
        loads = [sum(lengths[row] for part in share for row in part) for share in plan]
        assert max(loads) - min(loads) <= max(lengths)


def test_rows_of_a_prompt_stand_side_by_side_wherever_they_come_from() -> None:
    """Each of them goes into a micro-batch alone, the longest first."""
    prompts = [(row % 2,) * 40 for row in range(6)]
    ((part,),) = plan_microbatches([40 + length for length in (60, 50, 40, 30, 20, 10)], 450, 1, True, prompts)
    assert part == [0, 2, 4, 1, 3, 5]


def test_a_long_prompt_of_many_short_responses_does_not_fill_memory_in_attention() -> None:
    """Which writes the prompt out for each: tokens that are no others' work, but take memory there."""
    ((*parts,),) = plan_microbatches([810] * 60, 4096, 1, True, [(0,) * 800] * 60)
    assert all(810 * len(part) <= 8 * 4096 for part in parts)


def test_few_prompts_are_shared_out_over_the_ranks() -> None:
    prompts = [(row // 8,) * 10 for row in range(16)]
    plan = plan_microbatches([40] * 16, 16384, 4, True, prompts)
    assert [sum(map(len, share)) for share in plan] == [4, 4, 4, 4]


def test_a_prompt_is_read_about_once_whatever_the_ranks() -> None:
    prompts = [(number,) * 100 for number in range(16) for _ in range(8)]
    lengths = [100 + 20 * (row % 8 + 1) for row in range(128)]
    for ranks, budget in ((1, 16384), (1, 4096), (2, 4096), (4, 4096)):
        plan = plan_microbatches(lengths, budget, ranks, True, prompts)
        shares = [[len({prompts[row] for row in part}) for part in share] for share in plan]
        assert sum(map(sum, shares)) <= 2 * 16 + ranks
        loads = [
            sum(100 * len({prompts[row] for row in part}) + sum(lengths[row] - 100 for row in part) for part in share)
            for share in plan
        ]
        assert max(loads) <= 1.1 * min(loads)
