"""Who needs how much memory: the plan and the sweep ask here.

The bytes that DeepSpeed holds for a parameter are measured: tests/unit/test_memory.py holds them to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from rlkit.config import AverageReference, ModelConfig, RunConfig
from rlkit.engine.activations import bytes_of_a_token
from rlkit.engine.models import Shape, adapter_parameters, model_shape
from rlkit.engine.settings import deepspeed_config
from rlkit.ops.head import peak_bytes

LIVE = 10**9
"""Numbers that ZeRO-3 keeps gathered, and that it steps at once, by DeepSpeed's own defaults."""
GROWN = 1.5
"""Room that keys and values of a row in the transformers sampler have at most, in terms of what they need: see
`_Growing` in rlkit/generation/decoding.py."""
OFFLOADED = {  # bytes, by stage
    2: {1: 22, 2: 22, 3: 20},
    4: {1: 20, 2: 24, 3: 20},
}
"""Width of a weight -> stage -> bytes in host memory for each that learns, at the peak, where AdamW's state is there:
its means, a float32 copy of the weight, and gradients."""


@dataclass(frozen=True)
class Held:
    """Bytes that something takes on a rank: of the device's memory while the run samples and at the peak of training,
    and of the host's."""

    sampling: float = 0.0
    training: float = 0.0
    host: float = 0.0


@dataclass(frozen=True)
class Memory:
    """Bytes on each rank."""

    policy: Held
    """Weights, gradients, the optimizer's state, and what gradients are reduced in."""
    reference: Held
    critic: Held
    sampler: Held
    head: Held
    """The head's logits and what is made of them, as many as are in memory at once, and its gradient."""
    activations: Held | None = None
    """What a micro-batch leaves for its backward pass, and gradients on their way; None: it is not known."""
    states: float = 0.0
    """In host memory: the reference's hidden states of a rollout."""
    longest: int = 0
    """Tokens of the longest row that it is reckoned for."""

    @property
    def parts(self) -> dict[str, Held]:
        """By name, those that take any."""
        named = {
            "policy": self.policy,
            "reference": self.reference,
            "critic": self.critic,
            "logits": self.head,
            "activations": self.activations or Held(),
            "sampler": self.sampler,
            "hidden states": Held(host=self.states),
        }
        return {name: held for name, held in named.items() if held != Held()}

    @property
    def engines(self) -> float:
        """For policy, reference and critic, at most."""
        # They do not learn at once.
        policy, critic = self.policy, self.critic
        return self.reference.training + max(policy.training + critic.sampling, policy.sampling + critic.training)

    @property
    def micro_batch(self) -> float:
        """For one on its way, as far as it is known: where activations are not, for its logits alone."""
        return self.head.training + (self.activations.training if self.activations is not None else 0.0)

    @property
    def sampling(self) -> float:
        return sum(held.sampling for held in self.parts.values())

    @property
    def training(self) -> float:
        return self.engines + self.micro_batch + self.sampler.training

    @property
    def host(self) -> float:
        return sum(held.host for held in self.parts.values())


def seen_gpu() -> int | None:
    """Bytes of this rank's GPU; None: there is none, and the CPU computes."""
    return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None


def estimate(
    config: RunConfig,
    ranks: int,
    *,
    longest: int,
    needs_reference: bool,
    has_critic: bool,
    states: float = 0.0,
    gpu: int | None = None,
) -> Memory | None:
    """Of a resolved config whose `longest` row has so many tokens, prompt and response; None where the model's size is
    not known here. `states`: bytes of the reference's hidden states, where they are kept. `gpu`: bytes of the GPU's
    memory; None: of one that is here, if any."""
    shape = model_shape(config.model)
    if shape is None:
        return None
    gpu = seen_gpu() if gpu is None else gpu
    lora = config.model.lora is not None
    adapters = adapter_parameters(config.model)
    trained, frozen = (adapters, shape.parameters) if lora else (shape.parameters, 0)
    critic = Held()
    if has_critic:
        of = _critic_shape(config.model, config.critic.path) or shape
        critic = engine_bytes(config, ranks, adapters or of.body, of.body if lora else 0)
    tokens = _largest_microbatch(config, ranks, longest)
    logits = peak_bytes(
        tokens, shape.vocabulary, gpu is not None, learns=0 if lora else shape.width, width=_width(config)
    )
    return Memory(
        policy=engine_bytes(config, ranks, trained, frozen),
        reference=_reference(config, ranks, shape, adapters) if needs_reference else Held(),
        critic=critic,
        sampler=_sampler(config, shape, gpu, ranks, longest),
        head=Held(training=logits),
        activations=_activations(config, tokens, has_critic),
        states=states,
        longest=longest,
    )


def _activations(config: RunConfig, tokens: int, has_critic: bool) -> Held | None:
    paths = {config.model.path} | ({config.critic.path or config.model.path} if has_critic else set())
    # Policy and critic do not learn at once.
    each = [bytes_of_a_token(config.model.model_copy(update={"path": path})) for path in paths]
    known = [size for size in each if size is not None]
    return Held(training=tokens * max(known)) if len(known) == len(each) else None


def engine_bytes(config: RunConfig, ranks: int, trained: int, frozen: int = 0) -> Held:
    """What DeepSpeed holds of a model that learns, `trained` of its numbers and `frozen` not."""
    held = _learning(config, ranks, trained, frozen)
    if config.engine.offload_states:
        away = 12 * trained / ranks
        return replace(held, sampling=held.sampling - away, host=held.host + away)
    return held


def _learning(config: RunConfig, ranks: int, trained: int, frozen: int) -> Held:
    width, stage = _width(config), config.zero_stage
    told = deepspeed_config(config, config.optimizer, stage, trained)
    zero = told["zero_optimization"]
    bucket = zero["reduce_bucket_size"]
    # What a bucket is turned into to be reduced is as large as what is in it.
    full = min(trained, bucket)
    sent = 4 if told.get("communication_data_type") == "fp32" else width
    offload = config.engine.offload_optimizer
    weights = width * (trained + frozen) / (ranks if stage == 3 else 1)
    mine = trained / ranks
    host = OFFLOADED[width][stage] * mine if offload else 0.0
    if stage == 3:
        if config.engine.offload_parameters:
            host, weights = host + weights, 0.0
        # Two means, a float32 copy and a float32 gradient; in float32 too.
        stays = weights + sent * bucket + (0 if offload else 16 * mine)
        gathered = width * min(trained + frozen, LIVE) if ranks > 1 or config.engine.offload_parameters else 0.0
        step = 0 if offload else 4 * min(mine, LIVE)
        return Held(stays, stays + max(gathered + (sent + 4 / ranks) * full, step), host)
    buckets = 2 if zero.get("overlap_comm") else 1
    if offload:
        if stage == 1:  # whole gradients wait for the last micro-batch; of bfloat16's a float32 sum too
            more = (
                (width if width == 4 else width + 4) * trained + 4 * bucket * buckets + (4 * full if width == 4 else 0)
            )
        else:
            more = width * bucket * buckets + (4 if width == 4 else 2 + sent) * full
        return Held(weights, weights + more, host)
    if width == 2 and stage == 1:
        stays = weights + 4 * trained + 12 * mine
        return Held(stays, stays + 2 * trained + (0 if sent == 4 else sent * trained))
    if width == 2:
        stays = weights + 12 * mine
        sends = width * bucket * buckets + (width + (0 if sent == 2 else sent)) * full
        return Held(stays, stays + 4 * mine + sends)
    if stage == 0:
        stays = weights + 8 * trained
        return Held(stays, stays + 4 * trained + 4 * full)
    stays = weights + 12 * mine
    if stage == 1:
        # Whole gradients, which the bucket holds as far as there is room, and this rank's share of their sum.
        return Held(stays, stays + max(4 * (trained - full) + 4 * mine + 4 * bucket * buckets, 8 * mine))
    # This micro-batch's share of the gradient, and that of those before.
    return Held(stays, stays + 8 * mine + 4 * bucket * buckets + 4 * full / ranks)


def _reference(config: RunConfig, ranks: int, shape: Shape, adapters: int) -> Held:
    width, kind = _width(config), config.reference
    moves = kind is not None and kind.kind in ("average", "copy")
    own = adapters if config.model.lora is not None else shape.parameters
    if config.model.lora is not None and not moves:  # the policy's own, without adapters
        return Held()
    share = own / (ranks if config.zero_stage == 3 else 1)
    average, on_host = _average_width(config) * share, getattr(kind, "keep_on", "device") == "host"
    device = width * share + (0.0 if on_host else average)
    return Held(device, device, average if on_host else 0.0)


def _sampler(config: RunConfig, shape: Shape, gpu: int | None, ranks: int, longest: int) -> Held:
    """Of those that ship and sample in the training ranks; nothing of others, which are not known here."""
    options, weights = config.sampler.options, shape.parameters * _width(config)
    if config.sampler.kind == "transformers":
        row = GROWN * longest * shape.kept * _width(config)
        rows = min(options["max_batch"], _rows(config, ranks))
        return Held(weights + max(row, min(options["kv_gib"] * 2**30, rows * row)), weights)
    if config.sampler.kind == "vllm" and gpu is not None:
        # Asleep, its weights are in host memory.
        return Held(options["gpu_memory"] * gpu, host=weights / options["tensor_parallel"])
    if config.sampler.kind == "vllm":
        there = weights + 2**30  # its keys and values, unless VLLM_CPU_KVCACHE_SPACE says otherwise
        return Held(there, there)
    if config.sampler.kind == "vllm_server":
        # Rank 0's copy, for a server that comes back: of all ranks together it is as much.
        return Held(host=weights / ranks)
    return Held()


def _critic_shape(model: ModelConfig, path: str | None) -> Shape | None:
    return model_shape(model.model_copy(update={"path": path or model.path}))


def states_bytes(config: RunConfig, ranks: int, width: int) -> int:
    """Bytes on a rank of a rollout's hidden states, one for each token of the responses, as long as these may be: the
    rows are dealt out evenly."""
    return _rows(config, ranks) * config.sampling.max_tokens * width * _width(config)


def _rows(config: RunConfig, ranks: int) -> int:
    """Of a rollout, on a rank."""
    return math.ceil(config.batch.prompts_per_step * config.batch.samples_per_prompt / ranks)


def _largest_microbatch(config: RunConfig, ranks: int, longest: int) -> int:
    """Padded tokens: what the budget allows (a row that is longer goes alone), or all rows of a rank."""
    return min(max(config.batch.tokens_per_microbatch, longest), _rows(config, ranks) * longest)


def checkpoints_kept(config: RunConfig) -> int:
    """Checkpoints that a finished run keeps."""
    every = config.checkpoint_every
    return min(config.checkpoint.keep, math.ceil(config.steps / every)) if every else 1


def checkpoint_bytes(config: RunConfig, *, needs_reference: bool, has_critic: bool) -> float:
    """Bytes on disk of one checkpoint; 0 where the model's size is not known here.

    Of policy and critic the weights, for training and for `from_pretrained`, and AdamW's state; of a moving reference
    its weights."""
    shape = model_shape(config.model)
    if shape is None:
        return 0.0
    lora, width, adapters = config.model.lora is not None, _width(config), adapter_parameters(config.model)

    def saved(whole: int) -> float:
        # AdamW's two means in float32 and, but for stage 0, a float32 copy of the weight, which stage 3 saves alone.
        trained, frozen = (adapters, whole) if lora else (whole, 0)
        state = 8 if config.zero_stage == 0 else 12
        return (state + (0 if config.zero_stage == 3 else width)) * trained + width * frozen

    each = saved(shape.parameters) + width * (shape.parameters + adapters)
    if has_critic:
        each += saved((_critic_shape(config.model, config.critic.path) or shape).body)
    if needs_reference and config.reference is not None and config.reference.kind in ("average", "copy"):
        each += (_average_width(config) or width) * (adapters if lora else shape.parameters)
    return each


def _width(config: RunConfig) -> int:
    """Bytes of a weight."""
    return 4 if config.model.dtype == "float32" else 2


def _average_width(config: RunConfig) -> int:
    """Bytes for a weight of what a moving average keeps beside the reference's weights (see `Follower`)."""
    reference = config.reference
    if not isinstance(reference, AverageReference):
        return 0
    return 0 if config.model.dtype == "float32" and reference.by == "rollout" and reference.keep_on == "device" else 4
