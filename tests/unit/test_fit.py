"""A run that its machine has not the memory for is refused before a model is loaded, with what would mend it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from rlkit import config as configs
from rlkit.assembly import fit
from rlkit.assembly import run as runs
from rlkit.cli import main
from rlkit.config import PluginRef, RunConfig
from rlkit.engine.memory import Memory, checkpoint_bytes, estimate
from rlkit.errors import ConfigError

GB = 10**9
CARD = int(79.2 * 2**30)
"""Of what is sold as 80 GB."""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Configs of the real models' sizes, without weights."""
    from transformers import Qwen3Config

    sizes = {"0.6B": (1024, 28, 3072, 16), "1.7B": (2048, 28, 6144, 16), "4B": (2560, 36, 9728, 32)}
    folder = tmp_path_factory.mktemp("qwen")
    for name, (width, layers, inner, heads) in sizes.items():
        Qwen3Config(
            vocab_size=151_936,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        ).save_pretrained(folder / name)
    return {name: folder / name for name in sizes}


def made(path: Path, *settings: str, preset: str = "vimpo_paper", ranks: int = 1) -> tuple[RunConfig, Memory]:
    changes = [f"model.path={path}", "model.dtype=bfloat16", *settings]
    config, algorithm = configs.resolve_with_algorithm(configs.load(preset, changes))
    if config.sampler.kind == "auto":
        sampler = configs.resolve_ref("samplers", PluginRef(kind="vllm"), "sampler")
        config = config.model_copy(update={"sampler": sampler})
    memory = fit.memory_of(config, algorithm, None, ranks, CARD)
    assert memory is not None
    return config, memory


@pytest.mark.parametrize(
    ("stage", "ranks", "sampling", "training"),
    # GB a GPU of 4B: the policy, and what learning adds; with ZeRO 1 a copy that is reduced, if there is one,
    # with 2 and 3 buckets.
    [(1, 1, 72, 84), (1, 8, 30.2, 42.3), (2, 1, 56, 74), (2, 8, 14.1, 18.1), (3, 1, 73, 77), (3, 8, 10, 13.9)],
)
def test_the_policy_of_four_billion_parameters(
    stage: int, ranks: int, sampling: float, training: float, qwen: dict[str, Path]
) -> None:
    _, memory = made(qwen["4B"], f"engine.zero_stage={stage}", ranks=ranks)
    assert memory.policy.sampling / GB == pytest.approx(sampling, rel=0.02)
    assert memory.policy.training / GB == pytest.approx(training, rel=0.1)
    assert memory.reference.sampling / GB == pytest.approx(8.04 if stage < 3 else 8.04 / ranks, rel=0.01)


def test_what_a_vllm_that_sleeps_takes_and_leaves(qwen: dict[str, Path]) -> None:
    _, memory = made(qwen["4B"])
    assert memory.sampler.sampling == 0.4 * CARD
    assert memory.sampler.training == 0
    assert memory.sampler.host / GB == pytest.approx(8.04, rel=0.01)


def test_keys_and_values_of_the_transformers_sampler(qwen: dict[str, Path]) -> None:
    settings = ["sampler={kind: transformers, kv_gib: 8}", "sampling.max_tokens=4096", "data.max_prompt_tokens=2048"]
    _, memory = made(qwen["4B"], *settings)
    assert (memory.sampler.sampling - memory.sampler.training) / 2**30 == pytest.approx(8)
    _, memory = made(qwen["4B"], "sampler={kind: transformers, kv_gib: 0.1}", *settings[1:])
    # A row of 6,144 tokens at 144 KiB, and the room that it grows into.
    assert (memory.sampler.sampling - memory.sampler.training) / 2**10 == pytest.approx(1.5 * 6144 * 144)


def test_an_offload_goes_to_the_host(qwen: dict[str, Path]) -> None:
    _, plain = made(qwen["4B"])
    _, memory = made(qwen["4B"], "engine.offload_optimizer=true")
    assert memory.policy.sampling / GB == pytest.approx(8.04, rel=0.01)
    assert memory.policy.host / GB == pytest.approx(22 * 4.022, rel=0.01)
    assert plain.policy.host == 0


def test_lora_counts_its_adapters(qwen: dict[str, Path]) -> None:
    _, memory = made(qwen["0.6B"], "model.lora={rank: 16}")
    width, inner, heads, kept = 1024, 3072, 16 * 128, 8 * 128
    layer = 2 * (width + heads) + 2 * (width + kept) + 3 * (width + inner)
    trained = 16 * 28 * layer
    assert memory.policy.sampling == pytest.approx(2 * (596_049_920 + trained) + 12 * trained)
    assert memory.reference.sampling == 0


def test_a_card_that_is_too_small_is_said_with_what_mends_it(qwen: dict[str, Path]) -> None:
    config, memory = made(qwen["4B"])
    said = fit.misfits(config, memory, 1, CARD)
    assert [each.split()[0] for each in said] == ["sampling", "training"]
    assert re.match(
        r"sampling needs 91\.6 GiB on each GPU \(policy 52\.4 GiB, reference 7\.5 GiB, sampler 31\.7 GiB\), which has "
        r"79\.2 GiB\. Any of these makes it fit: engine\.offload_optimizer: true, or model\.lora: \{rank: 16\}",
        said[0],
    )
    assert fit.misfits(*made(qwen["4B"], "engine.offload_optimizer=true"), 1, CARD) == []
    assert fit.misfits(*made(qwen["4B"], "model.lora={rank: 16}"), 1, CARD) == []
    assert fit.misfits(*made(qwen["4B"], ranks=8), 8, CARD) == []


def test_activations_that_are_too_many_are_said_with_what_mends_them(qwen: dict[str, Path]) -> None:
    every = ["model.gradient_checkpointing=false", "sampler=transformers", "batch.tokens_per_microbatch=16384"]
    config, memory = made(qwen["0.6B"], *every)
    assert memory.activations is not None
    assert memory.activations.training / GB == pytest.approx(2.045e-3 * 16384, rel=0.01)
    card = int(memory.training) - 1
    (said,) = fit.misfits(config, memory, 1, card)
    assert "activations 31.2 GiB, sampler " in said
    assert "batch.tokens_per_microbatch: 8192, or model.gradient_checkpointing: true" in said
    for setting in ("batch.tokens_per_microbatch=8192", "model.gradient_checkpointing=true"):
        assert fit.misfits(*made(qwen["0.6B"], *every, setting), 1, card) == []


def test_a_share_of_vllm_that_fits_is_named(qwen: dict[str, Path]) -> None:
    config, memory = made(qwen["1.7B"], "sampler={kind: vllm, gpu_memory: 0.9}", preset="math_qwen3")
    (said,) = fit.misfits(config, memory, 1, CARD)
    share = re.search(r"sampler\.gpu_memory: (0\.\d+)", said)
    assert share is not None
    assert fit.misfits(*made(qwen["1.7B"], f"sampler={{kind: vllm, gpu_memory: {share[1]}}}"), 1, CARD) == []
    config, memory = made(qwen["1.7B"], "sampler={kind: vllm, gpu_memory: 0.02}", preset="math_qwen3")
    (said,) = fit.misfits(config, memory, 1, CARD)
    assert "gives vLLM 1.6 GiB of each GPU, and the model's weights alone take 3.2 GiB: raise it" in said


def test_a_higher_stage_is_named_where_there_are_ranks(qwen: dict[str, Path]) -> None:
    config, memory = made(qwen["4B"], "engine.zero_stage=1", "sampler.kind=transformers", ranks=8)
    card = int(memory.training) - 1
    (said,) = fit.misfits(config, memory, 8, card)
    assert "engine.zero_stage: 2, or engine.zero_stage: 3" in said


def test_nothing_that_mends_it_is_said_too(qwen: dict[str, Path]) -> None:
    config, memory = made(qwen["4B"])
    assert "No one setting makes it fit: take more GPUs" in fit.misfits(config, memory, 1, 8 * GB)[0]


def test_a_host_that_cannot_hold_an_offload(qwen: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config, memory = made(qwen["4B"], "engine.offload_optimizer=true")
    monkeypatch.setattr(fit, "seen_gpu", lambda: CARD)
    monkeypatch.setattr(fit, "host_memory", lambda: 64 * GB)
    (said,) = fit.misfits(config, memory, 1)
    assert said.startswith("the one rank would keep 89.9 GiB in host memory (policy 82.4 GiB, sampler 7.5 GiB on each")
    assert "this machine has 59.6 GiB: leave out engine.offload_optimizer" in said
    monkeypatch.setattr(fit, "host_memory", lambda: 128 * GB)
    assert fit.misfits(config, memory, 1) == []


def test_a_run_is_refused_before_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "host_memory", lambda: 10**6)
    monkeypatch.setattr("rlkit.engine.loading.load_engines", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"does not fit here: the one rank would need .* and no GPU: take a smaller"):
        runs.train(configs.load("embedded_xs", [f"out={tmp_path}"]), quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_plan_for_a_card_that_is_not_here(qwen: dict[str, Path]) -> None:
    command = ["run", "math_qwen3", f"model.path={qwen['1.7B']}", "--dry-run", "--gpu-gib"]
    large, small = (CliRunner().invoke(main, [*command, gib]) for gib in ("79.2", "40"))
    assert large.exit_code == small.exit_code == 0, large.output + small.output
    plan = re.sub(r" +", " ", large.output)
    assert "bfloat16" in plan
    assert "ZeRO 2 (with bfloat16, 1 keeps a whole float32 gradient on each rank)" in plan
    assert "\n policy 22.4 GiB" in plan
    assert "sampler 31.7 GiB - 3.2 GiB" in plan
    assert "does not fit" not in plan
    assert "does not fit sampling needs" in re.sub(r" +", " ", small.output)
    refused = CliRunner().invoke(main, ["run", "embedded_xs", "--gpu-gib", "80"])
    assert refused.exit_code == 2
    assert "--gpu-gib is for --dry-run alone" in refused.output


def test_ranks_do_not_share_what_each_must_hold(qwen: dict[str, Path]) -> None:
    config, _ = made(qwen["0.6B"])
    one, eight = (
        estimate(config, ranks, longest=1000, needs_reference=True, has_critic=True, gpu=CARD) for ranks in (1, 8)
    )
    assert one is not None
    assert eight is not None
    assert one.reference == eight.reference
    assert one.critic.sampling > eight.critic.sampling > 2 * 0.5 * GB
    assert one.engines < one.policy.training + one.critic.training + one.reference.training


def test_what_would_mend_it_is_reckoned_for_the_same_rows(qwen: dict[str, Path]) -> None:
    config, memory = made(qwen["0.6B"], "sampler=transformers")
    short = replace(memory, longest=100, states=7.0)
    tried = [changed for _, changed in fit._changes(config, short, 1, CARD)]
    assert len(tried) == 2  # the optimizer on the host, and LoRA
    assert {(changed.longest, changed.states) for changed in tried} == {(100, 7.0)}


# On disk


def has_free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size))


def test_a_disk_without_room_for_a_checkpoint_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    settings = ["checkpoint.every=10", "steps=30", "checkpoint.best=reward/mean", f"out={tmp_path / 'not' / 'yet'}"]
    config, algorithm = configs.resolve_with_algorithm(configs.load("embedded_xs", settings))
    each = int(checkpoint_bytes(config, needs_reference=True, has_critic=False))
    has_free(monkeypatch, 4 * each)  # the newest two, the best, and one while it is written
    fit.check_disk(config, algorithm)
    assert not recwarn.list
    has_free(monkeypatch, 4 * each - 1)
    with pytest.warns(UserWarning, match="is not enough for the 4 that are to lie there at once"):
        fit.check_disk(config, algorithm)
    has_free(monkeypatch, each - 1)
    result = CliRunner().invoke(main, ["run", "embedded_xs", *settings])
    assert result.exit_code == 2
    assert re.search(
        r"rlkit: a checkpoint takes about [\d.]+ \w+, and the disk of \S*not/yet/\S+ has [\d.]+ \w+ free: make room",
        result.output,
    )
    assert not list(tmp_path.iterdir())


def test_a_rollout_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    settings = ["batch.samples_per_prompt=100000000000", f"out={tmp_path}", "name=large"]
    with pytest.raises(ConfigError) as refused:
        runs.train(configs.load("embedded_xs", settings), quiet=True)
    assert "batch.samples_per_prompt (100000000000) are 1.6e+12 responses a step, which alone would take" in str(
        refused.value
    )
    assert not (tmp_path / "large").exists()
