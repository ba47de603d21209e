"""What a run will do, in a page, before it does it."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from rlkit.config import ModelConfig, RewardRef, RunConfig
from rlkit.interfaces.learning import Algorithm
from rlkit.wording import counted, size, thousands

if TYPE_CHECKING:
    from rlkit.data import ProblemSet


@functools.cache
def _model_shape(path: str, trust_remote_code: bool) -> tuple[int, int] | None:
    """(parameters, vocabulary), from the model's config alone; None where it cannot be read from here."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlkit.embedded import resolve

    try:
        config = AutoConfig.from_pretrained(resolve(path), trust_remote_code=trust_remote_code)
    except OSError:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return sum(p.numel() for p in model.parameters()), config.get_text_config().vocab_size


def model_shape(model: ModelConfig) -> tuple[int, int] | None:
    return _model_shape(model.path, model.trust_remote_code)


def chosen_sampler(config: RunConfig) -> tuple[str, str]:
    """The sampler's name, and why it."""
    from rlkit import generation

    if config.sampler.kind != "auto":
        return config.sampler.kind, "named in the config"
    shape = model_shape(config.model)
    return generation.choose(shape[0] if shape else None)


def make_plan(
    config: RunConfig, algorithm: Algorithm, problems: ProblemSet | None, held_out: ProblemSet | None, ranks: int
) -> str:
    """The plan as text. `problems` is None where the data has not been read (a dry run of a hub data set)."""
    batch, sampling = config.batch, config.sampling
    sequences = batch.prompts_per_step * batch.samples_per_prompt
    kind, why = chosen_sampler(config)
    rows = {
        "algorithm": _with_options(config.algo.kind, config.algo.options),
        "model": f"{config.model.path}, {_size(config.model)}, {config.model.dtype}{_adapter(config.model)}",
        "data": _data(config.data.path, problems, held_out),
        "reward": " + ".join(_weighted(ref) for ref in config.reward),
        **(
            {"noise": ", then ".join(_with_options(ref.kind, ref.options) for ref in config.noise)}
            if config.noise
            else {}
        ),
        "a step": f"{batch.prompts_per_step} prompts x {batch.samples_per_prompt} samples = {sequences} sequences of "
        f"at most {sampling.max_tokens} tokens, temperature {sampling.temperature:g}",
        "updates": f"{counted(batch.minibatches, 'minibatch', 'es')} x {counted(batch.epochs, 'epoch')} = "
        f"{config.updates_per_step} a step of {sequences // batch.minibatches} sequences; {config.steps} steps = "
        f"{config.steps * config.updates_per_step} updates",
        "passes": _passes(algorithm, config.updates_per_step),
        "optimizer": f"AdamW, lr {config.optimizer.lr:g} {config.optimizer.schedule}, "
        f"{config.optimizer.warmup_updates} warm-up updates, weight decay {config.optimizer.weight_decay:g}, "
        f"clip norm {config.optimizer.clip_norm:g}",
        "engine": f"DeepSpeed ZeRO {config.engine.zero_stage}, {counted(ranks, 'rank')}, micro-batches "
        f"of {batch.tokens_per_microbatch} tokens, {os.environ.get('OMP_NUM_THREADS', '?')} thread(s) a rank",
        "memory": _memory(config, algorithm, ranks),
        "sampler": f"{kind} ({why})",
        "evaluation": _evaluation(config, held_out),
        "folder": str(config.folder),
    }
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())


def _weighted(ref: RewardRef) -> str:
    said = _with_options(ref.kind, ref.options)
    return said if ref.weight == 1 else f"{ref.weight:g} x {said}"


def _with_options(kind: str, options: dict[str, Any]) -> str:
    said = ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
    return f"{kind} ({said})" if said else kind


def _size(model: ModelConfig) -> str:
    shape = model_shape(model)
    return thousands(shape[0]) + " parameters" if shape else "size unknown (its config is not on this machine)"


def _adapter(model: ModelConfig) -> str:
    return f", LoRA rank {model.lora.rank}" if model.lora else ""


def _data(path: str, problems: ProblemSet | None, held_out: ProblemSet | None) -> str:
    if problems is None:
        return f"{path} (read when the run starts)"
    said = f"{path}: {len(problems.problems)} problems{_left_out(problems)}"
    return said + (f", {len(held_out.problems)} held out{_left_out(held_out)}" if held_out else ", none held out")


def _left_out(problems: ProblemSet) -> str:
    notes = []
    if problems.dropped_long:
        notes.append(f"{problems.dropped_long} with prompts over the length limit dropped")
    if problems.duplicates:
        notes.append(f"{problems.duplicates} of them repeated")
    return f" ({', '.join(notes)})" if notes else ""


def _passes(algorithm: Algorithm, updates: int) -> str:
    needs = algorithm.needs
    old = needs.per_rollout(updates)
    parts = [f"gradient: {', '.join(sorted(needs.grad))}"]
    if updates > 1 and needs.now:
        parts.insert(0, f"each update: {', '.join(sorted(needs.now))}")
    if old:
        parts.insert(0, f"once a rollout: {', '.join(sorted(old))}")
    return "; ".join(parts) + ("; a critic of its own" if algorithm.value_loss else "")


def _memory(config: RunConfig, algorithm: Algorithm, ranks: int) -> str:
    """Weights, gradients, AdamW's state and one micro-batch's logits on each rank. Activations are not in it."""
    shape = model_shape(config.model)
    if shape is None:
        return "not estimated"
    parameters, vocabulary = shape
    width = 4 if config.model.dtype == "float32" else 2
    stage = config.engine.zero_stage
    trained = parameters if config.model.lora is None else 0
    state = trained * (8 if width == 4 else 12) / (ranks if stage >= 1 else 1)
    gradients = trained * width / (ranks if stage >= 2 else 1)
    weights = parameters * width / (ranks if stage == 3 else 1)
    models = 1 + (algorithm.needs.reference and not config.model.lora)
    total = weights * models + (state + gradients) * (2 if algorithm.value_loss else 1)
    total += weights if algorithm.value_loss else 0
    # Measured peaks: 5 times the float32 logits in a pass with exact KL, 6 with gradient.
    logits = config.batch.tokens_per_microbatch * vocabulary * 4 * 6
    return f"about {size(total)} for weights, gradients and optimizer, up to {size(logits)} for logits, on each rank"


def _evaluation(config: RunConfig, held_out: ProblemSet | None) -> str:
    if held_out is None and not (config.data.eval_path or config.data.path.startswith("embedded:")):
        return "none (data.eval_path is not set)"
    count = min(config.eval.problems, len(held_out.problems)) if held_out else config.eval.problems
    when = f"every {config.eval.every} steps, " if config.eval.every else ""
    return (
        f"{count} held-out problems x {config.eval.samples}, temperature {config.eval.temperature:g}, "
        f"top-p {config.eval.top_p:g}: before, {when}after"
    )
