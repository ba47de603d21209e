"""A run's settings, all together: its sections, and what must hold between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from rlkit.config.places import Places
from rlkit.config.sections import (
    AnyRewards,
    BatchConfig,
    CheckpointConfig,
    ConversationConfig,
    Correction,
    CorrectionConfig,
    CriticConfig,
    DataConfig,
    EngineConfig,
    EnvironmentRef,
    EvalConfig,
    HealthConfig,
    ModelConfig,
    OptimizerConfig,
    PluginRef,
    Positive,
    Ref,
    Reference,
    ReplayConfig,
    SamplingConfig,
    ScoringConfig,
    Section,
)


class RunConfig(Section):
    name: str | None = None
    """Folder of the run under `out`; None: algorithm, model and seed."""
    out: Path = Path("runs")
    """Folder of all runs."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides data order and samples."""
    steps: Positive = 200
    """Rollouts: sample, score, update."""
    schedule: Literal["synchronous", "one_ahead"] = "synchronous"
    """synchronous: each rollout is sampled with the weights that learn from it. one_ahead: the next rollout is sampled
    while the learner works on this one, with weights that are a step older; for samplers outside the training
    process."""
    algo: Ref
    """`rlkit list algorithms`."""
    advantage: Ref | None = None
    """Takes the place of the algorithm's own."""
    loss: Ref | None = None
    """Takes the place of the algorithm's own policy loss."""
    model: ModelConfig
    data: DataConfig
    environment: EnvironmentRef | None = None
    """In which the model acts over several turns: `rlkit list environments`; or `FILE.py:CLASS`, for one written for
    another project. None: it answers once."""
    conversation: ConversationConfig = ConversationConfig()
    reward: AnyRewards
    """`rlkit list rewards`; or `FILE.py:FUNCTION`, for one written for another project. With an `environment`, which
    gives rewards of its own, [] will do."""
    noise: list[Ref] = []
    """Disturbs rewards in training, on purpose and reproducibly: `[{kind: group_flip, prob: 0.25}]`."""
    scoring: ScoringConfig = ScoringConfig()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    critic: CriticConfig = CriticConfig()
    reference: Reference | None = None
    """What the policy is compared with: frozen, none, average or copy. None: as the algorithm has it (vimpo_auto:
    average; others: frozen). It is kept where the algorithm needs one."""
    correction: Correction = None
    """Weights the loss's tokens where sampler and learner differ; off: they are taken as equal. None: as the schedule
    has it (one_ahead: weights with the defaults below; synchronous: off)."""
    engine: EngineConfig = EngineConfig()
    sampler: Ref = PluginRef(kind="auto")
    """vllm, vllm_server or transformers; auto: vLLM where it is installed and there is a GPU."""
    sampling: SamplingConfig = SamplingConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    replay: ReplayConfig | None = None
    """Learn from the stored rollouts of another run, in place of sampling: `rlkit replay`. None: it samples."""
    health: HealthConfig = HealthConfig()
    trackers: list[Ref] = []
    """Besides the console and the files, which are always written: wandb, tensorboard, or a plugin's."""
    plugins: list[str] = []
    """Python files or modules to import first."""
    _places: Places = PrivateAttr(default_factory=Places)

    @property
    def places(self) -> Places:
        """Where the settings stand in the file that they were read from."""
        return self._places

    def read_from(self, places: Places) -> Self:
        """The same config, whose settings stand there."""
        self._places = places
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.reward and self.environment is None:
            raise ValueError("reward names none, and there is no environment that gives one: `rlkit list rewards`")
        said = self.conversation.model_dump(exclude_defaults=True, exclude={"keep_past"})  # that comes with the model
        if said and self.environment is None and not self.eval.suites:
            raise ValueError(
                f"{' and '.join(f'conversation.{name}' for name in said)}: there is no environment to hold a "
                "conversation with. Set `environment`, or leave it out"
            )
        if self.sampling.truncated and self.corrects is None:
            raise ValueError(
                "sampling.top_p below 1 or sampling.top_k above 0: samples come from another distribution than the "
                "loss speaks of. Set correction: {} to weigh them for that, or top_p: 1.0 and top_k: 0; evaluation has "
                "settings of its own"
            )
        if self.model.dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "engine.zero_stage 0 with model.dtype bfloat16: DeepSpeed's first update is wrong there "
                "(0.744 of the learning rate). Set engine.zero_stage: 2, or model.dtype: float32"
            )
        if self.engine.offload_optimizer and self.zero_stage == 0:
            raise ValueError("engine.offload_optimizer needs engine.zero_stage 1, 2 or 3")
        if self.engine.offload_parameters and self.zero_stage != 3:
            raise ValueError("engine.offload_parameters needs engine.zero_stage: 3")
        if self.engine.offload_states and self.zero_stage < 2:
            raise ValueError("engine.offload_states needs engine.zero_stage 2 or 3")
        if self.engine.offload_states and (self.engine.offload_optimizer or self.engine.offload_parameters):
            raise ValueError(
                "engine.offload_states moves what engine.offload_optimizer and engine.offload_parameters keep in host "
                "memory for good: set one or the other"
            )
        if self.replay is not None and self.replay.first > self.steps:
            raise ValueError(f"replay.first ({self.replay.first}) comes after the last step, steps ({self.steps})")
        if self.eval.every == 0 and (self.checkpoint.best or "").startswith(("eval/", "-eval/")):
            raise ValueError(
                f"checkpoint.best: {self.checkpoint.best} is measured before the first step and after the last alone, "
                "so no checkpoint on the way has it: set eval.every"
            )
        if self.health.no_signal and self.batch.samples_per_prompt == 1:
            raise ValueError("health.no_signal looks at groups of responses, and batch.samples_per_prompt 1 makes none")
        if self.health.gap and self.replay is None and (self.sampling.truncated or self.schedule == "one_ahead"):
            why = "sampling.top_p or sampling.top_k" if self.sampling.truncated else "schedule: one_ahead"
            raise ValueError(f"health.gap: with {why} sampler and trainer differ on purpose: leave it out")
        if self.engine.overlap_comm and self.zero_stage < 2:
            raise ValueError("engine.overlap_comm needs engine.zero_stage 2 or 3: below, gradients are added up once")
        return self

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str | None) -> str | None:
        if name is not None and (not name.strip() or name in (".", "..") or "/" in name):
            raise ValueError(
                f"{name!r} is not the name of a folder: give one without '/', and `out` for where it stands"
            )
        return name

    @property
    def run_name(self) -> str:
        model = self.model.path.rstrip("/").replace("embedded:", "").rpartition("/")[2]
        return self.name or f"{self.algo.kind}-{model}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.out / self.run_name

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints; 0: only at the end."""
        # A kill then costs a tenth of a run at most, and short runs are not slowed by saving.
        return max(10, self.steps // 10) if self.checkpoint.every is None else self.checkpoint.every

    @property
    def corrects(self) -> CorrectionConfig | None:
        """The correction in force; None: the tokens are not weighted."""
        return self.correction if isinstance(self.correction, CorrectionConfig) else None

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's; of a config whose dtype is settled."""
        if self.engine.zero_stage is None:
            return 2 if self.model.dtype == "bfloat16" else 1
        return self.engine.zero_stage

    @property
    def updates_per_step(self) -> int:
        return self.batch.minibatches * self.batch.epochs

    def dump(self) -> dict[str, Any]:
        """Plain data, as written to config.yaml."""
        return self.model_dump(mode="json")
