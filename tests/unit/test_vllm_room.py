"""vLLM beside training on one GPU: it sleeps as deep as it may, and says what it cannot have. The GPU is made up."""

from __future__ import annotations

import contextlib
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlkit.config import ModelConfig
from rlkit.errors import ConfigError, RlkitError
from rlkit.generation import make_room, vllm
from rlkit.interfaces.generation import Request, SamplingParams

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
REQUEST = Request(prompt_tokens=[3], seed=0, params=SamplingParams(max_tokens=4))


class Engine:
    """In vLLM's place: what was asked of it, and whether it has what it needs."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.forgets = True
        self.room = True
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32))

    def sleep(self, level: int) -> None:
        self.asked.append(level)

    def wake_up(self, tags: list[str]) -> None:
        if not self.room:
            raise RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp:139\nand more")
        self.asked += tags

    def reset_prefix_cache(self) -> bool:
        return self.forgets


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = object.__new__(vllm._VLLM)
    made._gpu, made._llm, made._asleep, made._without_weights = True, Engine(), set(), False
    made._config, made._context, made._tensor_parallel = vllm.VLLMConfig(), 64, 1
    model = torch.nn.Module()
    model.load_weights = lambda weights: [name for name, _ in weights]  # type: ignore[assignment]
    monkeypatch.setattr(made, "_model", lambda: model)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 2**30, 80 * 2**30))
    return made


def test_weights_are_kept_only_where_no_sync_is_next(sampler: Any) -> None:
    make_room(sampler, until_sync=False)
    make_room(sampler, until_sync=True)  # it sleeps already, and its weights are safe
    sampler._wake("weights", "kv_cache")
    make_room(sampler, until_sync=True)
    with pytest.raises(RlkitError, match="put to sleep until the next sync"):
        next(sampler.generate([REQUEST]))
    sampler.sync([], 1)
    sampler._wake("weights", "kv_cache")
    assert sampler._llm.asked == [1, "weights", "kv_cache", 2, "weights", "kv_cache"]


def test_room_is_made_again_after_a_sync_alone(sampler: Any) -> None:
    make_room(sampler, until_sync=True)
    sampler.sync([], 1)
    make_room(sampler, until_sync=False)
    assert sampler._llm.asked == [2, "weights", 1]


def test_memory_that_is_not_there_is_a_sentence(sampler: Any) -> None:
    make_room(sampler, until_sync=True)
    sampler._llm.room = False
    said = (
        r"cannot have its memory back \(weights\): it takes 0\.4 of the GPU's 80\.0 GiB \(sampler\.gpu_memory\), and "
        r"beside training 10\.0 GiB are free\. Lower sampler\.gpu_memory.*\(CUDA Error: out of memory at cumem_alloc"
        r"ator\.cpp:139\)$"
    )
    with pytest.raises(RlkitError, match=said):
        sampler.sync([], 1)
    sampler._llm.room = True
    sampler.sync([], 1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 80"),
            r"lacks memory: lower sampler\.max_num_seqs \(256\).* or sampler\.gpu_memory \(0\.4\).*"
            r"\(OutOfMemoryError: CUDA out of memory\)$",
        ),
        (
            RuntimeError("CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please try"),
            r"lower sampler\.max_num_seqs",
        ),
        (
            ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when"),
            r"Raise sampler\.gpu_memory \(0\.4\), or lower sampling\.max_tokens",
        ),
        (
            ValueError("To serve at least one request with the model's max seq len (64), (9 GiB KV cache is needed, "
                       "which is larger than the available KV cache memory (1 GiB). Try"),
            r"Raise sampler\.gpu_memory",
        ),
        (
            ValueError("Free memory on device cuda:0 (10/80 GiB) on startup is less than desired GPU memory "
                       "utilization (0.4, 32 GiB). Decrease"),
            r"Lower sampler\.gpu_memory \(0\.4\), or end what else uses this GPU",
        ),
        (ValueError("This model is not supported."), r"If it does not serve this kind of model"),
    ],
)  # fmt: skip
def test_what_vllm_says_of_memory_is_said_in_the_settings_words(error: Exception, said: str, sampler: Any) -> None:
    """In the middle of a rollout, and where the engine starts."""
    aborted: list[list[str]] = []

    def step() -> Any:
        raise error

    engine = sampler._llm.llm_engine
    engine.add_request, engine.step, engine.abort_request = lambda *_: None, step, aborted.append
    sampler._version, sampler._ends, sampler._path = 0, (1,), "mine"
    sampler._stops, sampler._kernels = None, contextlib.nullcontext
    with pytest.raises(RlkitError, match=said):
        next(sampler.generate([REQUEST]))
    assert aborted == [["0"]]


def test_a_prefix_cache_of_old_weights_is_an_error(sampler: Any) -> None:
    sampler._llm.forgets = False
    with pytest.raises(RlkitError, match="could not forget what it has computed of prompts with the old weights"):
        sampler.sync([], 1)


@pytest.mark.parametrize("machines", ["aabb", "aaaabb", "bbbbbbaa"])
def test_ranks_that_share_a_model_are_on_one_machine(machines: str) -> None:
    vllm.check_groups(2, len(machines), machines)
    vllm.check_groups(1, len(machines), machines)


@pytest.mark.parametrize(
    ("size", "machines", "said"),
    [
        (4, "aabb", r"ranks 0 to 3 would share a model, and they are on 2 machines \(a, b\)"),
        (2, "aabbbc", r"ranks 4 to 5 would share a model, and they are on 2 machines \(b, c\)"),
        (2, "aaabbb", r"ranks 2 to 3 would .* Take a number that divides the ranks of each machine$"),
    ],
)
def test_ranks_on_several_machines_share_no_model(size: int, machines: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"sampler\.tensor_parallel is {size}, so {said}"):
        vllm.check_groups(size, len(machines), machines)


def test_batch_invariance_is_refused_where_it_cannot_be() -> None:
    config = vllm.VLLMConfig(batch_invariant=True)
    with pytest.raises(ConfigError, match=r"needs an NVIDIA GPU of compute capability 8\.0.*Leave it out: on a CPU"):
        vllm._VLLM(config, ModelConfig(path="embedded:xs"), 64, 0)


@pytest.mark.slow
def test_its_kernels_are_torch_s_only_while_it_samples() -> None:
    """The real ones, which a CPU cannot run: so much shows that they are there."""
    from rlkit.generation.vllm_invariant import in_place

    numbers = torch.randn(3, 5, requires_grad=True)
    before = numbers.log_softmax(-1)
    with in_place(), pytest.raises(TypeError, match="not subscriptable"):
        numbers.log_softmax(-1)
    after = numbers.log_softmax(-1)
    assert torch.equal(after, before)
    after[0, 0].backward()
    assert numbers.grad is not None
