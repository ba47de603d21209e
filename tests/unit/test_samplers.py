from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sampler_help import ask, largest_gap, pieces_tokenizer, random_model
from transformers import AutoTokenizer

from rlkit import embedded, generation, registry
from rlkit.config import ModelConfig, PluginRef
from rlkit.errors import ConfigError, RlkitError
from rlkit.interfaces.generation import Request, Sampler, SamplingParams

PROMPTS = [[5, 9, 7, 11, 3, 8], [6], [4, 12, 13]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tied")
    random_model(path, tied=True, seed=3)
    return path


def build(kind: str, folder: Path, context: int = 64, dtype: Any = "float32", **options: Any) -> Sampler:
    return registry.build("samplers", kind, options, ModelConfig(path=str(folder), dtype=dtype), context, 0)


@pytest.mark.parametrize(
    ("installed", "gpu", "name", "why"),
    [
        (False, True, "transformers", "not installed"),
        (True, False, "transformers", "there is no GPU"),
        (True, True, "vllm", "there is a GPU"),
    ],
)
def test_auto_takes_vllm_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, installed: bool, gpu: bool, name: str, why: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    chosen, said = generation.choose()
    assert chosen == name
    assert why in said


def test_naming_and_choosing_a_sampler_imports_neither_vllm_nor_transformers() -> None:
    program = (
        "import sys; from rlkit import generation, registry\n"
        "for name in ('vllm', 'transformers'): registry.find('samplers', name).options\n"
        "generation.choose()\n"
        "print(sorted({'vllm', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'max_bach'.*did you mean 'max_batch'"):
        registry.build("samplers", "transformers", {"max_bach": 3})


def named_ends(path: Path, generation_config: Any, config: Any, tokenizer: str | None) -> ModelConfig:
    """The embedded model (0 is <pad>, 1 <eos>, 2 <unk>) with these end tokens named; "-": no such file or key."""
    shutil.copytree(embedded.resolve("embedded:xs"), path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation_config}))
    if generation_config == "-":
        (path / "generation_config.json").unlink()
    for file, key, value in [
        ("config.json", "eos_token_id", config),
        ("tokenizer_config.json", "eos_token", tokenizer),
    ]:
        settings = json.loads((path / file).read_text()) | {key: value}
        if value == "-":
            del settings[key]
        (path / file).write_text(json.dumps(settings))
    return ModelConfig(path=str(path), dtype="float32")


@pytest.mark.parametrize(
    ("generation_config", "config", "tokenizer", "ends"),
    [
        ([5, 1], 1, "<eos>", (5, 1)),
        (None, None, "<eos>", (1,)),
        ("-", "-", "<eos>", (1,)),
        (None, 1, None, (1,)),
        (7, "-", "-", (7,)),
        (7, [8, 9], "<eos>", (7, 8, 9, 1)),
        ("-", 1, "<|not in the vocabulary|>", (1,)),
        (-1, 1, "<eos>", (1,)),
    ],
)
def test_end_tokens_are_all_that_any_of_the_models_files_names(
    tmp_path: Path, generation_config: Any, config: Any, tokenizer: Any, ends: tuple[int, ...]
) -> None:
    model = named_ends(tmp_path / "m", generation_config, config, tokenizer)
    assert generation.end_tokens(model.path) == ends


def test_end_tokens_of_a_model_of_several_kinds_of_input(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"eos_token_id": None, "text_config": {"eos_token_id": [3, 40], "vocab_size": 30}})
    )
    assert generation.end_tokens(str(tmp_path)) == (3,), "40 is no token of it"


def test_files_that_differ_in_their_end_tokens_are_warned_of_and_none_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generation.checked_end_tokens(named_ends(tmp_path / "alike", 1, 1, "<eos>"), "do this") == (1,)
        assert generation.checked_end_tokens(named_ends(tmp_path / "fewer", "-", 1, "<eos>"), "do this") == (1,)
    with pytest.warns(UserWarning, match=r"5, 1 in generation_config.json, none in config.json, 1 in the tokenizer"):
        generation.checked_end_tokens(named_ends(tmp_path / "differ", [5, 1], None, "<eos>"), "do this")
    silent = named_ends(tmp_path / "none", "-", "-", "-")
    with pytest.raises(ConfigError, match=r"neither config\.json nor the tokenizer names an end token.*do this"):
        generation.checked_end_tokens(silent, "do this")
    assert generation.checked_end_tokens(silent, None) == ()


@pytest.mark.parametrize(("generation_config", "config", "tokenizer"), [(None, None, "<eos>"), ("-", 1, None)])
def test_a_sampler_ends_at_an_end_token_that_one_file_alone_names(
    tmp_path: Path, generation_config: Any, config: Any, tokenizer: Any
) -> None:
    named_ends(tmp_path / "m", generation_config, config, tokenizer)
    completions = ask(build("transformers", tmp_path / "m"), [[5, 9, 7]] * 64, list(range(64)), max_tokens=40)
    assert any(1 in c.tokens for c in completions)
    for completion in completions:
        assert 1 not in completion.tokens[:-1]


@pytest.mark.parametrize(("prompt", "limit"), [([], 4), ([5], 0)])
def test_a_request_for_nothing_is_refused(folder: Path, prompt: list[int], limit: int) -> None:
    request = Request(prompt_tokens=prompt, seed=0, params=SamplingParams(max_tokens=limit))
    with pytest.raises(RlkitError, match="must be at least 1"):
        list(build("transformers", folder).generate([request]))


def test_samples_do_not_depend_on_how_requests_are_cut_into_batches(folder: Path) -> None:
    prompts, seeds = [PROMPTS[i % 3] for i in range(40)], list(range(40))
    whole = ask(build("transformers", folder), prompts, seeds)
    cut = ask(build("transformers", folder, max_batch=7), prompts, seeds)
    assert [c.tokens for c in whole] == [c.tokens for c in cut]


def test_rows_go_together_as_far_as_their_keys_and_values_have_room(folder: Path) -> None:
    sampler: Any = build("transformers", folder)
    sampler._room = 100
    assert sampler._fitting([10, 20, 30, 33, 40]) == 3, "four rows of 33 are 132 tokens"
    assert sampler._fitting([50, 60]) == 1
    assert sampler._fitting([400, 500]) == 1, "one goes even so"
    sampler._max_batch = 2
    assert sampler._fitting([10, 20, 30]) == 2


def test_the_room_for_keys_and_values_is_of_the_model(folder: Path) -> None:
    """What the cache holds of a token, and half as much again, into which it grows."""
    sampler: Any = build("transformers", folder, kv_gib=1.0)
    model = sampler._model
    cache = model(torch.tensor([[5]]), use_cache=True).past_key_values
    of_a_token = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert sampler._room * 1.5 * of_a_token == pytest.approx(2**30)


def test_without_stream_it_is_passed_on_without_it(folder: Path) -> None:
    """By which the collector knows to sample turn by turn."""
    model = ModelConfig(path=str(folder), dtype="float32")
    assert not hasattr(generation.build_sampler(PluginRef(kind="transformers"), model, 64, 0), "stream")


def test_what_ends_early_is_handed_out_early(folder: Path) -> None:
    """Half of the rows end at their first token: they must come before the others are done."""
    sampler: Any = build("transformers", folder)
    tokenizer = pieces_tokenizer()
    first = ask(sampler, [PROMPTS[0]] * 64, list(range(64)), max_tokens=1)
    said = {tokenizer.decode(c.tokens) for c in first[:40]} - {""}
    params = SamplingParams(max_tokens=50, stop=tuple(text for text in said if "\ufffd" not in text))
    requests = [Request(prompt_tokens=PROMPTS[0], seed=seed, params=params) for seed in range(64)]
    lengths = [len(completion.tokens) for _, completion in sampler.generate(requests)]
    assert lengths.index(max(lengths)) >= 32
    assert lengths[:32] == [1] * 32


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_nothing_is_generated_past_the_last_end(count: int) -> None:
    model = ModelConfig(path="embedded:xs", dtype="float32")
    sampler: Any = registry.build("samplers", "transformers", {}, model, 128, 0)
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))
    steps = []
    sampler._model.register_forward_hook(lambda *_: steps.append(1))
    prompts = [tokenizer(f"{a}+25=")["input_ids"] for a in range(10, 10 + count)]
    done = ask(sampler, prompts, list(range(count)), max_tokens=120)
    assert not any(completion.truncated for completion in done)
    assert len(steps) == max(len(completion.tokens) for completion in done)


def test_generate_leaves_gradients_on_between_completions(folder: Path) -> None:
    requests = [Request(prompt_tokens=PROMPTS[0], seed=i, params=SamplingParams(max_tokens=3)) for i in range(3)]
    for _ in build("transformers", folder).generate(requests):
        assert torch.is_grad_enabled()


def test_a_sync_with_a_strange_weight_is_an_error(folder: Path) -> None:
    sampler: Any = build("transformers", folder)
    with pytest.raises(RlkitError, match=r"has no weight 'model\.wrong'"):
        sampler.sync([("model.wrong", torch.zeros(2))], 1)
    with pytest.raises(RlkitError, match=r"'model\.norm\.weight' is \[2\], the sampler's is \[64\]"):
        sampler.sync([("model.norm.weight", torch.zeros(2))], 1)


def test_diverged_weights_are_named_as_such(folder: Path, tmp_path: Path) -> None:
    sampler: Any = build("transformers", folder)
    model = random_model(tmp_path, tied=True, seed=3)
    sampler.sync(((name, p * torch.nan) for name, p in model.named_parameters()), 1)
    with pytest.raises(RlkitError, match=r"logits are not finite: its weights have diverged.* a lower optimizer.lr"):
        ask(sampler, PROMPTS, [0, 1, 2])


def test_bfloat16_log_probs_are_near_those_of_the_same_weights(folder: Path, tmp_path: Path) -> None:
    model = random_model(tmp_path, tied=True, seed=3).to(torch.bfloat16)
    prompts = [PROMPTS[i % 3] for i in range(12)]
    completions = ask(build("transformers", folder, dtype="bfloat16"), prompts, list(range(12)))
    assert largest_gap(model, prompts, completions, 1.0) < 0.1


def test_tensor_parallelism_past_the_number_of_ranks_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel is 2, which does not divide the number of ranks \(1\)"):
        build("vllm", folder, tensor_parallel=2)


def test_vllm_is_refused_before_the_ranks_are_joined(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank would make a group of its own, and training would take it for all ranks'."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RlkitError, match="before the ranks were joined"):
        build("vllm", folder)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize(
    ("ranks", "tensor_parallel"), [(1, ["1"]), pytest.param(2, ["1", "2"], marks=pytest.mark.slow)]
)
def test_vllm_samples_beside_a_trainers_process_group(folder: Path, ranks: int, tensor_parallel: list[str]) -> None:
    """Each rank asks for its own completions, syncs, asks again; the script holds them against a plain forward."""
    script = Path(__file__).parents[1] / "vllm_ranks.py"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)),
            *("--master-port", str(port), str(script), str(folder), *tensor_parallel),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    for size in tensor_parallel:
        for rank in range(ranks):
            assert f"tensor_parallel {size}: rank {rank} ok" in done.stdout
    assert not list(Path("/dev/shm").glob("*cpushm*")), "memory that the ranks shared is in the next run's way"


def test_auto_leaves_vllm_where_it_does_not_serve_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from families import FAMILIES, make

    monkeypatch.setattr(generation, "choose", lambda: ("vllm", "it pays"))
    for name, sampler in [("Llama", "vllm"), ("CodeGen", "transformers")]:
        family = next(family for family in FAMILIES if family.name == name)
        make(family, tmp_path / name)
        chosen, why = generation.resolve_sampler(PluginRef(kind="auto"), ModelConfig(path=str(tmp_path / name)))
        assert chosen.kind == sampler, why
        assert sampler == "vllm" or "vLLM does not serve this model here: " in why
