"""The settings of an evaluation, and what they say of a suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from rlkit import config as configs
from rlkit import secrets
from rlkit.config import (
    AnyRewards,
    ConversationConfig,
    EnvironmentRef,
    ModelConfig,
    PluginRef,
    Positive,
    Ref,
    ScoringConfig,
    Section,
    StopTexts,
)
from rlkit.config.meant import instead_in
from rlkit.data import Problem
from rlkit.data.reading import NO_GOLDS
from rlkit.errors import ConfigError
from rlkit.evaluation.suites import OpenSuite
from rlkit.mistakes import explain

OF_OWN_DATA = ("prompt", "answer", "template", "subset", "split", "reward")
"""Settings that a suite has already."""


class EvaluationConfig(Section):
    """What `rlkit eval` does. The sampling defaults are those of VIMPO's paper (arXiv 2606.20008)."""

    model: ModelConfig
    suites: list[str] = []
    """`rlkit list suites`. None: problems of one's own, in `data`."""
    out: Path
    """Folder of settings, responses and results; what is there is gone on with."""
    samples: Positive | None = None
    """Responses to each problem; None: the suite's own number (32 for AIME, else 1)."""
    limit: Positive | None = None
    """Only the first so many problems of each suite."""
    data: str | Path | None = None
    """Of suites: the folder of local copies; None: from the hub. Without suites: a file of problems, or a data set's
    hub id."""
    prompt: str | None = None
    """Column of the questions of one's own data; None: prompt, problem or question, the first that is there."""
    answer: str | None = None
    """Column of the golds; null: there are none. Not given: the first of the usual names that is there."""
    template: str | None = None
    """Text around the question, with {prompt} for it, as `data.template` of a run."""
    subset: str | None = None
    """The hub data set's configuration name."""
    split: str = "test"
    """Of the hub or embedded data set."""
    reward: AnyRewards | None = None
    """The verifier of one's own data, as a run's `reward`."""
    environment: EnvironmentRef | None = None
    """In which the model acts, as a run's; of suites, in those that are none themselves. None: it answers once."""
    conversation: ConversationConfig = ConversationConfig()
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the responses and the intervals."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0: greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.7
    """1: the whole distribution."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0: all."""
    max_tokens: Positive = 4096
    """Longest response. Where it is not given: no more than the model has room for beside the longest prompt."""
    stop: StopTexts = []
    """Texts that end a response. None given: those of the run that is evaluated."""
    chat: bool | None = None
    """Use the tokenizer's chat template; None: where it has one."""
    system: str | None = None
    """System message, for chat templates."""
    chat_template_kwargs: dict[str, Any] = {}
    """Arguments of the chat template's own, such as {enable_thinking: false}. None given: those of the run."""
    sampler: Ref = PluginRef(kind="auto")
    """vllm, vllm_server or transformers; auto: vLLM where it is installed and there is a GPU."""
    scoring: ScoringConfig = ScoringConfig()
    plugins: list[str] = []
    """Python files or modules to import first."""

    @field_validator("answer", mode="before")
    @classmethod
    def _said_to_be_none(cls, answer: Any) -> Any:
        return NO_GOLDS if answer is None else answer

    @model_validator(mode="after")
    def _suites_or_own_data(self) -> Self:
        folder = self.data is not None and Path(self.data).is_dir()
        if not self.suites:
            if self.data is None:
                raise ValueError(
                    "nothing to measure on: name suites with --suite (`rlkit list suites`), or give problems of your "
                    "own with --data FILE"
                )
            if folder:
                raise ValueError(
                    f"--data {self.data} is a folder: name the suites whose copies are in it with --suite, or give a "
                    "file of problems"
                )
            if not self.reward and self.environment is None:
                raise ValueError(
                    f"nothing judges the answers to {self.data}: name a verifier with --reward (`rlkit list rewards`), "
                    "which a run, as --model, has itself"
                )
            return self
        if own := [key for key in OF_OWN_DATA if key in self.model_fields_set]:
            raise ValueError(
                f"{' and '.join(own)} cannot be set for a suite, which has its own: leave out --suite to measure on "
                "problems of your own, given by --data FILE"
            )
        if self.data is not None and not folder:
            what = "is a file" if Path(self.data).is_file() else "is no folder"
            raise ValueError(
                f"--data {self.data} {what}: with --suite it is the folder of the suites' local copies; leave out "
                "--suite to measure on problems of your own"
            )
        return self


def load_settings(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Settings from plain data and overrides of the form key=value. ConfigError, naming each key that does not fit."""
    data = dict(settings)
    for override in overrides:
        if override.startswith("data."):
            raise ConfigError(f"-s {override}: for an evaluation, write -s {override.removeprefix('data.')}")
        configs.set_key(data, override)
    try:
        config = EvaluationConfig.model_validate(data)
    except ValidationError as error:
        raise explain(error, EvaluationConfig, instead=instead_in(EvaluationConfig)) from error
    secrets.check(config.model_dump(mode="json"))
    return config


def samples_of(suite: OpenSuite, config: EvaluationConfig) -> int:
    """Responses to each of the suite's problems."""
    return config.samples or suite.suite.samples


def fits(problem: Problem, config: EvaluationConfig, limit: int | None) -> bool:
    """Whether the prompt leaves room for a response of `max_tokens` within so many positions; None: any number."""
    return limit is None or len(problem.tokens) + config.max_tokens <= limit
