"""What a chat template is told of a function that is a tool: from its type hints and its docstring.

In the form of `transformers.utils.get_json_schema`, which models have been trained on. Not that itself: it imports
torch, which an environment's process is spared, and says `object` of hints that no schema can say.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

from rlkit.errors import ConfigError, origin

_NAMES: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
}
_SAYABLE = "str, int, float, bool, list[...], dict[str, ...], tuple[...], Literal[...], or several of them with |"
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"(\w+)(?:\s*\([^)]*\))?:\s*(.*)")


class _UnsayableError(Exception):
    pass


def schema_of(function: Callable[..., Any], name: str = "") -> dict[str, Any]:
    """Its schema: {"type": "function", "function": {"name", "description", "parameters"}}, and "return" where the hint
    of what it returns can be said. Of a method, `self` is left out. `name`: by which it is called; "": its own.

    Raises ConfigError for a function that no model could be told of: without docstring or hints, or with hints that no
    schema can say; and for a generator.
    """
    name = name or getattr(function, "__name__", "")
    where = f"tool {name or str(function)[:60]!r}, {origin(function)}"
    if not name.isidentifier():
        raise ConfigError(f"{where}: the model calls a tool by its name, and this has none: write it as a `def`")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{where}: it is a generator, and the model reads what a tool returns: return it as a whole")
    description, told, returns = _read(inspect.getdoc(function) or "")
    if not description:
        raise ConfigError(
            f"{where}: it has no docstring, by which the model knows what the tool does: write one, with a line "
            f'"name: what it is" under "Args:" for each parameter'
        )
    hints = _hints(function, where)
    properties, required = dict[str, Any](), list[str]()
    for at, parameter in enumerate(inspect.signature(function).parameters.values()):
        of = f"{where}: its parameter {parameter.name!r}"
        if at == 0 and parameter.name in ("self", "cls") and parameter.annotation is parameter.empty:
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                f"{of} cannot be given by name, as a model gives them: write each parameter out, without * or /"
            )
        if parameter.name not in hints:
            raise ConfigError(
                f"{of} has no type hint, by which the model knows what to give: write it, as in `{parameter.name}: str`"
            )
        try:
            said = _schema(hints[parameter.name])
        except _UnsayableError as error:
            raise ConfigError(f"{of} has the hint {_shown(hints[parameter.name])}: {error}") from None
        if not told.get(parameter.name):
            raise ConfigError(
                f'{of} is not in the docstring: write a line "{parameter.name}: what it is" under "Args:"'
            )
        properties[parameter.name] = {**said, "description": told[parameter.name]}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    schema = {"name": name, "description": description, "parameters": parameters}
    # One that cannot be said is left out: what is returned is shown as text, whatever it is.
    with contextlib.suppress(KeyError, _UnsayableError):
        schema |= {"return": {**_schema(hints["return"]), **({"description": returns} if returns else {})}}
    return {"type": "function", "function": schema}


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise ConfigError(
            f"{where}: its type hints cannot be resolved: {error}. Import what they name at the top of the file, "
            "outside of `if TYPE_CHECKING`"
        ) from error


def _schema(hint: Any) -> dict[str, Any]:
    """Raises _UnsayableError."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is None:
        try:
            return dict(_NAMES[hint])
        except (KeyError, TypeError):
            raise _UnsayableError(f"no JSON schema can say that; write {_SAYABLE}") from None
    if kind in (Union, types.UnionType):
        said = [_schema(each) for each in inner if each is not type(None)]
        one = said[0] if len(said) == 1 else _any_of(said)
        return {**one, "nullable": True} if type(None) in inner else one
    if kind is Literal:
        if any(type(each) not in (int, str, bool, type(None)) for each in inner):
            raise _UnsayableError("a Literal of other than texts and numbers; write the texts")
        named = list(dict.fromkeys(_NAMES[type(each)]["type"] for each in inner))
        return {"type": named[0] if len(named) == 1 else named, "enum": list(inner)}
    if kind is list:
        return {"type": "array", "items": _schema(inner[0])}
    if kind is tuple:
        if ... in inner or len(inner) < 2:
            raise _UnsayableError("a tuple of any length; write list[...]")
        return {"type": "array", "prefixItems": [_schema(each) for each in inner]}
    if kind is dict:
        if inner[0] is not str:
            raise _UnsayableError("the keys of a JSON object are texts; write dict[str, ...]")
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    raise _UnsayableError(f"no JSON schema can say that; write {_SAYABLE}")


def _any_of(said: list[dict[str, Any]]) -> dict[str, Any]:
    if all(each.keys() == {"type"} and isinstance(each["type"], str) for each in said):
        named = sorted({each["type"] for each in said})
        return {"type": named[0] if len(named) == 1 else named}
    return {"anyOf": said}


def _read(doc: str) -> tuple[str, dict[str, str], str]:
    """Of a docstring in Google's style: the description, what is said of each argument, and of what is returned."""
    description, *rest = _SECTION.split(doc)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    told: dict[str, list[str]] = {}
    listed = next((sections[name] for name in ("Args", "Arguments", "Parameters") if name in sections), "")
    lines = [line for line in listed.splitlines() if line.strip()]
    first = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    for line in lines:
        begun = _ARGUMENT.match(line[first:])
        if begun:
            told[begun[1]] = [begun[2]]
        elif told:
            told[next(reversed(told))].append(line.strip())
    arguments = {name: " ".join(part for part in parts if part).strip() for name, parts in told.items()}
    return description.strip(), arguments, " ".join(sections.get("Returns", "").split())


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
