"""Rewards for samples, checked: whatever a reward function returns, a fault in it is named and cannot pass."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
import numbers
import re
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

from rlkit.blame import debugging, place, tail
from rlkit.errors import PluginError, RlkitError, TokensUnknownError, nearest
from rlkit.interfaces.declarations import reward_declaration
from rlkit.interfaces.rewards import VALUELESS, RewardFn, RewardResult, Sample, Status, UnknownTokens

ALLOWED = "a finite number, True or False, None (no value), or a RewardResult"


class Decoder(Protocol):
    """The part of a tokenizer that turns sampled tokens into the text a reward reads."""

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str: ...


def score(reward: RewardFn, name: str, samples: Sequence[Sample]) -> list[RewardResult]:
    """One result per sample, in order, with `correct` filled in wherever there is a value.

    Calls the function here and now, without a deadline; `Scorer` is the safe way. An async function is awaited.
    Raises RlkitError, naming the reward and the sample, where the function raises, returns another number of
    results than samples, or anything but a finite number, a bool, None or a sound RewardResult; TokensUnknownError
    where it reads tokens that are not known.
    """
    if not samples:
        return []
    declared = reward_declaration(reward, f"reward {name!r}").range
    try:
        returned = call(reward, name, samples, asyncio.run)
    except TokensUnknownError:
        raise
    except Exception as error:
        raise PluginError(f"reward {name!r} raised on a batch of {len(samples)} samples:\n{tail(error)}") from error
    return [
        checked(value, declared, f"reward {name!r}, sample {i} of {len(samples)} ({named(sample)})", sample)
        for i, (value, sample) in enumerate(zip(one_each(returned, name, samples), samples, strict=True), 1)
    ]


def call(reward: RewardFn, name: str, samples: Sequence[Sample], run: Callable[[Any], Any]) -> object:
    """What the function returns; `run` waits for the coroutine of an async one. TokensUnknownError, naming the reward,
    where it has read tokens that are not known, whatever it made of that."""
    try:
        returned: object = reward(samples)
        return run(_awaited(returned)) if inspect.isawaitable(returned) else returned
    finally:
        for sample in samples:
            if isinstance(sample.tokens, UnknownTokens) and sample.tokens.was_read:
                raise TokensUnknownError(f"reward {name!r} reads a response's tokens, {sample.tokens.why}")


async def _awaited(returned: Awaitable[object]) -> object:
    return await returned


def one_each(returned: object, name: str, samples: Sequence[Sample]) -> Sequence[object]:
    """What was returned, if it is a list as long as the samples; else RlkitError."""
    if len(getattr(returned, "shape", ())) == 1:  # an array or a tensor of [n]
        returned = plain(returned)
    if isinstance(returned, (str, bytes)) or not isinstance(returned, Sequence):
        raise RlkitError(
            f"reward {name!r} returned a {type(returned).__name__} ({str(returned)[:60]!r}): it must return a list "
            f"with one result per sample, each {ALLOWED}"
        )
    if len(returned) != len(samples):
        raise RlkitError(
            f"reward {name!r} returned {len(returned)} results for {len(samples)} samples: it must return one per "
            "sample, in order (None for a sample without a value)"
        )
    return returned


def checked(returned: object, declared: tuple[float, float] | None, where: str, sample: Sample) -> RewardResult:
    """The sample's result with `correct` filled in; RlkitError, opening with `where`, for an unsound one."""
    if returned is None:
        return RewardResult(value=None, status="abstain")
    if isinstance(returned, RewardResult):
        result = dataclasses.replace(
            returned,
            value=plain(returned.value),
            correct=plain(returned.correct),
            parts={name: plain(number) for name, number in returned.parts.items()},
        )
    elif isinstance(number := plain(returned), numbers.Real):
        try:
            result = RewardResult(value=float(number))
        except OverflowError as error:
            raise RlkitError(f"{where}: got {shown(returned)}; allowed are {ALLOWED}") from error
    else:
        raise RlkitError(f"{where}: got {shown(returned)}; allowed are {ALLOWED}")

    if result.status not in typing.get_args(Status):
        raise RlkitError(
            f"{where}: unknown status {result.status!r}{nearest(str(result.status), typing.get_args(Status))}"
        )
    for part, number in result.parts.items():
        if not finite(number):
            raise RlkitError(f"{where}: part {part!r} is {shown(number)}; parts must be finite numbers")
    if result.status in VALUELESS:
        if result.value is not None:
            raise RlkitError(
                f"{where}: status {result.status!r} has no value, but got {shown(result.value)}; give None"
            )
        return result
    if result.value is None:
        raise RlkitError(
            f"{where}: no value, but status {result.status!r}; a sample without a value needs one of the statuses "
            f"{', '.join(sorted(VALUELESS))}"
        )
    if not finite(result.value):
        raise RlkitError(f"{where}: got {shown(result.value)}; allowed are {ALLOWED}")
    value = float(result.value)
    if result.status != "ok" and value != 0:
        raise RlkitError(f"{where}: status {result.status!r} has the value 0, but got {value}")
    if result.token_values is not None:
        tokens = None if isinstance(sample.tokens, UnknownTokens) else len(sample.tokens)
        result = dataclasses.replace(result, token_values=_token_values(result.token_values, value, tokens, where))
    if declared is not None and not declared[0] <= value <= declared[1]:
        raise RlkitError(f"{where}: got {value}, outside the range {declared} that the reward declares")
    correct = result.correct
    if correct is None:
        correct = result.status == "ok" and (value >= 1 if declared is None else value == declared[1])
    return dataclasses.replace(result, value=value, correct=correct)


def plain(value: Any) -> Any:
    """Numbers, arrays and tensors of numpy's or torch's as Python's own, a Decimal as a float; the rest as it is."""
    if isinstance(value, Decimal):
        return float(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _token_values(given: object, value: float, tokens: int | None, where: str) -> list[float]:
    """As a list; RlkitError where they are not what they should be. `tokens` of the response; None: not known."""
    values = plain(given)
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise RlkitError(f"{where}: token_values are {shown(given)}; give a list, one number for each token")
    values = [plain(number) for number in values]
    if tokens is not None and len(values) != tokens:
        raise RlkitError(f"{where}: {len(values)} token_values for a response of {tokens} tokens; give one for each")
    if wrong := [number for number in values if not finite(number)]:
        raise RlkitError(f"{where}: token_values hold {shown(wrong[0])}; they must be finite numbers")
    if not math.isclose(math.fsum(values), value, rel_tol=1e-6, abs_tol=1e-6):
        raise RlkitError(
            f"{where}: token_values add up to {math.fsum(values):g}, but the value is {value:g}; it must be their sum"
        )
    return [float(number) for number in values]


def finite(value: object) -> bool:
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False


def shown(value: object) -> str:
    return f"{str(value)[:60]} ({type(value).__name__})"


def named(sample: Sample) -> str:
    """The sample, for messages."""
    key = sample.key
    return f"prompt {key.prompt_id}, step {key.rollout_step}, index {key.index}"


def error_of(result: RewardResult) -> str | None:
    """What is said of the failure of a function or, where there is no value, of an environment or one of several
    rewards, whose infos lie apart. None: nothing."""
    apart = result.info.values() if result.value is None else ()
    within = [result.info, *(each for each in apart if isinstance(each, Mapping))]
    return next((str(each["error"]) for each in within if "error" in each), None)


def in_brief(said: str) -> str:
    """Of what `tail` says, the exception and the line that raised it, without the frames; of a process that was ended,
    what is said before the frames that it has printed; of anything else, all."""
    if debugging():
        return said
    said = re.split(r"\n(?:Timeout .*\n)?(?:Current t|T)hread 0x", said)[0]
    frames = list(re.finditer(r'^  File "(.+)", line (\d+).*\n(?:    .*\n)*', said, re.MULTILINE))
    if not frames:
        return said
    file, line = frames[-1].groups()
    return f"{place(file, int(line))}: {said[frames[-1].end() :].strip()}"
