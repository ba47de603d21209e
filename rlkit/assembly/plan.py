"""What a run will do, in a page, before it does it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rlkit import ranks, registry
from rlkit.assembly.fit import longest_row, memory_of, misfits
from rlkit.config import (
    AverageReference,
    CopyReference,
    CorrectionConfig,
    ModelConfig,
    PluginRef,
    RewardRef,
    RunConfig,
    SamplingConfig,
)
from rlkit.engine import distributed
from rlkit.engine.memory import Memory, checkpoint_bytes, checkpoints_kept
from rlkit.engine.models import model_shape
from rlkit.engine.passes import passes_of
from rlkit.interfaces.learning import Algorithm
from rlkit.wording import counted, excerpt, folded, one_line, quoted, size, thousands, visible

if TYPE_CHECKING:
    from rlkit.assembly.inputs import Inputs
    from rlkit.data import ProblemSet

AHEAD = "one ahead: the next rollout is sampled beside the updates, with weights that are a step older"


def make_plan(
    config: RunConfig,
    algorithm: Algorithm,
    why_sampler: str | None,
    inputs: Inputs | None,
    ranks: int,
    columns: int | None = None,
    gpu: int | None = None,
) -> str:
    """The plan of a resolved config, as text. `inputs` is None where they have not been read (a dry run of a hub data
    set), `why_sampler` where nothing is sampled. `columns`: of the terminal that it is for. `gpu`: bytes of the GPU's
    memory; None: of one that is here, if any."""
    held_out = inputs.held_out if inputs else None
    longest = longest_row(config, inputs)
    batch, sampling = config.batch, config.sampling
    sequences = batch.prompts_per_step * batch.samples_per_prompt
    shape = model_shape(config.model)
    passes = passes_of(algorithm, config, ranks, shape.width if shape else None)
    rows = {
        **_replay(config),
        "algorithm": _algorithm(config.algo),
        "model": f"{config.model.path}, {_size(config.model)}, {config.model.dtype}{_adapter(config.model)}",
        "data": _data(config.data.path, inputs),
        **(_prompts(inputs) if inputs else {}),
        **_environment(config),
        **({"reward": " + ".join(_weighted(ref) for ref in config.reward)} if config.reward else {}),
        **(
            {"noise": ", then ".join(_with_options(ref.kind, ref.options) for ref in config.noise)}
            if config.noise
            else {}
        ),
        "a step": f"{batch.prompts_per_step} prompts x {batch.samples_per_prompt} samples = {sequences} sequences of "
        f"at most {sampling.max_tokens} tokens, temperature {sampling.temperature:g}{_truncation(sampling)}"
        f"{_repeats(config, inputs)}",
        **({"end tokens": _end_tokens(inputs)} if inputs else {}),
        **({"stop texts": quoted(sampling.stop)} if sampling.stop else {}),
        **_refill(config),
        **({"schedule": AHEAD} if config.schedule == "one_ahead" and config.replay is None else {}),
        "updates": f"{counted(batch.minibatches, 'minibatch', 'es')} x {counted(batch.epochs, 'epoch')} = "
        f"{config.updates_per_step} a step of {sequences // batch.minibatches} sequences; "
        f"{counted(config.steps, 'step')} = {counted(config.steps * config.updates_per_step, 'update')}",
        "passes": "; ".join(passes.lines()),
        **({"reference": _reference(config)} if algorithm.needs.reference else {}),
        **({"correction": _correction(config.corrects)} if config.corrects else {}),
        "optimizer": f"AdamW, lr {config.optimizer.lr:g} {config.optimizer.schedule}, "
        f"{config.optimizer.warmup_updates} warm-up updates, weight decay {config.optimizer.weight_decay:g}, "
        f"clip norm {config.optimizer.clip_norm:g}",
        "engine": _engine(config, longest, ranks),
        **_memory(config, memory_of(config, algorithm, inputs, ranks, gpu), ranks, gpu),
        "sampler": _sampler(config, why_sampler),
        "evaluation": _evaluation(config, held_out),
        "checkpoints": _checkpoints(config, algorithm),
        "folder": str(config.folder),
    }
    width = max(map(len, rows))
    lines = [
        f"  {'' if at else name:<{width}}  {line}"
        for name, text in rows.items()
        for at, line in enumerate(text.split("\n"))
    ]
    return "\n".join(folded(visible(line), columns, width + 4) for line in lines)


def _environment(config: RunConfig) -> dict[str, str]:
    if config.environment is None:
        return {}
    turns = counted(config.conversation.max_turns, "turn")
    return {"environment": f"{_with_options(config.environment.kind, config.environment.options)}, at most {turns}"}


def _truncation(sampling: SamplingConfig) -> str:
    parts = [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    parts += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    return "".join(f", {part}" for part in parts)


def _repeats(config: RunConfig, inputs: Inputs | None) -> str:
    """Said where a step takes more prompts than there are."""
    there = len(inputs.problems.problems) if inputs else config.batch.prompts_per_step
    if there >= config.batch.prompts_per_step:
        return ""
    return (
        f"; there {'is' if there == 1 else 'are'} only {counted(there, 'problem')}, so prompts repeat within a step: "
        f"lower batch.prompts_per_step to {there}, or give more problems"
    )


def _end_tokens(inputs: Inputs) -> str:
    # Not decoded: a tokenizer may decode a special token to nothing.
    named = (f"{one_line(str(inputs.tokenizer.convert_ids_to_tokens(end)))} ({end})" for end in inputs.end_tokens)
    return ", ".join(named) or "none"


def _replay(config: RunConfig) -> dict[str, str]:
    """Nothing for a run that samples what it learns from."""
    if config.replay is None:
        return {}
    return {"replay": f"the samples of {config.replay.run}, steps {config.replay.first} to {config.steps}"}


def _sampler(config: RunConfig, why: str | None) -> str:
    if why is None:
        return "none: nothing is sampled"
    return f"{config.sampler.kind} ({why}{', for evaluation alone' if config.replay else ''})"


def _refill(config: RunConfig) -> dict[str, str]:
    """Nothing where it is off."""
    limit = config.batch.refill.limit if config.batch.refill else 0
    said = f"groups that teach nothing are replaced by other prompts' groups, at most {counted(limit, 'time')} a step"
    return {"refill": said} if limit else {}


def _correction(correction: CorrectionConfig) -> str:
    """How the loss's tokens are weighted."""
    weight = {
        "token": "each token by pi_old / pi_sampler",
        "sequence": "each sequence by the product of pi_old / pi_sampler",
    }[correction.level]
    limit = {
        "truncate": f"at most {correction.limit:g}",
        "mask": f"left out outside {1 / correction.limit:g} to {correction.limit:g}",
    }[correction.mode]
    return f"{weight}, {limit}"


def _weighted(ref: RewardRef) -> str:
    said = _with_options(ref.kind, ref.options)
    return said if ref.weight == 1 else f"{ref.weight:g} x {said}"


def _algorithm(algo: PluginRef) -> str:
    """What differs from the algorithm's defaults, and then the rest."""
    defaults = registry.find("algorithms", algo.kind).options.model_construct().model_dump()
    own = {key: value for key, value in algo.options.items() if key not in defaults or value != defaults[key]}
    rest = ", ".join(f"{key} {value}" for key, value in algo.options.items() if key not in own and value is not None)
    said = [f"{key} {value}" + (f" (default {defaults[key]})" if key in defaults else "") for key, value in own.items()]
    if not said:
        return f"{algo.kind} with its defaults" + (f": {rest}" if rest else "")
    return f"{algo.kind} with {', '.join(said)}" + (f"; as by default: {rest}" if rest else "")


def _with_options(kind: str, options: dict[str, Any]) -> str:
    said = ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
    return f"{kind} ({said})" if said else kind


def _size(model: ModelConfig) -> str:
    shape = model_shape(model)
    return thousands(shape.parameters) + " parameters" if shape else "size unknown (its config is not on this machine)"


def _adapter(model: ModelConfig) -> str:
    return f", LoRA rank {model.lora.rank}" if model.lora else ""


def _data(path: str, inputs: Inputs | None) -> str:
    if inputs is None:
        return f"{path} (read when the run starts)"
    problems, held_out = inputs.problems, inputs.held_out
    said = f"{path}: {len(problems.problems)} problems{_left_out(problems)}"
    return said + (f", {len(held_out.problems)} held out{_left_out(held_out)}" if held_out else ", none held out")


def _prompts(inputs: Inputs) -> dict[str, str]:
    """How prompts are put to the model, and the first as it reads it, special tokens and all, with its gold."""
    first = inputs.problems.problems[0]
    read = inputs.tokenizer.decode(first.tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    put = inputs.problems.put
    return ({"prompts": "; ".join(put)} if put else {}) | {
        "first prompt": "\n".join(excerpt(read.replace("\n", "\\n\n"), lines=24, characters=2000)),
        "its gold": one_line(first.answer) or "none",
    }


def _left_out(problems: ProblemSet) -> str:
    notes = []
    if problems.dropped_long:
        notes.append(f"{problems.dropped_long} with prompts over the length limit dropped")
    if problems.duplicates:
        notes.append(f"{problems.duplicates} of them repeated")
    return f" ({', '.join(notes)})" if notes else ""


def _reference(config: RunConfig) -> str:
    own = "the policy without its adapters" if config.model.lora else "a model of its own"
    match config.reference:
        case AverageReference() as average:
            return (
                f"running mean of the policy's {'adapters' if config.model.lora else 'weights'}, decay "
                f"{average.decay:g} a {average.by}, in float32 on the {average.keep_on}"
            )
        case CopyReference() as copy:
            return f"the policy as it was up to {counted(copy.every, 'rollout')} ago"
    return f"frozen: {own}"


def _engine(config: RunConfig, longest: int, ranks: int) -> str:
    budget = config.batch.tokens_per_microbatch
    alone = f" (a longer row goes alone, of up to {longest})" if longest > budget else ""
    return (
        f"DeepSpeed ZeRO {config.zero_stage}{_why_stage(config)}, {counted(ranks, 'rank')}{_placed(ranks)}, "
        f"micro-batches of {budget} tokens{alone}, {os.environ.get('OMP_NUM_THREADS', '?')} thread(s) a rank"
    )


def _placed(count: int) -> str:
    """Where the ranks are, if that needs a word."""
    if (machines := len(set(distributed.hosts()))) > 1:
        return f" on {machines} machines"
    counts_gpus = count > 1 and ranks.starter() in ("", ranks.NPROC)
    return ", one on each GPU (--nproc for fewer)" if counts_gpus and count == len(ranks.visible_gpus()) else ""


def _why_stage(config: RunConfig) -> str:
    if config.engine.zero_stage is not None:
        return ""
    return " (with bfloat16, 1 keeps a whole float32 gradient on each rank)" if config.zero_stage == 2 else ""


def _memory(config: RunConfig, memory: Memory | None, ranks: int, gpu: int | None) -> dict[str, str]:
    """A table of what each rank needs of its device and of the host, and whether there is as much."""
    if memory is None:
        return {"memory": "not estimated: the model's config is not on this machine"}
    rows: list[tuple[str, ...]] = [("on each rank", "sampling", "training", "host")]
    rows += [
        (name, *(size(part) if part else "-" for part in (held.sampling, held.training, held.host)))
        for name, held in memory.parts.items()
    ]
    rows.append(("together", size(memory.sampling), size(memory.training), size(memory.host) if memory.host else "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{cell:>{wide}}" for cell, wide in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    wrong = misfits(config, memory, ranks, gpu)
    notes = ["activations come on top: this model's are not known"] if memory.activations is None else []
    notes += ["policy and critic do not learn at once"] if "critic" in memory.parts else []
    lines += ["; ".join(notes)] if notes else []
    return {"memory": "\n".join(lines)} | ({"does not fit": "\n".join(wrong)} if wrong else {})


def _checkpoints(config: RunConfig, algorithm: Algorithm) -> str:
    kept, every = checkpoints_kept(config), config.checkpoint_every
    when = f"every {counted(every, 'step')} and at the end" if 0 < every < config.steps else "at the end"
    said = f"{when}; the newest {kept} stay" if kept > 1 else when
    each = checkpoint_bytes(
        config, needs_reference=algorithm.needs.reference, has_critic=algorithm.value_loss is not None
    )
    if not each:
        return said
    more = f", {size(each)} more while one is written" if 0 < every < config.steps else ""
    return f"{said}, about {size(kept * each)} of disk{more}"


def _evaluation(config: RunConfig, held_out: ProblemSet | None) -> str:
    if held_out is None and not (config.data.eval_path or config.data.path.startswith("embedded:")):
        return "none (data.eval_path is not set)"
    count = min(config.eval.problems, len(held_out.problems)) if held_out else config.eval.problems
    when = f"every {config.eval.every} steps, " if config.eval.every else ""
    return (
        f"{count} held-out problems x {config.eval.samples}, temperature {config.eval.temperature:g}, "
        f"top-p {config.eval.top_p:g}: before, {when}after"
    )
