"""Sampling by vLLM, in this process: one engine a rank, on the rank's own device."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any
from unittest import mock

import torch
from pydantic import Field
from torch import Tensor, nn

from rlkit.config import ModelConfig, Section
from rlkit.embedded import resolve
from rlkit.engine.distributed import hosts
from rlkit.errors import ConfigError, RlkitError
from rlkit.generation import Listed, check, end_tokens, vllm_classes, vllm_cpu, vllm_invariant, vllm_weights
from rlkit.generation.stops import Follower, stops_of
from rlkit.importing import importing
from rlkit.interfaces.generation import Completion, Request, Requests, Sampler
from rlkit.interfaces.progress import alive
from rlkit.registry import sampler

POLL_S = 0.005
"""Between two looks for requests, where ranks that share a model have none under way."""


class VLLMConfig(Section):
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """Ranks that share one copy of the model; must divide the number of ranks on each machine."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the GPU's memory for weights and KV cache while sampling; they leave it while training."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 256
    """Responses sampled at once; the others wait. More are quicker, and take more than `gpu_memory`: log-probs of that
    many tokens over the whole vocabulary, a few times over, are not counted in it."""
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one pass, prompts included; None: as vLLM has it for the card (8,192 to 16,384)."""
    batch_invariant: bool = False
    """Kernels that give a response the same tokens whichever others are sampled with it: with bfloat16 on a GPU a seed
    decides its samples only so. It is slower, and takes compute capability 8.0, better 9.0 (H100), or more."""
    enforce_eager: bool = False
    """Start quicker, sample slower: no compilation and no CUDA graphs. Always so on a CPU."""


@sampler("vllm")
def vllm(config: VLLMConfig, model: ModelConfig, context: int, seed: int) -> Sampler:
    """vLLM in process, one engine a rank"""
    return _VLLM(config, model, context, seed)


def check_groups(tensor_parallel: int, ranks: int, hosts: Sequence[str]) -> None:
    """ConfigError where the ranks cannot be put into groups that share a model. `hosts`: where each runs, as far as
    that is known."""
    if ranks % tensor_parallel:
        raise ConfigError(
            f"sampler.tensor_parallel is {tensor_parallel}, which does not divide the number of ranks "
            f"({ranks}): vLLM runs in the training ranks, so start as many with --nproc"
        )
    for first in range(0, len(hosts), tensor_parallel):
        if len(machines := dict.fromkeys(hosts[first : first + tensor_parallel])) > 1:
            raise ConfigError(
                f"sampler.tensor_parallel is {tensor_parallel}, so ranks {first} to {first + tensor_parallel - 1} "
                f"would share a model, and they are on {len(machines)} machines ({', '.join(machines)}): every token "
                "would wait for the network between them. Take a number that divides the ranks of each machine"
            )


def refusal(model: ModelConfig) -> str | None:
    """Why vLLM does not serve a model that is on this machine, as far as it says without loading it; None: it does."""
    with _quiet():
        from vllm.config import ModelConfig as TheirConfig

        try:
            TheirConfig(
                model=resolve(model.path),
                trust_remote_code=model.trust_remote_code,
                dtype=model.settled().dtype,
                skip_tokenizer_init=True,
            )
        except Exception as error:  # of vLLM's code for a model, which may raise any
            return _reason(error)
    return None


def _reason(error: Exception) -> str:
    """The first sentence of what vLLM says, without the words that pydantic puts around it."""
    said = re.split("(?:Value error|Assertion failed), ", str(error))[-1]
    return re.split(r"\. | \[type=|\n", said)[0].rstrip(".") or type(error).__name__


class _VLLM:
    def __init__(self, config: VLLMConfig, model: ModelConfig, context: int, seed: int) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        ranks = torch.distributed.get_world_size() if distributed else 1
        if ranks != int(os.environ.get("WORLD_SIZE", ranks)):
            raise RlkitError("vLLM was asked for before the ranks were joined: call torch.distributed's init first")
        check_groups(config.tensor_parallel, ranks, hosts())
        path = resolve(model.path)
        if config.batch_invariant:
            vllm_invariant.ask_for()
        self._kernels = vllm_invariant.in_place if config.batch_invariant else contextlib.nullcontext
        with contextlib.ExitStack() as starting:
            starting.enter_context(_quiet())
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
            with importing():
                from vllm import LLM
                from vllm.platforms import current_platform

            starting.enter_context(self._kernels())
            starting.enter_context(vllm_classes.of_their_own(self._model))
            self._gpu = not current_platform.is_cpu()
            if not self._gpu:
                starting.enter_context(vllm_cpu.ready())
            starting.enter_context(_refused(model.path, config))
            self._llm: Any = LLM(
                model=path,
                skip_tokenizer_init=True,
                trust_remote_code=model.trust_remote_code,
                dtype=model.settled().dtype,
                max_model_len=context,
                seed=seed % 2**32,  # numpy's seeds end there
                tensor_parallel_size=config.tensor_parallel,
                distributed_executor_backend="external_launcher" if ranks > 1 else None,
                gpu_memory_utilization=config.gpu_memory,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                enforce_eager=config.enforce_eager or not self._gpu,
                enable_prefix_caching=True,
                # Where a prompt is cut in two, vLLM winds the request's generator back, which a CPU's cannot do.
                enable_chunked_prefill=None if self._gpu else False,
                enable_sleep_mode=self._gpu,
                logprobs_mode="processed_logprobs",
                use_tqdm_on_load=False,
            )
            if not self._gpu:
                vllm_cpu.forget_shared_memory()
        self._ends = end_tokens(path, model.trust_remote_code)
        self._stops = stops_of(model)
        self._context = context
        self._path = model.path
        self._version = 0
        self._tensor_parallel = config.tensor_parallel
        self._owns_process_group = not distributed
        self._config = config
        self._asleep: set[str] = set()
        self._without_weights = False
        """They were left to the next sync when it was put to sleep."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        return self.stream(Listed(requests))

    def stream(self, requests: Requests) -> Iterator[tuple[int, Completion]]:
        if self._without_weights:
            raise RlkitError(
                "vLLM was put to sleep until the next sync, and asked for samples before it: call sync first"
            )
        self._wake("weights", "kv_cache")
        engine, version = self._llm.llm_engine, self._version
        names = map(str, itertools.count())
        mine: dict[str, int] = {}
        followers: dict[str, Follower] = {}
        waiting: set[str] = set()
        coming = _Coming(requests, self._context, self._tensor_parallel)
        try:
            with self._kernels():
                while waiting or not coming.ended:
                    for number, request in coming.take(wait=not waiting):
                        name = next(names)
                        if number is not None:
                            mine[name] = number
                        if request.params.stop:
                            # vLLM's own take a tokenizer in the engine, and wait for characters that a token has begun.
                            followers[name] = self._stops(request.params.stop).follow()
                        engine.add_request(
                            name, {"prompt_token_ids": list(request.prompt_tokens)}, self._asked(request)
                        )
                        waiting.add(name)
                    if not waiting:
                        continue
                    with _refused(self._path, self._config):
                        outputs = engine.step()
                    alive()
                    for output in outputs:
                        name, result = output.request_id, output.outputs[0]
                        end = None
                        if (follower := followers.get(name)) is not None:
                            end = follower.push(result.token_ids[follower.length :])
                        if end is None and not output.finished:
                            continue
                        if not output.finished:
                            engine.abort_request([name])
                        waiting.discard(name)
                        if name in mine:
                            yield (
                                mine[name],
                                Completion(
                                    tokens=list(result.token_ids)[:end],
                                    logprobs=list(result.logprobs.logprobs)[:end],
                                    truncated=end is None and result.finish_reason == "length",
                                    version=version,
                                ),
                            )
        finally:
            engine.abort_request(list(waiting))

    def _asked(self, request: Request) -> Any:
        """As vLLM has it."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = request.params
        return SamplingParams(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            stop_token_ids=list(self._ends),
            seed=request.seed,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE if params.stop else RequestOutputKind.FINAL_ONLY,
        )

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Load the weights. RlkitError where some of the engine's were not sent."""
        self._wake("weights")
        vllm_weights.load(self._model(), weights, self._llm.llm_engine.model_config.dtype)
        if not self._llm.reset_prefix_cache():
            raise RlkitError(
                "sync: vLLM could not forget what it has computed of prompts with the old weights, since some requests "
                "still hold it: go through all of `generate` before the next sync, or report it with `rlkit doctor`"
            )
        self._without_weights = False
        self._version = version

    def _model(self) -> nn.Module:
        model: nn.Module = self._llm.llm_engine.model_executor.driver_worker.get_model()
        return model

    def close(self) -> None:
        if self._llm is None:
            return
        from vllm.distributed import parallel_state

        self._wake("weights", "kv_cache")  # freeing what is asleep would unmap it twice
        with contextlib.ExitStack() as stack:
            # Its shutdown looks through all there is for garbage, twice; that is done below.
            stack.enter_context(mock.patch.object(gc, "collect"))
            if not self._owns_process_group:  # else the trainer's process group would end as well
                stack.enter_context(mock.patch.object(parallel_state, "destroy_distributed_environment"))
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()
        if self._gpu:
            torch.cuda.empty_cache()

    def make_room(self, *, until_sync: bool) -> None:
        """Leave the GPU's memory to training. Its weights are kept in host memory meanwhile, unless a sync is next."""
        if self._gpu and "weights" not in self._asleep:
            self._llm.sleep(level=2 if until_sync else 1)
            self._asleep = {"weights", "kv_cache"}
            self._without_weights = until_sync

    def _wake(self, *parts: str) -> None:
        """RlkitError where the memory is not there."""
        tags = [part for part in parts if part in self._asleep]
        if not tags:
            return
        torch.cuda.empty_cache()  # what training has freed but PyTorch holds is not free for vLLM
        try:
            self._llm.wake_up(tags=tags)
        except RuntimeError as error:  # CUDA's OutOfMemoryError is one, and what vLLM's allocator raises
            free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
            raise RlkitError(
                f"vLLM cannot have its memory back ({' and '.join(tags)}): it takes {self._config.gpu_memory:g} of the "
                f"GPU's {total:.1f} GiB (sampler.gpu_memory), and beside training {free:.1f} GiB are free. Lower "
                "sampler.gpu_memory, have training leave more (engine.offload_states: true, or a higher "
                f"engine.zero_stage with more GPUs), or train adapters (model.lora). ({_first_line(error)})"
            ) from error
        self._asleep.difference_update(tags)


class _Coming:
    """The requests of all ranks that share the model, as they come: the same on each of them, in the same order."""

    def __init__(self, requests: Requests, context: int, tensor_parallel: int) -> None:
        self._requests = requests
        self._context = context
        self._taken = 0
        """This rank's, so far."""
        self._group: Any = None
        if tensor_parallel > 1:
            from vllm.distributed.parallel_state import get_tp_group

            self._group = get_tp_group()
        self.ended = False
        """No rank will have more."""

    def take(self, *, wait: bool) -> list[tuple[int | None, Request]]:
        """New ones, each with its number on this rank; None: it is another's. What goes wrong on one rank is raised on
        all."""
        if self.ended:
            return []
        parts, rank = [self._mine(wait)], 0
        if self._group is not None:
            parts, rank = parts * self._group.world_size, self._group.rank_in_group
            torch.distributed.all_gather_object(parts, parts[rank], group=self._group.cpu_group)
        found: list[tuple[int | None, Request]] = []
        for of, part in enumerate(parts):
            if isinstance(part, RlkitError):
                raise part
            found += [(number if of == rank else None, each) for number, each in enumerate(part or (), self._taken)]
        self._taken += sum(number is not None for number, _ in found)
        self.ended = all(part is None for part in parts)
        if wait and not (found or self.ended):
            time.sleep(POLL_S)
        return found

    def _mine(self, wait: bool) -> Sequence[Request] | RlkitError | None:
        try:
            # Whoever waited for its own would keep the others waiting.
            new = self._requests.take(wait=wait and self._group is None)
            check(new or (), self._context, self._taken)
        except RlkitError as error:
            return error
        return new


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _refused(path: str, config: VLLMConfig) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if what := _memory_that_lacks(error, config):
            raise RlkitError(f"vLLM lacks memory: {what}. ({type(error).__name__}: {_reason(error)})") from error
        raise RlkitError(
            f"vLLM failed with model.path {path!r}: {type(error).__name__}: {_reason(error)}\n"
            "If it does not serve this kind of model on this machine, take -s sampler=transformers"
        ) from error


def _memory_that_lacks(error: Exception, config: VLLMConfig) -> str | None:
    """What to do about it, in the settings' words, which are not those that vLLM has for them; None: it is something
    else."""
    said = str(error)
    share, at_once = f"sampler.gpu_memory ({config.gpu_memory:g})", f"sampler.max_num_seqs ({config.max_num_seqs})"
    if "No available memory for the cache blocks" in said or "larger than the available KV cache" in said:
        return (
            "beside the weights there is no room for the keys and values of one longest response. Raise "
            f"{share}, or lower sampling.max_tokens"
        )
    if "less than desired GPU memory" in said:
        return f"so much of the GPU is not free. Lower {share}, or end what else uses this GPU"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in said.lower():
        return (
            f"lower {at_once}, whose log-probs are not counted in its share of the GPU, or {share}, which leaves more "
            "room beside it"
        )
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """vLLM's log from errors up, unless the user asked for more."""
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level)  # it reads the variable only after it has begun to log
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
