"""A config for a model, data, a verifier and a machine, and the reason for each of its settings."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlkit.config import DataConfig, RunConfig, load, resolve_with_algorithm
from rlkit.data import as_problems
from rlkit.engine.memory import Memory, estimate
from rlkit.errors import ConfigError
from rlkit.generation import choose as choose_sampler
from rlkit.interfaces.learning import Algorithm
from rlkit.proposal.data import Data, messages
from rlkit.proposal.machine import Machine
from rlkit.proposal.model import Model
from rlkit.proposal.verifier import ENOUGH, Verifier
from rlkit.wording import counted, one_line, size

ANY_LENGTH = 10**9
SHORTEST_RESPONSE = 16
"""Tokens below which no response is worth asking for."""
UNKNOWN = 0.05
"""Share of prompts that may hold what the tokenizer has no token for."""


@dataclass
class Proposal:
    settings: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    """Key, with dots -> the reason."""

    def put(self, key: str, value: Any, why: str = "") -> None:
        *path, last = key.split(".")
        here = self.settings
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
        if why:
            self.why[key] = why

    def config(self) -> RunConfig:
        return load(self.settings)


def choose(
    model: Model, data: Data, verifier: Verifier, algo: str, machine: Machine, ranks: int, plugins: Sequence[str]
) -> Proposal:
    """ConfigError for what cannot work: prompts that the model cannot read or has no room for, no memory."""
    made = Proposal()
    tiny = model.embedded or model.small
    algorithm = {"kind": algo, "beta": 0.05} if tiny and algo == "vimpo" else algo
    made.put("algo", algorithm, f"`rlkit list algorithms` has others{_beta(algorithm)}.")
    made.put("model.path", model.path, f"{model}.")
    if tiny:
        made.put("model.dtype", "float32")
    elif machine.gpus and model.shape.parameters > 4e8:
        made.put("model.gradient_checkpointing", True, "Less memory for activations, for a third more time.")
    _data(made, model, data, verifier)
    made.put("reward", verifier.reward, _reward(verifier))
    longest, problems = _lengths(made, model, data, machine)
    _batch(made, tiny, machine, problems)
    rate = 3e-4 if tiny else 5e-6 if model.shape.parameters < 5e8 else 1e-6
    made.put("optimizer.lr", rate, _RATE)
    if tiny:
        made.put("optimizer.weight_decay", 0.0)
        made.put("optimizer.warmup_updates", 0)
    if plugins:
        made.put("plugins", list(plugins))
    _fit(made, machine, ranks, longest, rate)
    _evaluation(made, data, machine, tiny)
    made.settings = {key: made.settings[key] for key in RunConfig.model_fields if key in made.settings}
    return made


_RATE = "A starting point for a model of this size, not a recipe. Tune it for each algorithm before you compare two."


def _beta(algorithm: Any) -> str:
    return ". This beta is for small models and short answers" if isinstance(algorithm, dict) else ""


def _reward(verifier: Verifier) -> str:
    lines = [f"{verifier.kind}: {verifier.why}."]
    if verifier.verdicts:
        lines.append("What it says of golds as answers to their own questions, and to others':")
        lines += [f"  {verdict}" for verdict in verifier.verdicts]
    if any(not verdict.right and verdict.result.correct for verdict in verifier.verdicts):
        lines.append("It takes a wrong answer for right: look at these rows, or take another verifier.")
    if any(verdict.right and not verdict.result.correct for verdict in verifier.verdicts):
        lines.append("It does not take each gold for right: see `rlkit data check`.")
    return "\n".join(lines)


# Data


def _data(made: Proposal, model: Model, data: Data, verifier: Verifier) -> None:
    made.put("data.path", data.path, f"{counted(len(data.rows), 'problem')}.")
    if data.subset is not None:
        made.put("data.subset", data.subset)
    made.put("data.prompt", data.prompt)
    made.put("data.answer", data.answer, "" if data.answer else "There are no golds, and the reward must read none.")
    _template(made, model, data, verifier)
    if data.eval_path is not None:
        made.put(
            "data.eval_path", data.eval_path, f"{counted(data.held_out, 'held-out problem')} with the same columns."
        )
    elif not data.held_out:
        made.put(
            "data.eval_path",
            None,
            "No held-out problems were found (a file with `test` for `train` in its name, or a test split). Without "
            "them there is no evaluation: give a file of other problems with the same columns.",
        )


def _template(made: Proposal, model: Model, data: Data, verifier: Verifier) -> None:
    """How a question is put, where more is needed than the question."""
    prompts = data.prompts()
    form = verifier.form
    if model.embedded:
        return
    if any(map(messages, prompts)):
        made.why["data.prompt"] = "Messages of the data's own: nothing is added to them."
        return
    asked = bool(form.mark) and sum(form.mark in str(prompt) for prompt in prompts) > len(prompts) / 2
    instruction = "" if asked else form.instruction
    reason = (
        f"The questions ask for {form.mark} themselves."
        if asked
        else f"So that {verifier.kind} finds the answer."
        if instruction
        else "Nothing is known of how the reward wants its answers: say so here, if it does."
    )
    if model.chat:
        made.put("data.chat", True, "The filled template is the user's message in the model's chat template.")
        template = "{prompt}" + (f"\n\n{instruction}" if instruction else "")
    else:
        template = (f"{instruction}\n\n" if instruction else "") + "Problem: {prompt}\n\nSolution:"
        made.put(
            "sampling.stop", ["\nProblem:"], "A base model goes on with a problem of its own: there it is stopped."
        )
        reason += " A base model goes on with a text: this one is to be gone on with by a solution."
    made.put("data.template", template, reason)


def _lengths(made: Proposal, model: Model, data: Data, machine: Machine) -> tuple[int, int]:
    """Settings for the lengths of prompts and responses. Returns the tokens of the longest row, and the problems that
    are left."""
    config = DataConfig(**{**made.settings["data"], "max_prompt_tokens": ANY_LENGTH})
    problems = as_problems(data.rows, config, model.tokenizer, data.path).problems
    _check_known(model, data, [problem.tokens for problem in problems])
    lengths = np.array([len(problem.tokens) for problem in problems])
    shortest, longest, high = int(lengths.min()), int(lengths.max()), int(np.quantile(lengths, 0.99))
    room = model.positions or ANY_LENGTH
    if shortest + SHORTEST_RESPONSE > room:
        raise ConfigError(
            f"the shortest prompt of {data.path} has {shortest} tokens, and {model.path} has {room} positions for "
            "prompt and response together: take a model with more, or cut the prompts where the data are made"
        )
    wanted, why = _response(model, data, machine)
    if (left := max(SHORTEST_RESPONSE, room - high)) < wanted:
        wanted, why = left, f"{why} This is what the model's {room} positions leave."
    # Held-out prompts may be longer than any of these.
    limit = min(_up(longest), room - wanted)
    kept = int((lengths <= limit).sum())
    lost = f"; dropped, as too long: {len(lengths) - kept}" if kept < len(lengths) else ""
    shown = problems[0].tokens
    first = one_line(model.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False), 600)
    made.put(
        "data.max_prompt_tokens",
        limit,
        f"Prompts have {shortest} to {longest} tokens, 99 % at most {high}{lost}. The first, as the model reads it:\n  "
        f"{first}",
    )
    made.put("sampling.max_tokens", wanted, why)
    return min(longest, limit) + wanted, kept


def _check_known(model: Model, data: Data, prompts: Sequence[Sequence[int]]) -> None:
    unknown = model.tokenizer.unk_token_id
    bad = [i for i, tokens in enumerate(prompts) if unknown is not None and unknown in tokens]
    if len(bad) > UNKNOWN * len(prompts):
        also = "; it was made for its own tasks (--data embedded:arithmetic)" if model.embedded else ""
        raise ConfigError(
            f"{model.path} has no tokens for what {len(bad)} of {len(prompts)} prompts of {data.path} hold, such as "
            f"{one_line(str(data.prompts()[bad[0]]), 60)!r}{also}: take a model that reads such text, with --model"
        )


def _response(model: Model, data: Data, machine: Machine) -> tuple[int, str]:
    if model.embedded and data.embedded:
        return 48, "The longest answers of this task have some 40 tokens."
    wanted, most = (1024, 2048) if machine.gpus else (256, 256)
    texts = [text for text in data.gold_texts() if text.strip()][:500]
    golds = [len(ids) for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else [0]
    high = int(np.quantile(golds, 0.95))
    slow = "" if machine.gpus else " More takes long without a GPU."
    if high > 30:
        said = f"The data's solutions have up to {high} tokens (95 %); a model needs some more."
        return min(most, _up(2 * high)), said + slow
    if (numbers := _for_numbers(model, data, texts)) < wanted:
        said = f"Room for a step or two: the golds are one number each, and the questions are short.{slow}"
        return numbers, f"{said} Raise it where many responses are cut off."
    return wanted, f"Room to think for an answer that is short.{slow} Raise it where many responses are cut off."


NUMBER = re.compile(r"[-+]?[$€£]?[-+]?\d[\d,]*(\.\d+)?%?")
A_QUESTION = 8
"""Times the tokens of a question, of which the steps to a number speak again and again."""


def _for_numbers(model: Model, data: Data, golds: Sequence[str]) -> int:
    """Tokens that it takes to come to golds that are one number each; `ANY_LENGTH` where they are not, or it is not
    known."""
    questions = [prompt for prompt in data.prompts()[:500] if isinstance(prompt, str)]
    if not questions or sum(bool(NUMBER.fullmatch(gold.strip())) for gold in golds) < ENOUGH * max(1, len(golds)):
        return ANY_LENGTH
    lengths = [len(ids) for ids in model.tokenizer(questions, add_special_tokens=False)["input_ids"]]
    return _up(A_QUESTION * int(np.quantile(lengths, 0.95)))


def _up(tokens: int) -> int:
    """To a multiple of 64."""
    return math.ceil(tokens / 64) * 64


# Batch and memory


def _batch(made: Proposal, tiny: bool, machine: Machine, problems: int) -> None:
    prompts, samples, steps = (32, 8, 80) if tiny else (64, 8, 200) if machine.gpus else (8, 4, 50)
    made.put(
        "steps", steps, f"With {problems} problems, each comes {steps * min(prompts, problems) / problems:.2g} times."
    )
    made.put(
        "batch.prompts_per_step",
        min(prompts, problems),
        "" if tiny or machine.gpus else "Small, so that a step ends within minutes without a GPU.",
    )
    made.put("batch.samples_per_prompt", samples)


def _fit(made: Proposal, machine: Machine, ranks: int, longest: int, rate: float) -> None:
    """Settings for memory: all weights if they fit, shared among the ranks if need be, else adapters. ConfigError where
    nothing fits."""
    room, needed = machine.of_a_rank(ranks), []
    for settings in _ways(ranks, rate):
        tried = copy.deepcopy(made)
        for key, value in settings.items():
            tried.put(key, value)
        memory, algorithm = _memory(tried, machine, ranks, longest, room)
        needed.append(memory.engines + memory.micro_batch)
        if needed[-1] > room:
            continue
        if settings:
            key = next(iter(settings))
            tried.why[key] = f"All weights as they are would need {size(needed[0])} on {_each(ranks)}."
        if algorithm.value_loss is not None and rate > 1e-5:
            tried.put("critic.optimizer.lr", 1e-3, "The critic begins with no idea of a value.")
        made.settings, made.why = tried.settings, tried.why
        return
    raise ConfigError(
        f"{made.settings['model']['path']} does not fit: weights, gradients and optimizer need {size(needed[0])} on "
        f"{_each(ranks)}, and with LoRA still {size(needed[-1])}; {size(room)} can be given to them here "
        f"({machine.name}). Take a smaller model, or more GPUs with --nproc"
    )


def _ways(ranks: int, rate: float) -> list[dict[str, Any]]:
    """Settings in the order in which they are tried."""
    shared = [{"engine.zero_stage": stage} for stage in (2, 3)] if ranks > 1 else []
    # Adapters want some ten times the rate of all weights.
    return [{}, *shared, {"model.lora": {"rank": 16}, "optimizer.lr": 10 * rate}]


def _memory(made: Proposal, machine: Machine, ranks: int, longest: int, room: int) -> tuple[Memory, Algorithm]:
    """What a rank needs, with a budget of tokens that leaves most of `room` to what stays."""
    tokens = 8192 if machine.gpus else 2048
    while True:
        made.put("batch.tokens_per_microbatch", tokens)
        config, algorithm = resolve_with_algorithm(made.config())
        memory = estimate(
            config,
            ranks,
            longest=longest,
            needs_reference=algorithm.needs.reference,
            has_critic=algorithm.value_loss is not None,
        )
        assert memory is not None, "the model's size is known"
        if memory.micro_batch <= 0.2 * room or tokens <= max(512, longest):
            break
        tokens //= 2
    passing = "logits and activations" if memory.activations is not None else "logits, besides activations"
    made.why["batch.tokens_per_microbatch"] = (
        "Of one forward pass: halve it where memory runs out; the result stays the same. By arithmetic "
        f"{_each(ranks)} needs {size(memory.engines)} for weights, gradients and optimizer and up to "
        f"{size(memory.micro_batch)} for {passing}. This machine: {machine.name}."
    )
    return memory, algorithm


def _each(ranks: int) -> str:
    return f"each of {ranks} ranks" if ranks > 1 else "the one rank"


def _evaluation(made: Proposal, data: Data, machine: Machine, tiny: bool) -> None:
    if data.held_out:
        made.put("eval.every", max(10, made.settings["steps"] // 10))
        most = 512 if tiny else 256 if machine.gpus else 32
        made.put("eval.problems", min(data.held_out, most), f"Of {data.held_out}. More make its pass rate surer.")
    kind, reason = choose_sampler()
    made.put("sampler", "auto", f"Here {kind}: {reason}.")
