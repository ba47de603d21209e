"""What the small rewards share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from rlkit.interfaces.rewards import RewardResult

F = TypeVar("F", bound=Callable[..., Any])
_SHOWN = 300


class _Declared(Protocol):
    range: tuple[float, float]
    in_process: bool


def declares(low: float, high: float, *, in_process: bool = False) -> Callable[[F], F]:
    """Decorator: declare a reward's range; and, where it takes linear time at any input, that it needs no worker."""

    def declare(function: F) -> F:
        declared = cast(_Declared, function)
        declared.range, declared.in_process = (low, high), in_process
        return function

    return declare


def verdict(right: bool, answer: str) -> RewardResult:
    return RewardResult(value=float(right), info={"answer": answer[:_SHOWN]})


def no_answer() -> RewardResult:
    return RewardResult(value=0.0, status="no_answer")


def bad_gold(why: str = "") -> RewardResult:
    return RewardResult(value=None, status="bad_gold", info={"error": why} if why else {})
