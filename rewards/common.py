"""What the small rewards share."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, cast

from pydantic import AfterValidator

from rlkit import modules
from rlkit.errors import ConfigError, module_of, nearest
from rlkit.golds import gold_cell, gold_text
from rlkit.interfaces.rewards import RewardResult, Sample

F = TypeVar("F", bound=Callable[..., Any])
_SHOWN = 300


def _whole(source: str) -> str:
    return str(Path(source).resolve()) if modules.is_file(source) else source


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError("the lowest must be below the highest")
    return ends


Source = Annotated[str, AfterValidator(_whole)]
"""A Python file, by its whole path, since other processes may work elsewhere; or a module."""
Range = Annotated[tuple[float, float], AfterValidator(_rising)]


class _Declared(Protocol):
    range: tuple[float, float]
    in_process: bool


def named_in(path: str, name: str, what: str) -> Any:
    """What a user's file or module holds under a name. `what` it is opens messages. Raises ConfigError where there is
    no such, or it fails to import."""
    try:
        module = modules.load(path, what)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} {path} failed to import:\n{traceback.format_exc()}") from error
    if not hasattr(module, name):
        there = [n for n, v in vars(module).items() if callable(v) and module_of(v) == module.__name__]
        raise ConfigError(f"{what} {path} has no {name!r}{nearest(name, there)}")
    return getattr(module, name)


def declares(low: float, high: float, *, in_process: bool = False) -> Callable[[F], F]:
    """Decorator: declare a reward's range; and, where it takes linear time at any input, that it needs no worker."""

    def declare(function: F) -> F:
        declared = cast(_Declared, function)
        declared.range, declared.in_process = (low, high), in_process
        return function

    return declare


def any_gold(judge: Callable[[Sample], RewardResult], sample: Sample) -> RewardResult:
    """What `judge` says of a sample. Where its gold is a list, of the gold that suits the response best: any of them is
    right. A gold that is a dict, or a list of several lists, is `bad_gold`: nobody knows which of its texts is meant.
    """
    golds = [each for each in map(gold_cell, _flat(sample.gold)) if each is not None]
    if any(isinstance(each, list | tuple | Mapping) for each in golds):
        return bad_gold(
            "the gold is structured, and this verifier compares with text, a number, or any of a list of them: name "
            "the part that it means by data.answer, as in data.answer=answer.target"
        )
    if len(golds) < 2:
        return judge(sample)
    results = [judge(replace(sample, answer=gold_text(each, "a gold"), gold=each)) for each in golds]
    right = [result for result in results if result.value]
    # One that could not be judged may be the right one: without it nobody knows that the sample is wrong.
    unknown = [result for result in results if result.value is None and result.status != "bad_gold"]
    judged = [result for result in results if result.value is not None]
    return (right or unknown or judged or results)[0]


def _flat(gold: Any) -> list[Any]:
    while isinstance(gold, list | tuple) and len(gold) == 1:
        gold = gold[0]
    return list(gold) if isinstance(gold, list | tuple) else [gold]


def verdict(right: bool, answer: str) -> RewardResult:
    return RewardResult(value=float(right), info={"answer": answer[:_SHOWN]})


def no_answer() -> RewardResult:
    return RewardResult(value=0.0, status="no_answer")


def bad_gold(why: str = "") -> RewardResult:
    return RewardResult(value=None, status="bad_gold", info={"error": why} if why else {})
