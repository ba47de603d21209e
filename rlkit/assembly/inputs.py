"""What a run reads before it loads a model: tokenizer, problems, how to sample. The plan is made of it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.config import ModelConfig, RunConfig
from rlkit.data import Problem, ProblemSet, load_problems
from rlkit.engine.models import load_tokenizer, model_shape, positions
from rlkit.environments.glue import Glue
from rlkit.errors import ConfigError
from rlkit.generation import checked_end_tokens
from rlkit.generation.acting import glue_of
from rlkit.interfaces.declarations import EnvironmentDeclaration
from rlkit.interfaces.generation import SamplingParams
from rlkit.records.folder import RunFolder
from rlkit.records.provenance import COMMIT, digest, model_files
from rlkit.wording import counted, one_line


@dataclass(frozen=True)
class Inputs:
    tokenizer: Any
    positions: dict[str, int | None]
    """Tokens that policy and critic have room for, by their paths; None: that one sets no limit."""
    problems: ProblemSet
    held_out: ProblemSet | None
    sampling: SamplingParams
    end_tokens: tuple[int, ...]
    """The model's own; `sampling` has the config's stop texts."""
    glue: Glue | None
    """What stands between a conversation's turns, where there is an environment."""

    @property
    def digests(self) -> dict[str, str]:
        """Of prompts and golds, by what they are for."""
        sets = {"training": self.problems, "held_out": self.held_out}
        return {
            name: digest((problem.id, problem.answer) for problem in each.problems)
            for name, each in sets.items()
            if each is not None
        }

    def context(self, config: RunConfig, *more: Sequence[Problem]) -> int:
        """Tokens of the longest prompt, of `more` problems too, and its response. ConfigError where the model has not
        as many positions."""
        sets = [self.problems.problems, *([self.held_out.problems] if self.held_out else []), *more]
        problem = max((each for problems in sets for each in problems), key=lambda each: len(each.tokens))
        longest = len(problem.tokens)
        for model, room in self.positions.items():
            if room is not None and longest + config.sampling.max_tokens > room:
                raise ConfigError(
                    f"the longest prompt ({longest} tokens) and sampling.max_tokens ({config.sampling.max_tokens}) "
                    f"exceed the {room} positions of {model}: lower sampling.max_tokens or data.max_prompt_tokens. "
                    f"The prompt: {one_line(problem.text)}"
                )
        return longest + config.sampling.max_tokens


def read_inputs(config: RunConfig, environment: EnvironmentDeclaration | None) -> Inputs:
    """Of a resolved config, and of what its environment declares, where it has one. ConfigError for what cannot be read
    or does not fit together."""
    quiet_loading(config.model)
    tokenizer, room = load_tokenizer(config.model), {config.model.path: positions(config.model)}
    if config.critic.path is not None and config.critic.path not in room:
        critic = config.model.model_copy(update={"path": config.critic.path})
        room[critic.path] = positions(critic, "critic.path")
        _check_critic(critic, config.model, tokenizer)
    problems, held_out = (load_problems(config.data, tokenizer, which, environment) for which in (False, True))
    assert problems is not None
    sampling = sampling_params(config)
    otherwise = None if sampling.stop else 'set sampling.stop to the text that ends one, ["\\n"] for a line'
    ends = checked_end_tokens(config.model, otherwise)
    glue = None
    if environment is not None:
        glue = glue_of(config.conversation, environment, config.data, tokenizer, ends)
    return Inputs(tokenizer, room, problems, held_out, sampling, ends, glue)


def _check_critic(critic: ModelConfig, policy: ModelConfig, tokenizer: Any) -> None:
    """ConfigError where the critic would read the policy's tokens as others."""
    theirs = load_tokenizer(critic, "critic.path").get_vocab()
    differ = sorted((token, text) for text, token in tokenizer.get_vocab().items() if theirs.get(text) != token)
    shape = model_shape(critic)
    if differ:
        token, text = differ[0]
        there = theirs.get(text, "no token")
        raise ConfigError(
            f"critic.path {critic.path!r} has another vocabulary than model.path {policy.path!r}: {len(differ)} tokens "
            f"differ, {text!r} first, which is {token} to the policy and {there} to the critic. A critic must read the "
            "policy's tokens: take one with the same tokenizer, or null, the policy's own model"
        )
    if shape is not None and max(tokenizer.get_vocab().values()) >= shape.vocabulary:
        raise ConfigError(
            f"critic.path {critic.path!r} has embeddings for {counted(shape.vocabulary, 'token')}, too few for the "
            f"{len(tokenizer)} of model.path {policy.path!r}"
        )


def check_same_data(config: RunConfig, inputs: Inputs) -> None:
    """For a run that is to go on. ConfigError where its data are others than they were, and no setting says so."""
    folder = RunFolder.open(config.folder)
    before, now = folder.read_data_digests(), inputs.digests
    changed = [name for name in before if now.get(name) != before[name]]
    if changed and folder.read_config().data == config.data:
        paths = {"training": config.data.path, "held_out": config.data.eval_path or config.data.path}
        files = " and ".join(dict.fromkeys(paths[name] for name in changed))
        raise ConfigError(
            f"the data of {config.folder} have changed since it began: {files} holds other prompts or golds, or in "
            "another order, so what comes would not continue what was. Put the old data back; or, to go on with these, "
            "give them a name of their own and say it: -s data.path=FILE (data.eval_path for held-out problems)"
        )


def check_same_model(config: RunConfig) -> None:
    """For a run that is to go on. ConfigError where the folder of the model, or of the critic, holds other files than
    it did: what learns is the checkpoint's, but a frozen reference, the tokenizer and the models' shapes are read from
    there. For a model on the hub a warning: another commit may be of its words alone."""
    began = RunFolder.open(config.folder).read_config()
    _check_same_files(
        config, "model", config.model.path, began.model.path, "What the policy is compared with, and the tokenizer, are"
    )
    _check_same_files(config, "critic", config.critic.path, began.critic.path, "The critic's shape is")


def _check_same_files(config: RunConfig, whose: str, path: str | None, began_with: str | None, read: str) -> None:
    before, now = RunFolder.open(config.folder).read_model_digests(whose), model_files(path)
    changed = [name for name in before if now.get(name) != before[name]]
    if not changed or path != began_with:
        return
    if COMMIT in before:
        warnings.warn(
            f"the hub's {path} is another than when {config.folder} was last started: commit {before[COMMIT]} then, "
            f"{now.get(COMMIT, 'none')} now. {read} read from there: where that has changed, what comes does not "
            "continue what was",
            stacklevel=3,
        )
        return
    raise ConfigError(
        f"the {whose} of {config.folder} has changed since it began: {', '.join(changed)} in {path}. {read} read from "
        "there, so what comes would not continue what was. Put the old files back, or begin a new run"
    )


def quiet_loading(model: ModelConfig) -> None:
    """transformers' progress bars are for people who wait."""
    from transformers.utils import logging

    if model.path.startswith("embedded:") or not sys.stderr.isatty():
        logging.disable_progress_bar()


def sampling_params(config: RunConfig) -> SamplingParams:
    """The config's sampling settings."""
    wanted = config.sampling
    return SamplingParams(
        max_tokens=wanted.max_tokens,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        stop=tuple(wanted.stop),
    )
