"""The sections of a run's settings. Every default of rlkit's own stands here, once.

Options of a plugin stand beside its `kind` (`algo: {kind: vimpo, beta: 0.05}`; the name alone will do: `algo: vimpo`),
and are held against the plugin's own model by `resolve`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

Positive = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _no_number_by_yes(cls, data: Any) -> Any:
        """YAML makes a truth value of `yes`, of which pydantic would make a 1."""
        for name, value in data.items() if isinstance(data, Mapping) else ():
            if isinstance(value, bool) and name in cls.model_fields:
                types = set(_types(cls.model_fields[name].annotation))
                if types & {int, float} and bool not in types:
                    raise ValueError(f"{name} should be a number (got {value})")
        return data


def _types(annotation: Any) -> Iterator[Any]:
    """Those that an annotation is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)


class PluginRef(BaseModel):
    """A plugin by name, with its options."""

    model_config = ConfigDict(extra="allow")
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def as_ref(value: Any) -> Any:
    """A plugin's bare name as a section."""
    return {"kind": value} if isinstance(value, str) else value


Ref = Annotated[PluginRef, BeforeValidator(as_ref, json_schema_input_type=str | PluginRef)]


class RewardRef(PluginRef):
    """A reward by name, with its options, and its weight in the sum of several."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    weight: float = 1.0
    """Its share in the sum of several rewards."""


_IN_A_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)")


def _found_in(value: Any, kind: str) -> Any:
    """A plugin's name, or FILE.py:NAME, for which `kind` stands, as a section."""
    section = as_ref(value)
    if isinstance(section, dict) and (found := _IN_A_FILE.fullmatch(str(section.get("kind")))):
        return {**found.groupdict(), **section, "kind": kind}
    return section


def _as_environment(value: Any) -> Any:
    return _found_in(value, "class")


EnvironmentRef = Annotated[PluginRef, BeforeValidator(_as_environment, json_schema_input_type=str | PluginRef)]


def _as_refs(value: Any) -> Any:
    return [_found_in(each, "function") for each in (value if isinstance(value, list) else [value])]


_OneReward = str | RewardRef
AnyRewards = Annotated[list[RewardRef], BeforeValidator(_as_refs, json_schema_input_type=_OneReward | list[_OneReward])]
Rewards = Annotated[AnyRewards, Field(min_length=1)]


def _can_be_said(texts: list[str]) -> list[str]:
    for text in texts:
        if not text:
            raise ValueError("an empty text would end every response before it begins: leave it out")
        if "\ufffd" in text:
            raise ValueError(f"{text!r} holds U+FFFD, which stands for bytes that are no text: leave it out")
    return texts


StopTexts = Annotated[list[str], AfterValidator(_can_be_said)]


def _some_layers(targets: list[str] | str) -> list[str] | str:
    if not targets:
        raise ValueError("names no layer: leave it out for all linear layers")
    return targets


class LoraConfig(Section):
    """Low-rank adapters by peft; the reference policy is then the adapter switched off."""

    rank: Positive = 16
    """Inner dimension of the adapters."""
    alpha: float = 32.0
    """An adapter's output is scaled by alpha / rank."""
    targets: Annotated[list[str] | Literal["all-linear"], AfterValidator(_some_layers)] = "all-linear"
    """Names of the modules that get adapters; all-linear: every linear layer but the head."""


class ModelConfig(Section):
    path: str
    """A folder or hub id for `from_pretrained`, or `embedded:s` / `embedded:xs`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and products, in training and sampling. auto: bfloat16 on a GPU, float32 on a CPU, which is slower at
    products in bfloat16."""
    lora: LoraConfig | None = None
    """Train adapters alone; null: all weights."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    trust_remote_code: bool = False
    """Let the model's folder bring code of its own."""

    def settled(self) -> ModelConfig:
        """With the dtype that `auto` stands for on this machine."""
        if self.dtype != "auto":
            return self
        import torch

        return self.model_copy(update={"dtype": "bfloat16" if torch.cuda.is_available() else "float32"})


class DataConfig(Section):
    path: str
    """`embedded:arithmetic`, a JSON, JSONL or parquet file, or a data set's hub id."""
    subset: str | None = None
    """The hub data set's configuration name."""
    split: str = "train"
    """Of the hub or embedded data set."""
    prompt: str = "prompt"
    """Column of the question: text, or a list of chat messages."""
    answer: str | None = "answer"
    """Column of the gold answer; dots go into nested columns (reward_model.ground_truth). None: the data has no
    golds, and the reward reads none."""
    template: str | None = None
    """Text around the question, with {prompt} for it. Without one, chat models get their chat template and
    base models the bare question."""
    system: str | None = None
    """System message, for chat templates."""
    chat: bool | None = None
    """Use the tokenizer's chat template; None: where it has one and no `template` is given."""
    chat_template_kwargs: dict[str, Any] = {}
    """Arguments of the chat template's own, such as {enable_thinking: false}."""
    max_prompt_tokens: Positive = 2048
    """Longer prompts are dropped and counted, never cut."""
    eval_path: str | None = None
    """Held-out problems, read in the same way; None: the embedded task's test split, or no evaluation."""
    eval_split: str = "test"
    """Of the held-out problems, as `split`."""


class BatchConfig(Section):
    prompts_per_step: Positive = 96
    """Prompts of one rollout."""
    samples_per_prompt: Positive = 8
    """Responses to each: its group."""
    minibatches: Positive = 1
    """Optimizer batches that one rollout is cut into, each of whole prompts."""
    epochs: Positive = 1
    """Times each rollout is gone through."""
    tokens_per_microbatch: Positive = 16384
    """Tokens, prompts included, of one forward pass on one rank: lower it where memory runs out. A response that is
    longer with its prompt goes alone. A prompt that several responses share counts little more than once. Padding
    counts, where a model cannot do without."""
    refill: RefillConfig | None = None
    """Replace groups that teach nothing, such as those whose rewards are all equal. None: as the algorithm's paper has
    it (dapo: limit 3, others: off)."""

    @model_validator(mode="after")
    def _cut(self) -> Self:
        if self.prompts_per_step % self.minibatches:
            raise ValueError(
                f"prompts_per_step ({self.prompts_per_step}) must be a multiple of minibatches ({self.minibatches})"
            )
        return self


def _counts(eps: float) -> float:
    if not 1e-30 <= eps < math.inf:
        raise ValueError(
            f"{eps:g} is out of range: below 1e-30 it is lost in float32, and weights that no token reached become NaN"
        )
    return eps


class OptimizerConfig(Section):
    """AdamW."""

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6
    """Highest learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's, decoupled from the gradient."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of AdamW's two running means."""
    eps: Annotated[float, AfterValidator(_counts)] = 1e-8
    """Added to the root of the second, which is 0 for a weight that no token reached."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Bound on the global norm of the gradient."""
    warmup_updates: Annotated[int, Field(ge=0)] = 10
    """Updates over which the learning rate rises to lr."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up; linear and cosine end at 0 with the run."""


class CriticConfig(Section):
    """Used by algorithms with a value loss."""

    path: str | None = None
    """Model to start from; None: the policy's."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5)


class FrozenReference(Section):
    """What the policy began as."""

    kind: Literal["frozen"] = "frozen"


class NoReference(Section):
    """None is kept; an algorithm that compares with one is refused."""

    kind: Literal["none"] = "none"


class AverageReference(Section):
    """A running mean of the policy's weights: ref <- decay * ref + (1 - decay) * policy."""

    kind: Literal["average"] = "average"
    decay: Decay = 0.8
    """Weight of the past. 0: the policy itself."""
    by: Literal["rollout", "update"] = "rollout"
    """When the mean takes a step. What the policy is compared with moves between rollouts alone."""
    keep_on: Literal["device", "host"] = "device"
    """Where the mean's float32 weights are kept."""


class CopyReference(Section):
    """The policy as it was some rollouts ago."""

    kind: Literal["copy"] = "copy"
    every: Positive
    """Rollouts after which the policy is copied."""


_References = Annotated[FrozenReference | NoReference | AverageReference | CopyReference, Field(discriminator="kind")]
Reference = Annotated[
    _References,
    BeforeValidator(as_ref, json_schema_input_type=Literal["frozen", "none", "average"] | _References),
]


class CorrectionConfig(Section):
    """Weights for the difference between what samples were drawn from and the weights that learn from them."""

    level: Literal["token", "sequence"] = "token"
    """One weight a token, pi_old / pi_sampler; or one a sequence, the product of its tokens'."""
    mode: Literal["truncate", "mask"] = "truncate"
    """truncate: weights above `limit` are set to it. mask: what is above it, or below 1 / limit, is left out."""
    limit: Annotated[float, Field(gt=1)] = 2.0
    """Largest weight that is not truncated or masked."""


def _as_correction(value: Any) -> Any:
    """YAML reads `off` as false."""
    return "off" if value is False else value


Correction = Annotated[
    CorrectionConfig | Literal["off"] | None,
    BeforeValidator(_as_correction, json_schema_input_type=CorrectionConfig | Literal["off"] | None),
]


class RefillConfig(Section):
    """Dynamic sampling (DAPO, arXiv 2503.14476): groups that teach nothing are replaced by groups of other prompts."""

    limit: Annotated[int, Field(ge=0)] = 3
    """Times in a step; then it goes on with what there is. 0: off."""


class EngineConfig(Section):
    """DeepSpeed."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """What ranks share out: 1 the optimizer's state, 2 gradients too, 3 parameters too. None: 2 where weights are
    bfloat16, for which 1 keeps a whole float32 gradient on every rank, else 1."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory (stages 1 to 3)."""
    offload_parameters: bool = False
    """Keep the parameters in host memory (stage 3)."""
    timeout_minutes: Annotated[float, Field(gt=0)] = 60
    """How long a rank goes without a sign of life (a token, a micro-batch, a score), for instance since it waits for
    others that sample longer responses; then the stacks of all are written, and the run ends."""
    offload_states: bool = False
    """Keep the optimizer's state in host memory while the sampler works on the same GPU (stages 2 and 3): 12 bytes a
    weight, shared out over the ranks, that `sampler.gpu_memory` may have then. It goes there and back in each step."""
    overlap_comm: bool = False
    """Add up gradients over ranks while the backward pass still goes on (stage 2): quicker where the network is slow,
    for a second bucket of 1 GB. Stage 3 always does."""


class SamplingConfig(Section):
    """The distribution that training samples are drawn from."""

    max_tokens: Positive = 4096
    """Longest response; one that reaches it is truncated."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Log-probs of policy and reference are of this temperature too."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """1: the whole distribution. Less needs a `correction`."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0: all tokens. Less needs a `correction`."""
    stop: StopTexts = []
    """Texts that end a response, of any number of tokens; it keeps them."""
    check_every: Annotated[int, Field(ge=0)] = 50
    """After the first sync and every so many, the sampler's log-probs are held against the trainer's; 0: only
    the first."""

    @property
    def truncated(self) -> bool:
        """Some tokens cannot be drawn."""
        return self.top_p < 1 or self.top_k > 0


class ScoringConfig(Section):
    """How rewards are computed: in worker processes, which a function that hangs or dies cannot outlive."""

    workers: Positive = 2
    """Processes that score, on each rank."""
    timeout_s: Annotated[float, Field(gt=0)] = 3.0
    """For one sample. A worker that is over it is killed and replaced."""
    memory_gib: Annotated[float, Field(gt=0)] = 4.0
    """Address space of one worker."""
    max_no_value: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of a step's samples, those of all ranks, without a value past which the run stops."""


class ConversationConfig(Section):
    """How a model acts in an `environment`: a response is then a trajectory of several turns, which sampling.max_tokens
    bounds as a whole, what the environment says included."""

    max_turns: Positive = 16
    """Turns of the model; a trajectory that has not ended by then is truncated."""
    turn_tokens: Positive | None = None
    """Longest turn; one that reaches it ends the trajectory, truncated. None: what is left of sampling.max_tokens."""
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """For one answer of an environment. One that is over it is killed, and its sample has no value."""
    memory_gib: Annotated[float, Field(gt=0)] = 4.0
    """Address space of one environment."""
    at_once: Positive = 256
    """Trajectories under way on each rank, each with a process for its environment; the others wait."""
    keep_past: bool = False
    """Train with the past as it was said where the model's chat template would rewrite it (as in dropping earlier
    thinking), and serve the model so. false: such a template is refused."""


class EvalConfig(Section):
    """Pass rate on held-out problems, before training, every so many steps, and at the end."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps; 0: only before and after."""
    problems: Positive = 256
    """At most; the first of the held-out problems."""
    samples: Positive = 1
    """Responses to each; the pass rate is the mean over all, mean@samples."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """0: greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """1: the whole distribution."""
    suites: list[str] = []
    """Benchmark suites to measure as well, each by its own verifier or environment: `rlkit list suites`."""
    suite_data: Path | None = None
    """Folder of local copies of the suites; None: the hub."""


class CheckpointConfig(Section):
    every: Annotated[int, Field(ge=0)] | None = None
    """Steps; 0: only at the end. None: a tenth of the run, and at least 10 steps."""
    keep: Positive = 2
    """Newest checkpoints that stay on disk."""
    best: Annotated[str, Field(pattern=r"^-?[^-\s]\S*$")] | None = None
    """A metric: the checkpoint that is best by it stays too, of those in whose step it is measured. More is better;
    with a `-` before the name, as in -policy/kl, less is."""
    grace_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds from SIGTERM or SIGHUP until the process is killed: half of them, and twice what a checkpoint took, are
    kept for saving, and a step that takes longer than the rest is dropped while it samples. None: no limit."""


class ReplayConfig(Section):
    """Learn from the stored rollouts of another run, in place of sampling."""

    run: Path
    """Folder of the run that sampled them; what concerns its samples must be set as it was there."""
    first: Positive = 1
    """Step to begin with, the last one being `steps`; after the first, from that run's checkpoint of the step
    before."""


_Limit = bool | Annotated[float, Field(gt=0)]


class HealthConfig(Section):
    """Which of the report's warnings end a run. true: past the warning's own limit; a number: past that. The run is
    saved, and ends with exit code 3."""

    patience: Positive = 5
    """Steps in a row that are past the limit before the run ends."""
    kl: _Limit = False
    """KL to the reference, in nats a token. true: above 0.5."""
    entropy: _Limit = False
    """In nats a token, below the number, at a pass rate below 90 %. true: below a tenth of what it was, or 0.005."""
    gap: _Limit = False
    """Mean difference between the sampler's log-probs and the trainer's. true: above 0.001 in float32, 0.045 in
    bfloat16."""
    truncation: _Limit = False
    """Share of the responses that end at the length limit. true: above 0.1."""
    verifier: _Limit = False
    """Share of the samples that got no value. true: any."""
    no_signal: _Limit = False
    """Share of the groups whose rewards are all equal, at a pass rate below 90 %. true: all of them."""

    @property
    def limits(self) -> dict[str, float | None]:
        """The checks that are asked for, each with its limit; None: the warning's own."""
        asked = {name: value for name, value in self if name != "patience" and value is not False}
        return {name: None if value is True else value for name, value in asked.items()}
