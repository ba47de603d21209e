"""What pydantic finds wrong with settings, in sentences."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from rlkit.errors import SettingsError, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

SPELLING = 0.85
"""Likeness past which a key is a misspelt one of its own section."""

Instead = Callable[[str], Sequence[str]]
"""The keys that a word which is none may have been meant for."""


def nothing_else(word: str) -> Sequence[str]:
    """An Instead that knows of none."""
    return ()


def explain(
    error: ValidationError, model: type[BaseModel], where: str = "", instead: Instead = nothing_else
) -> SettingsError:
    """One sentence for each mistake: the key, where it stands, and what to do."""
    mistakes = []
    for item in error.errors():
        inside, path = _walked(model, item["loc"])
        path = [where, *path] if where else path
        mistakes.append((path, _said(item, path, inside, instead)))
    return SettingsError(mistakes)


def _unknown(path: Sequence[str], value: Any, known: Sequence[str], instead: Instead) -> str:
    """A misspelt key has its like in its own section; another project's is called otherwise, and stands elsewhere."""
    if not difflib.get_close_matches(path[-1], known, n=1, cutoff=SPELLING):
        within = {".".join(leaf): _meant(leaf, instead) for leaf in _leaves(path, value)}
        if found := [f"{leaf} is {_either(keys)}" for leaf, keys in within.items() if keys]:
            return f"; here {', '.join(found[:3])}"
        if found := _meant(path, instead):
            return f"; the key is {found[0]}" if len(found) == 1 else f"; it may be {_either(found)}"
    return nearest(path[-1], known)


def _meant(path: Sequence[str], instead: Instead) -> list[str]:
    return [key for key in instead(path[-1].replace("-", "_")) if key != ".".join(path)][:3]


def _either(keys: Sequence[str]) -> str:
    return " or ".join(keys)


def _leaves(path: Sequence[str], value: Any) -> Iterator[list[str]]:
    """The keys within a section, at any depth."""
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        yield [*path, str(key)]
        yield from _leaves([*path, str(key)], inner)


def _said(item: ErrorDetails, path: list[str], inside: type[BaseModel] | None, instead: Instead) -> str:
    key = ".".join(path)
    match item["type"]:
        case "extra_forbidden":
            known = list(inside.model_fields) if inside else []
            place = f"in {'.'.join(path[:-1])!r}" if path[:-1] else "at the top level"
            return f"unknown key {path[-1]!r} {place}{_unknown(path, item['input'], known, instead)}"
        case "missing" if path[-1] == "kind":
            return f"{key!r} is missing: name the plugin whose options these are"
        case "union_tag_invalid":
            tags = [tag.strip(" '") for tag in item["ctx"]["expected_tags"].split(",")]
            tag = item["ctx"]["tag"]
            return f"{key!r}: there is no {tag!r}{nearest(tag, tags)}"
        case "missing":
            return f"{key!r} is missing: it has no default"
        case "value_error":
            prefix = f"{key!r}: " if path else ""
            return prefix + str(item["ctx"]["error"])
        case "model_type" | "model_attributes_type":
            return f"{key!r}: should hold keys and values of its own (got {item['input']!r})"
        case "list_type":
            return f"{key!r}: should be a list, as in -s '{key}=[a, b]' (got {item['input']!r})"
        case "string_type":
            return (
                f"{key!r}: should be text (got {item['input']!r}). If YAML has made that of a text, put quotes around "
                f"it, which the shell must leave there, as in -s '{key}=\"no\"'"
            )
    said = item["msg"][0].lower() + item["msg"][1:]
    return f"{key!r}: {said} (got {item['input']!r})"


def _walked(model: type[BaseModel] | None, location: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """The model that holds the last part of an error's location, and the location as a user writes it: pydantic puts
    the kind of a section that has several into it."""
    path: list[str] = []
    among: list[type[BaseModel]] = []
    for at, part in enumerate(location):
        tagged = [each for each in among if "kind" in each.model_fields and each.model_fields["kind"].default == part]
        if tagged and (model is None or part not in model.model_fields):
            model, among = tagged[0], []
            continue
        path.append(str(part))
        if isinstance(part, int) or model is None or at == len(location) - 1:
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        among = [each for each in _members(annotation) if inspect.isclass(each) and issubclass(each, BaseModel)]
        model = among[0] if among else None
    return model, path


def _members(annotation: Any) -> Iterator[Any]:
    """The annotation and all that its unions, lists and Annotated are made of."""
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _members(inner)
