"""Sampling by vLLM, in this process: one engine a rank, on the rank's own device."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any
from unittest import mock

import torch
from pydantic import Field
from torch import Tensor

from rlkit.config import ModelConfig, Section
from rlkit.embedded import resolve
from rlkit.errors import ConfigError, RlkitError
from rlkit.generation import check, end_tokens, vllm_cpu
from rlkit.interfaces.generation import Completion, Request, Sampler
from rlkit.registry import sampler


class VLLMConfig(Section):
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """Ranks that share one copy of the model; must divide the number of ranks."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the GPU's memory for weights and KV cache while sampling; they leave it while training."""
    enforce_eager: bool = False
    """Start quicker, sample slower: no compilation and no CUDA graphs. Always so on a CPU."""


@sampler("vllm")
def vllm(config: VLLMConfig, model: ModelConfig, context: int, seed: int) -> Sampler:
    """vLLM in process, one engine a rank"""
    return _VLLM(config, model, context, seed)


class _VLLM:
    def __init__(self, config: VLLMConfig, model: ModelConfig, context: int, seed: int) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        ranks = torch.distributed.get_world_size() if distributed else 1
        if ranks != int(os.environ.get("WORLD_SIZE", ranks)):
            raise RlkitError("vLLM was asked for before the ranks were joined: call torch.distributed's init first")
        if ranks % config.tensor_parallel:
            raise ConfigError(
                f"sampler.tensor_parallel is {config.tensor_parallel}, which does not divide the number of ranks "
                f"({ranks}): vLLM runs in the training ranks, so start as many with --nproc"
            )
        path = resolve(model.path)
        with contextlib.ExitStack() as starting:
            starting.enter_context(_quiet())
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
            from vllm import LLM
            from vllm.platforms import current_platform

            self._gpu = not current_platform.is_cpu()
            if not self._gpu:
                starting.enter_context(vllm_cpu.ready())
            self._llm: Any = LLM(
                model=path,
                skip_tokenizer_init=True,
                trust_remote_code=model.trust_remote_code,
                dtype=model.dtype,
                max_model_len=context,
                seed=seed % 2**32,  # numpy's seeds end there
                tensor_parallel_size=config.tensor_parallel,
                distributed_executor_backend="external_launcher" if ranks > 1 else None,
                gpu_memory_utilization=config.gpu_memory,
                enforce_eager=config.enforce_eager or not self._gpu,
                enable_prefix_caching=True,
                # Where a prompt is cut in two, vLLM winds the request's generator back, which a CPU's cannot do.
                enable_chunked_prefill=None if self._gpu else False,
                enable_sleep_mode=self._gpu,
                logprobs_mode="processed_logprobs",
                use_tqdm_on_load=False,
            )
        self._ends = end_tokens(path, model.trust_remote_code)
        self._context = context
        self._version = 0
        self._tensor_parallel = config.tensor_parallel
        self._owns_process_group = not distributed
        self._asleep: set[str] = set()
        self._sleep()

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        check(requests, self._context)
        everyones, first = self._share(requests)
        self._wake("weights", "kv_cache")
        engine, version = self._llm.llm_engine, self._version
        for i, request in enumerate(everyones):
            params = SamplingParams(
                max_tokens=request.params.max_tokens,
                temperature=request.params.temperature,
                top_p=request.params.top_p,
                top_k=request.params.top_k,
                stop_token_ids=[*self._ends, *request.params.stop_token_ids],
                seed=request.seed,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(str(i), {"prompt_token_ids": list(request.prompt_tokens)}, params)
        waiting = set(range(len(everyones)))
        try:
            while waiting:
                for output in engine.step():
                    index, result = int(output.request_id), output.outputs[0]
                    waiting.discard(index)
                    if first <= index < first + len(requests):
                        yield (
                            index - first,
                            Completion(
                                tokens=list(result.token_ids),
                                logprobs=list(result.logprobs.logprobs),
                                truncated=result.finish_reason == "length",
                                version=version,
                            ),
                        )
        finally:
            engine.abort_request([str(i) for i in waiting])
            self._sleep()

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Load the weights. RlkitError where some of the engine's were not sent."""
        self._wake("weights")
        model = self._llm.llm_engine.model_executor.driver_worker.get_model()
        with torch.no_grad():
            loaded = model.load_weights(weights)
        old = {name for name, _ in model.named_parameters()} - loaded
        if old:
            raise RlkitError(f"sync: {len(old)} weights of vLLM's model were not sent, {min(old)!r} first")
        self._llm.reset_prefix_cache()
        self._version = version

    def close(self) -> None:
        if self._llm is None:
            return
        from vllm.distributed import parallel_state

        self._wake("weights", "kv_cache")  # freeing what is asleep would unmap it twice
        engine = self._llm.llm_engine.engine_core
        if self._owns_process_group:
            engine.shutdown()
        else:  # vLLM's shutdown would end the trainer's process group as well
            with mock.patch.object(parallel_state, "destroy_distributed_environment"):
                engine.shutdown()
        self._llm = None
        gc.collect()
        if self._gpu:
            torch.cuda.empty_cache()

    def _share(self, requests: Sequence[Request]) -> tuple[list[Request], int]:
        """The requests of all ranks that share the model, and where this rank's begin among them."""
        if self._tensor_parallel == 1:
            return list(requests), 0
        from vllm.distributed.parallel_state import get_tp_group

        group = get_tp_group()
        parts: list[list[Request]] = [[] for _ in range(group.world_size)]
        torch.distributed.all_gather_object(parts, list(requests), group=group.cpu_group)
        return list(itertools.chain(*parts)), sum(len(part) for part in parts[: group.rank_in_group])

    def _sleep(self) -> None:
        """Leave the GPU's memory to training. Level 1 keeps a copy of the weights in host memory: the next call
        may be `generate` again (an evaluation, a check), which level 2 would have left without weights."""
        if self._gpu:
            self._llm.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        tags = [part for part in parts if part in self._asleep]
        if tags:
            torch.cuda.empty_cache()  # what training has freed but PyTorch holds is not free for vLLM
            self._llm.wake_up(tags=tags)
            self._asleep.difference_update(tags)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """vLLM's log from errors up, unless the user asked for more."""
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level)  # it reads the variable only after it has begun to log
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
