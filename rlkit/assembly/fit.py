"""Whether a run's memory is there, before a model is loaded; where it is not, what to change."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rlkit.assembly.doctor import host_memory
from rlkit.config import LoraConfig, RunConfig
from rlkit.engine import distributed
from rlkit.engine.memory import Memory, checkpoint_bytes, checkpoints_kept, estimate, seen_gpu
from rlkit.engine.models import model_shape
from rlkit.engine.passes import passes_of
from rlkit.errors import ConfigError
from rlkit.interfaces.learning import Algorithm
from rlkit.records import checkpoints
from rlkit.records.folder import RunFolder
from rlkit.wording import size

if TYPE_CHECKING:
    from rlkit.assembly.inputs import Inputs


def longest_row(config: RunConfig, inputs: Inputs | None) -> int:
    """Tokens of the longest prompt with the longest response."""
    prompt = max(len(p.tokens) for p in inputs.problems.problems) if inputs else config.data.max_prompt_tokens
    return prompt + config.sampling.max_tokens


def memory_of(
    config: RunConfig, algorithm: Algorithm, inputs: Inputs | None, ranks: int, gpu: int | None = None
) -> Memory | None:
    """What each rank of a resolved config needs; see `estimate`."""
    shape = model_shape(config.model)
    passes = passes_of(algorithm, config, ranks, shape.width if shape else None)
    return estimate(
        config,
        ranks,
        longest=longest_row(config, inputs),
        needs_reference=algorithm.needs.reference,
        has_critic=algorithm.value_loss is not None,
        states=passes.states or 0.0 if passes.keeps else 0.0,
        gpu=gpu,
    )


TOKEN = 24
"""Bytes that a rank keeps of each token of a rollout, at least: ids, mask, the sampler's log-probs and two measured."""


def check_fit(config: RunConfig, algorithm: Algorithm, inputs: Inputs, ranks: int) -> None:
    """ConfigError for a run that this machine has not the memory for."""
    check_rollout(config)
    memory = memory_of(config, algorithm, inputs, ranks)
    if memory is not None and (wrong := misfits(config, memory, ranks)):
        raise ConfigError(f"{config.model.path} does not fit here: {'; and '.join(wrong)}")


def check_rollout(config: RunConfig) -> None:
    """ConfigError for a step whose responses, were they of one token each, would not fit into this machine's memory."""
    prompts, samples = config.batch.prompts_per_step, config.batch.samples_per_prompt
    least, host = prompts * samples * TOKEN, host_memory()
    if least > host:
        raise ConfigError(
            f"batch.prompts_per_step ({prompts}) times batch.samples_per_prompt ({samples}) are "
            f"{prompts * samples:.3g} responses a step, which alone would take more than the {size(host)} of memory "
            "here: lower them"
        )


def check_disk(config: RunConfig, algorithm: Algorithm) -> None:
    """ConfigError for a run whose disk has no room for a checkpoint, and a warning where it has not for all that are to
    be kept. The run's folder need not be there yet."""
    each = checkpoint_bytes(
        config, needs_reference=algorithm.needs.reference, has_critic=algorithm.value_loss is not None
    )
    there = len(checkpoints.complete(RunFolder(config.folder).checkpoints))
    kept = checkpoints_kept(config) + (config.checkpoint.best is not None)
    left = max(1, kept - there + (config.checkpoint_every > 0))  # one more while it is written
    disk = next(place for place in (config.folder, *config.folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(disk).free
    said = f"a checkpoint takes about {size(each)}, and the disk of {config.folder} has {size(free)} free"
    if each > free:
        raise ConfigError(f"{said}: make room there, or give a place on another disk with --out")
    if left * each > free and distributed.main_rank():
        warnings.warn(
            f"{said}, which is not enough for the {left} that are to lie there at once. Make room before the run comes "
            "to them, or keep fewer (checkpoint.keep)",
            stacklevel=2,
        )


def misfits(config: RunConfig, memory: Memory, ranks: int, gpu: int | None = None) -> list[str]:
    """Sentences on what there is not enough room for, each with what would mend it. `gpu`: bytes of the memory of a GPU
    of another machine; None: this rank's counts, and this machine's, in which all is where there is no GPU."""
    elsewhere = gpu is not None
    gpu = seen_gpu() if gpu is None else gpu
    here, host = int(os.environ.get("LOCAL_WORLD_SIZE", ranks)), host_memory()
    if gpu is None:
        least = here * (max(memory.sampling, memory.training) + memory.host)
        if least <= host:
            return []
        return [
            f"{_ranks(here)} would need {size(least)} ({_parts(memory)}), and this machine has {size(host)} of memory "
            f"and no GPU: take a smaller model, or model.lora: {{rank: 16}}"
        ]
    wrong = [
        f"{phase} needs {size(least)} on each GPU ({_parts(memory, phase)}), which has {size(gpu)}"
        f"{_mends(config, memory, ranks, gpu)}"
        for phase, least in (("sampling", memory.sampling), ("training", memory.training))
        if least > gpu
    ]
    if config.sampler.kind == "vllm" and memory.sampler.sampling < memory.sampler.host:
        wrong.append(
            f"sampler.gpu_memory gives vLLM {size(memory.sampler.sampling)} of each GPU, and the model's weights alone "
            f"take {size(memory.sampler.host)}: raise it, or share the model among GPUs with sampler.tensor_parallel"
        )
    if not elsewhere and here * memory.host > host:
        parts = ", ".join(f"{name} {size(held.host)}" for name, held in memory.parts.items() if held.host)
        wrong.append(
            f"{_ranks(here)} would keep {size(here * memory.host)} in host memory ({parts} on each rank), and this "
            f"machine has {size(host)}{_spares_host(config)}"
        )
    return wrong


def _ranks(count: int) -> str:
    return "the one rank" if count == 1 else f"{count} ranks"


def _parts(memory: Memory, phase: str = "training") -> str:
    return ", ".join(
        f"{name} {size(getattr(held, phase))}" for name, held in memory.parts.items() if getattr(held, phase)
    )


def _mends(config: RunConfig, memory: Memory, ranks: int, gpu: int) -> str:
    """Each of the changes that would do alone; of the rest, what makes it less."""
    fits = [
        said for said, changed in _changes(config, memory, ranks, gpu) if max(changed.sampling, changed.training) <= gpu
    ]
    if fits:
        return ". Any of these makes it fit: " + ", or ".join(fits)
    return (
        ". No one setting makes it fit: take more GPUs (--nproc) with engine.zero_stage: 3, several of "
        "engine.offload_optimizer: true, model.gradient_checkpointing: true, model.lora: {rank: 16} and a smaller "
        "sampler.gpu_memory, or a smaller model"
    )


def _changes(config: RunConfig, memory: Memory, ranks: int, gpu: int) -> Iterator[tuple[str, Memory]]:
    """Settings as one writes them, and what the run needs with them."""

    def with_(section: str, **changes: Any) -> Memory:
        changed = getattr(config, section).model_copy(update=changes)
        found = estimate(
            config.model_copy(update={section: changed}),
            ranks,
            longest=memory.longest,
            needs_reference="reference" in memory.parts,
            has_critic="critic" in memory.parts,
            states=memory.states,
            gpu=gpu,
        )
        assert found is not None, "its size is known"
        return found

    if config.sampler.kind == "vllm" and memory.sampling > gpu >= memory.training:
        share = int(100 * (gpu - memory.sampling + memory.sampler.sampling) / gpu) / 100
        if share * gpu > memory.sampler.host:  # its weights alone
            yield f"sampler.gpu_memory: {share:g}", with_("sampler", gpu_memory=share)
    if memory.training > gpu >= memory.training - memory.micro_batch:
        tokens = config.batch.tokens_per_microbatch
        room = (gpu - memory.training + memory.micro_batch) / memory.micro_batch
        if memory.longest <= (fewer := 2 ** int(math.log2(room * tokens))):
            yield f"batch.tokens_per_microbatch: {fewer}", with_("batch", tokens_per_microbatch=fewer)
    if not config.model.gradient_checkpointing:
        yield "model.gradient_checkpointing: true", with_("model", gradient_checkpointing=True)
    for stage in range(config.zero_stage + 1, 4):
        if ranks > 1 or stage == 2:
            yield f"engine.zero_stage: {stage}", with_("engine", zero_stage=stage)
    if not config.engine.offload_optimizer and config.zero_stage:
        yield "engine.offload_optimizer: true", with_("engine", offload_optimizer=True)
    if config.model.lora is None:
        yield "model.lora: {rank: 16}", with_("model", lora=LoraConfig())


def _spares_host(config: RunConfig) -> str:
    """What would take less of the host's memory."""
    if config.engine.offload_optimizer or config.engine.offload_parameters:
        return (
            ": leave out engine.offload_optimizer and offload_parameters, and take model.lora: {rank: 16} or more GPUs"
        )
    if getattr(config.reference, "keep_on", "device") == "host":
        return ": keep the reference's average on the device (reference.keep_on)"
    return ": take fewer ranks on a machine, or a smaller model"
