"""A model that is asked: prompts or a conversation in, texts out, without a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlkit import registry
from rlkit.config import DataConfig, ModelConfig, RunConfig
from rlkit.errors import ConfigError, RlkitError
from rlkit.interfaces.generation import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from rlkit.data import Problem
    from rlkit.generation.conversations import Setting
    from rlkit.generation.sampled import Sampled

MAX_TOKENS = 512
"""Longest response of a model that comes from no run."""

Message = dict[str, str]
"""Of a conversation: a role and a content."""

UNKNOWN = "asked"
"""The id of a question that the run's data do not have."""


@dataclass(frozen=True)
class Asked:
    """A model with all that it takes to ask it; it is loaded once."""

    name: str
    data: DataConfig
    """How a prompt is put to it."""
    params: SamplingParams
    positions: int | None
    tokenizer: Any
    sampler: Any
    setting: Setting | None = None
    """The environment in which it acts; None: it answers."""
    problems: Sequence[Problem] = ()
    """Of the run, those held out first, where there is an environment."""

    def act(self, question: str | None, count: int = 1, seed: int = 0) -> list[Sampled]:
        """Trajectories in the environment, of a question of the run's data with its row, of another question without
        any, or, for None, of a problem of the run's that the seed decides."""
        from rlkit.data import Problem
        from rlkit.data.prompts import prompt_tokens
        from rlkit.generation.conversations import Conversations
        from rlkit.generation.sampled import draws
        from rlkit.generation.stops import Stops

        assert self.setting is not None
        tools = self.setting.declared.tools
        known = (each for each in self.problems if question in (each.question, each.text))
        if question is None:
            problem = self.problems[seed % len(self.problems)]
        elif (found := next(known, None)) is not None:
            problem = found
        else:
            tokens = prompt_tokens(question, self.data, self.tokenizer, tools)
            problem = Problem(UNKNOWN, question, tokens, "", {}, question)
        wanted = draws([problem], count, 0)
        stops = Stops(self.params.stop, self.tokenizer) if self.params.stop else None
        held = Conversations(
            wanted,
            self.setting,
            self.params,
            lambda draw, part: draw.key.seed(seed, f"sample/{part}"),
            self.tokenizer,
            stops,
        )
        try:
            by_key = {one.key: one for one in held.all(self.sampler)}
        finally:
            held.close()
        return [by_key[draw.key] for draw in wanted]

    @property
    def converses(self) -> bool:
        """Whether it takes the turns of a conversation: by a chat template, and not a text around one question."""
        from rlkit.data.prompts import uses_chat

        return uses_chat(self.data, self.tokenizer) and self.data.template is None

    def answer(self, prompt: str | list[Message], count: int = 1, seed: int = 0) -> list[str]:
        """Responses to a prompt or a conversation, which are as long as the model has room for and no longer.

        RlkitError where there is no room for any.
        """
        from rlkit.data.prompts import prompt_tokens

        tokens = prompt_tokens(prompt, self.data, self.tokenizer)
        params = self.params
        if self.positions is not None:
            room = self.positions - len(tokens)
            if room < 1:
                raise RlkitError(
                    f"no room for a response: the prompt takes {len(tokens)} tokens, and {self.name} reads "
                    f"{self.positions} with its response"
                )
            params = replace(params, max_tokens=min(params.max_tokens, room))
        requests = [Request(prompt_tokens=tokens, seed=seed + i, params=params) for i in range(count)]
        completions = dict(self.sampler.generate(requests))
        return [self.tokenizer.decode(completions[i].tokens, skip_special_tokens=True) for i in range(count)]


def open_model(
    path: str,
    stack: ExitStack,
    temperature: float | None = None,
    max_tokens: int | None = None,
    trusts: bool = False,
) -> Asked:
    """A run's newest model, asked as in training; or a model's folder or hub id, or embedded:s. `stack` closes what it
    opens.

    What is not None takes the place of the run's temperature and length, or of 1 and 512. `trusts`: as `model_of`,
    and code of the run's environment may run too. Raises ConfigError, and RlkitError for a run without a model.
    """
    from rlkit.assembly.inputs import quiet_loading, sampling_params
    from rlkit.data import load_problems
    from rlkit.embedded import resolve
    from rlkit.engine.models import load_tokenizer, positions
    from rlkit.generation import end_tokens
    from rlkit.generation.acting import declared, glue_of, setting_of
    from rlkit.records.folder import RunFolder

    model, data = model_of(path, trusts), DataConfig(path="")
    params, run = SamplingParams(max_tokens=MAX_TOKENS), None
    if RunFolder.is_one(Path(path)):
        run = RunFolder(Path(path)).read_config()
        data, params = run.data, sampling_params(run)
    params = replace(
        params,
        temperature=params.temperature if temperature is None else temperature,
        max_tokens=max_tokens or params.max_tokens,
    )
    quiet_loading(model)
    tokenizer, room = load_tokenizer(model), positions(model)
    # The room for prompt and response is seen to with each prompt.
    sampler = registry.build("samplers", "transformers", {}, model, room or 2**31, 0)
    stack.callback(sampler.close)
    asked = Asked(path, data, params, room, tokenizer, sampler)
    if run is None or run.environment is None:
        return asked
    if not trusts and _brings_code(run):
        raise ConfigError(
            f"{path} acts in environment {run.environment.kind!r}, with code that its config names, which is not run "
            "unless you say so, as it may be somebody else's: look at its config.yaml, and add --trust-remote-code"
        )
    registry.load(run.plugins)
    environment = declared(run.environment)
    assert environment is not None
    sets = [load_problems(data, tokenizer, held_out, environment) for held_out in (True, False)]
    problems = [problem for each in sets if each is not None for problem in each.problems]
    longest = max(len(problem.tokens) for problem in problems) + params.max_tokens
    glue = glue_of(run.conversation, environment, data, tokenizer, end_tokens(resolve(model.path), trusts))
    context = min(room or longest, longest)
    setting = setting_of(run.environment, environment, run.conversation, glue, context, run.plugins, stack)
    return replace(asked, setting=setting, problems=problems)


def _brings_code(run: RunConfig) -> bool:
    """Whether the run's environment may be other code than what is installed: of a plugin's file, or of a file or
    module that an option names, FILE.py:NAME."""
    assert run.environment is not None
    named = json.dumps(list(run.environment.options.values()))
    return bool(run.plugins) or run.environment.kind == "class" or ":" in named


def model_of(path: str, trusts: bool = False) -> ModelConfig:
    """A run's newest model, with the run's dtype, or a path with what suits it. RlkitError for a run without one.

    trusts: code that the model's folder brings may run. What a run's config says of that does not count: it may be
    somebody else's.
    """
    from rlkit.records.folder import RunFolder

    here = Path(path)
    is_run, is_model = RunFolder.is_one(here), (here / "config.json").is_file()
    # A folder of runs, or one beside them, was meant for a run: of that the hub knows nothing.
    if not is_run and not is_model and any(RunFolder.below(each) for each in (here, here.parent) if each != Path()):
        RunFolder.open(here)
    if is_run:
        run = RunFolder(here)
        found = {"path": str(run.newest_model()), "lora": None, "trust_remote_code": trusts}
        return run.read_config().model.model_copy(update=found)
    dtype: Literal["float32", "auto"] = "float32" if path.startswith("embedded:") else "auto"
    return ModelConfig(path=path, dtype=dtype, trust_remote_code=trusts)
