"""How other projects call a reward function, and what they take from it.

Each style turns samples into the call that its project makes, and what comes back into results. What a function
does not name is left away, unless it takes `**kwargs`.
"""

from __future__ import annotations

import asyncio
import inspect
import numbers
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlkit.errors import RlkitError
from rlkit.interfaces.rewards import RewardResult, Sample
from rlkit.scoring.checks import plain

Style = Literal["trl", "verl", "verl_batch", "openrlhf", "openrlhf_http", "verifiers", "areal"]

GOLD_NAMES = ("answer", "solution", "ground_truth", "label")
"""Parameters that get the gold where the row has no column of that name."""


@dataclass(frozen=True)
class Convention:
    """What a project gives its reward functions."""

    gives: tuple[str, ...]
    """Parameters, in the project's order."""
    response: str | None
    """The one among them without which no function can judge; None: there is none."""
    positional: bool = False
    """`gives` are passed by place, whatever the function calls them."""
    columns: bool = False
    """The row's columns come as further keywords."""
    batched: bool = False
    """One call for all samples, with lists; else one call a sample."""


CONVENTIONS: dict[str, Convention] = {
    "trl": Convention(("prompts", "completions", "completion_ids"), "completions", columns=True, batched=True),
    "verl": Convention(("data_source", "solution_str", "ground_truth", "extra_info"), "solution_str"),
    "verl_batch": Convention(
        ("data_sources", "solution_strs", "ground_truths", "extra_infos"), "solution_strs", batched=True
    ),
    "openrlhf": Convention(("queries", "prompts", "labels"), "queries", positional=True, batched=True),
    "verifiers": Convention(("prompt", "completion", "answer", "state", "info", "task"), None),
    "areal": Convention(
        ("prompt", "completions", "prompt_ids", "completion_ids"), "completions", positional=True, columns=True
    ),
}


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Its signature; `(*args, **kwargs)` where it has none, as some built-in functions."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **kwargs: None)


def guess(signature: inspect.Signature) -> str | None:
    """The style that parameters of these names are typical of; None: they tell nothing."""
    names = set(signature.parameters)
    for style, telling in (("verl_batch", "solution_strs"), ("verl", "solution_str"), ("openrlhf", "queries")):
        if telling in names:
            return style
    if "completions" in names:
        return "areal" if names & {"prompt", "prompt_ids"} else "trl"
    return "verifiers" if names & {"completion", "state"} else None


def misfit(signature: inspect.Signature, style: str, extra: Mapping[str, Any]) -> str | None:
    """Why a function of that signature cannot be called in that style; None: as far as can be seen, it can."""
    convention = CONVENTIONS[style]
    parameters = list(signature.parameters.values())
    fits = guess(signature)
    given = f"style {style!r} gives {', '.join(convention.gives)}" + (" and the data's columns" * convention.columns)
    if fits is not None and fits != style:
        return f"{given}, but it has the parameters of style {fits!r}: set style: {fits}"
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not open_ended and (unknown := sorted(extra.keys() - named)):
        return f"it has no parameter {unknown[0]!r}, which `kwargs` sets"
    if convention.positional:
        try:
            signature.bind_partial(*convention.gives)
        except TypeError:
            return f"{given} by place, and it takes fewer"
        parameters = parameters[len(convention.gives) :]
    elif convention.response is not None and not open_ended and convention.response not in named:
        return f"{given}, and it takes no {convention.response!r}, so it would not see the response"
    if convention.columns:  # which of them there are is known when the first samples come
        return None
    known = {*convention.gives, *extra, *(GOLD_NAMES if style == "verifiers" else ())}
    for p in parameters:
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in known:
            return f"{given}; it also wants {p.name!r}, which nothing gives: give it a default, or set it in `kwargs`"
        if p.kind is p.POSITIONAL_ONLY:
            return f"{given} by name, and it takes {p.name!r} by place only"
    return None


@dataclass(frozen=True)
class Adapter:
    """A user's function, called in its style. `name` is for messages."""

    function: Callable[..., Any]
    name: str
    style: str
    chat: bool
    extra: Mapping[str, Any]
    runner: asyncio.Runner

    def __call__(self, samples: Sequence[Sample]) -> list[RewardResult]:
        if CONVENTIONS[self.style].batched:
            returned = self._awaited(self._call(samples))
            if self.style == "openrlhf":
                return openrlhf_results(returned, len(samples), f"{self.name}: ")
            return [self._result(each) for each in self._listed(returned, len(samples))]
        # Called outside the event loop: a function that runs one of its own can.
        returned = [self._caught(sample) for sample in samples]
        if any(inspect.isawaitable(each) for each in returned):
            returned = self.runner.run(self._all(returned))
        return [each if isinstance(each, RewardResult) else self._result(each) for each in returned]

    def _caught(self, sample: Sample) -> Any:
        try:
            return self._call([sample])
        except (RlkitError, MemoryError):  # the worker process ends itself where memory runs out
            raise
        except Exception as error:
            return self._failed(error)

    async def _all(self, returned: Sequence[Any]) -> list[Any]:
        async def one(each: Any) -> Any:
            try:
                return await each if inspect.isawaitable(each) else each
            except MemoryError:
                raise
            except Exception as error:
                return self._failed(error)

        return await asyncio.gather(*map(one, returned))

    def _failed(self, error: Exception) -> RewardResult:
        """The user's own exception costs its sample; the traceback is kept."""
        said = "".join(traceback.format_exception(error, limit=-3)) + self._hint(error)
        return RewardResult(value=None, status="error", info={"error": said})

    def _call(self, samples: Sequence[Sample]) -> Any:
        """What the function returns for the samples: one where it takes one, else all."""
        convention = CONVENTIONS[self.style]
        rows = [_given(self.style, sample, self.chat) for sample in samples]
        first = {name: [row[name] for row in rows] if convention.batched else rows[0][name] for name in rows[0]}
        positional = [first.pop(name) for name in convention.gives] if convention.positional else []
        signature = signature_of(self.function)
        taken = list(signature.parameters)[: len(positional)]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        further = {n: v for n, v in first.items() if (open_ended or n in signature.parameters) and n not in taken}
        further |= self.extra
        try:
            signature.bind(*positional, **further)
        except TypeError as error:
            columns = sorted({name for sample in samples for name in sample.columns})
            raise RlkitError(
                f"{self.name}{signature} cannot be called in style {self.style!r}: {error}. Given are "
                f"{', '.join(convention.gives)}, the gold ({', '.join(GOLD_NAMES)}) and the columns "
                f"{', '.join(columns) or '(none)'}; give the parameter a default, set it in `kwargs`, or set another "
                f"style: {', '.join(CONVENTIONS)}"
            ) from error
        if not convention.batched:
            return self.function(*positional, **further)
        try:
            return self.function(*positional, **further)
        except (TypeError, AttributeError) as error:
            if hint := self._hint(error):
                error.add_note(hint)
            raise

    def _hint(self, error: Exception) -> str:
        """Completions as text where messages were expected, or the other way round: the most common mistake."""
        said = str(error)
        if self.style not in ("trl", "verifiers") or not isinstance(error, TypeError | AttributeError):
            return ""
        if not self.chat and "string ind" in said:
            return "completions are given as text; for chat messages set chat: true"
        if self.chat and ("'list' object" in said or "got 'list'" in said or "not list" in said):
            return "completions are given as chat messages; for text set chat: false"
        return ""

    def _awaited(self, returned: Any) -> Any:
        if not inspect.isawaitable(returned):
            return returned

        async def wait() -> Any:
            return await returned

        return self.runner.run(wait())

    def _listed(self, returned: Any, n: int) -> list[Any]:
        several = plain(returned)
        if not isinstance(several, list | tuple):
            raise RlkitError(
                f"{self.name} returned {_shown(returned)}: in style {self.style!r} it must return a list with one "
                "reward per sample. A function that judges one response is of style verl, verifiers or areal"
            )
        if len(several) != n:
            raise RlkitError(
                f"{self.name} returned {len(several)} rewards for {n} samples: it must return one per sample"
            )
        return list(several)

    def _result(self, returned: Any) -> RewardResult:
        if isinstance(returned, RewardResult):
            return returned
        if isinstance(returned, dict):
            return self._from_dict(returned)
        if returned is None:
            return RewardResult(value=None, status="abstain")
        value = plain(returned)
        if isinstance(value, numbers.Real):
            return RewardResult(value=float(value))
        several = isinstance(value, list | tuple) and not CONVENTIONS[self.style].batched
        raise RlkitError(
            f"{self.name} returned {_shown(returned)} for a sample: it must return a number, True or False, None (no "
            "reward), or a dict with 'score'"
            + (". A function that judges lists of responses is of style trl or verl_batch" * several)
        )

    def _from_dict(self, returned: dict[Any, Any]) -> RewardResult:
        if "score" not in returned:
            raise RlkitError(
                f"{self.name} returned a dict without 'score' (its keys: {', '.join(map(str, returned)) or 'none'})"
            )
        result = self._result(returned["score"])
        for key, value in returned.items():
            value = plain(value)
            if key == "score":
                continue
            if key == "acc" and isinstance(value, numbers.Real):
                result.correct = bool(value == 1)
            elif isinstance(value, numbers.Real) and not isinstance(value, bool):
                result.parts[str(key)] = float(value)
            else:
                result.info[str(key)] = value
        return result


def _given(style: str, sample: Sample, chat: bool) -> dict[str, Any]:
    """What the style gives for one sample, by name: the project's parameters, then golds and columns."""
    columns = sample.columns
    prompt: Any = sample.prompt
    completion: Any = sample.response
    gold = sample.answer if sample.gold is None else sample.gold
    if chat:
        prompt = _messages(sample)
        completion = [{"role": "assistant", "content": sample.response}]
    golds = dict.fromkeys(GOLD_NAMES, gold)
    extra_info = columns.get("extra_info") or {}
    source = columns.get("data_source") or ""
    if style == "trl":
        own = {"prompts": prompt, "completions": completion, "completion_ids": sample.tokens}
        return {**golds, **columns, **own}
    if style == "areal":
        # A sample carries its response's tokens only; a function that needs the prompt's fails on None at once.
        own = {"prompt": prompt, "completions": completion, "prompt_ids": None, "completion_ids": sample.tokens}
        return {**golds, **columns, **own}
    if style == "openrlhf":
        return {"queries": sample.prompt + sample.response, "prompts": sample.prompt, "labels": gold}
    if style == "verifiers":
        info = columns.get("info") or {}
        own = {"prompt": prompt, "completion": completion, "answer": gold, "info": info}
        own["task"] = columns.get("task") or "default"
        return {**golds, **own, "state": {**columns, **own}}
    own = {
        "data_source": source,
        "solution_str": sample.response,
        "ground_truth": gold,
        "extra_info": extra_info,
    }
    return own if style == "verl" else {f"{name}s": value for name, value in own.items()}


def _messages(sample: Sample) -> list[dict[str, Any]]:
    """The row's own chat messages, copies that a function may change; a question as the user's. Where the data are not
    known, the prompt as the model read it."""
    if isinstance(sample.question, list):
        return [dict(message) for message in sample.question]
    return [{"role": "user", "content": sample.prompt if sample.question is None else sample.question}]


def openrlhf_results(returned: Any, n: int, where: str) -> list[RewardResult]:
    """Results of what an OpenRLHF reward returns: a dict of rewards, scores and extra_logs, or the rewards alone.

    `extra_logs` with a number for each sample become parts, `scores` go to info. Raises RlkitError for another form.
    """
    reply = returned if isinstance(returned, dict) else {"rewards": returned}
    if "rewards" not in reply:
        raise RlkitError(f"{where}a dict without 'rewards' (its keys: {', '.join(map(str, reply)) or 'none'})")
    rewards = _flat(reply["rewards"])
    if rewards is None or len(rewards) != n:
        raise RlkitError(
            f"{where}'rewards' is {_shown(reply['rewards'])}: it must hold one number for each of {n} samples"
        )
    results = []
    for i, reward in enumerate(rewards):
        if reward is None:
            results.append(RewardResult(value=None, status="abstain"))
        elif isinstance(reward, numbers.Real):
            results.append(RewardResult(value=float(reward)))
        else:
            raise RlkitError(f"{where}reward {i + 1} of {n} is {_shown(reward)}; it must be a number")
    scores = _flat(reply.get("scores"))
    if scores is not None and len(scores) == n:
        for result, score in zip(results, scores, strict=True):
            result.info["score"] = score
    for name, logged in (reply.get("extra_logs") or {}).items():
        values = _flat(logged)
        if values is not None and len(values) == n and all(isinstance(v, numbers.Real) for v in values):
            for result, value in zip(results, values, strict=True):
                result.parts[str(name)] = float(value)
    return results


def _flat(values: Any) -> list[Any] | None:
    """A list, tensor or array of [n] or [n, 1] as a flat list; None for anything else."""
    values = plain(values)
    if not isinstance(values, list | tuple):
        return None
    return [v[0] if isinstance(v, list | tuple) and len(v) == 1 else v for v in values]


def _shown(value: object) -> str:
    return f"{str(value)[:60]!r} ({type(value).__name__})"
