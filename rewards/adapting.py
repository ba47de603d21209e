"""What adapters of other projects' environments share: the row as those have it, and what they return, checked."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from rlkit.blame import shown
from rlkit.errors import RlkitError
from rlkit.interfaces.environments import Task
from rlkit.scoring.checks import plain

SEEDS = 2**31
"""Seeds are given below this: numpy's older generator, which many environments have, takes none above 2**32."""


class Record(dict[str, Any]):
    """A dict whose keys are attributes too, as in the projects' own configs and messages."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def row_of(task: Task) -> dict[str, Any]:
    """The row as other projects have it: its columns, with the question as `prompt` and the gold as `answer`."""
    return {"prompt": task.question, "answer": task.answer if task.gold is None else task.gold, **task.columns}


def chat_of(task: Task) -> list[dict[str, Any]]:
    """The row's own chat messages, copies; a question as the user's."""
    if isinstance(task.question, list):
        return [dict(message) for message in task.question]
    return [{"role": "user", "content": "" if task.question is None else str(task.question)}]


def taken(function: Callable[..., Any], given: Mapping[str, Any], always: Container[str] = ()) -> dict[str, Any]:
    """Of what is given, the keywords that the function names, or all where it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return dict(given)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(given)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in given.items() if name in named or name in always}


async def settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def text_of(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RlkitError(f"{where} gave the observation {shown(value)}: it must be text, which the model reads")
    return str(value)


def flag(value: object, what: str) -> bool:
    value = plain(value)
    if not isinstance(value, bool):
        raise RlkitError(f"{what} is {shown(value)}: it must be True or False")
    return value


def number(value: object, what: str) -> float | None:
    value = plain(value)
    if value is None:
        return None
    if not isinstance(value, numbers.Real):
        raise RlkitError(f"{what} is {shown(value)}: it must be a number")
    return float(value)


def numbers_of(values: object, where: str) -> dict[str, float]:
    """The numbers among them."""
    if not isinstance(values, Mapping):
        raise RlkitError(f"{where} are {shown(values)}: they must be a dict")
    return {str(name): float(v) for name, value in values.items() if isinstance(v := plain(value), numbers.Real)}


def info_of(value: object, where: str) -> dict[str, Any]:
    """As plain data, whatever it holds."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RlkitError(f"{where} gave the info {shown(value)}: it must be a dict")
    return {str(key): _kept(each) for key, each in value.items()}


def _kept(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, Mapping):
        return {str(key): _kept(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_kept(each) for each in value]
    return value if value is None or isinstance(value, str | bool | int | float) else shown(value)


def listed(value: Any, where: str) -> list[Any]:
    """Messages as they came; text as one of the user."""
    if isinstance(value, str):
        return [Record(role="user", content=value)]
    if not isinstance(value, list):
        raise RlkitError(f"{where} returned {shown(value)}: it must return a list of chat messages")
    return [Record(each) if isinstance(each, dict) else each for each in value]


def messages_of(value: Any, where: str) -> list[dict[str, Any]]:
    """Chat messages as plain dicts."""
    return [_message(each, where) for each in listed(value, where)]


def _message(value: Any, where: str) -> dict[str, Any]:
    found = value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value
    if not isinstance(found, dict) or not {"role", "content"} <= found.keys():
        raise RlkitError(f"{where} gave the message {shown(value)}: it must have a role and content")
    return {str(key): _kept(each) for key, each in found.items()}


def further(before: Sequence[Any], after: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """What comes behind `before`; RlkitError where that is not how `after` begins."""
    asked, told = messages_of(list(before), where), messages_of(list(after), where)
    if told[: len(asked)] != asked:
        raise RlkitError(
            f"{where} has changed what was said before: in rlkit a conversation only grows, and begins with the data's "
            "prompt (data.prompt, data.system)"
        )
    return told[len(asked) :]
