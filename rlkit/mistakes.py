"""What pydantic finds wrong with settings, in sentences."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from rlkit.errors import SettingsError, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> SettingsError:
    """One sentence for each mistake: the key, where it stands, and what to do."""
    mistakes = []
    for item in error.errors():
        inside, path = _walked(model, item["loc"])
        path = [where, *path] if where else path
        mistakes.append((path, _said(item, path, inside)))
    return SettingsError(mistakes)


def _said(item: ErrorDetails, path: list[str], inside: type[BaseModel] | None) -> str:
    key = ".".join(path)
    match item["type"]:
        case "extra_forbidden":
            known = inside.model_fields if inside else {}
            place = f"in {'.'.join(path[:-1])!r}" if path[:-1] else "at the top level"
            return f"unknown key {path[-1]!r} {place}{nearest(path[-1], known)}"
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
