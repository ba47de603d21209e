"""Print the tables of settings in docs/, as Markdown, from the pydantic models that define them.

    python tools/config_table.py                   every field of a run's config (docs/configuration.md)
    python tools/config_table.py algorithms vimpo  the options of a plugin (docs/algorithms.md)

`tests/unit/test_docs.py` holds the pages against it.
"""

from __future__ import annotations

import copy
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlkit import registry
from rlkit.config import PluginRef, RunConfig

HEAD = "| key | type | default | what it is |\n|---|---|---|---|"


def config_table(bounds: bool = False) -> str:
    """Every field of RunConfig; sections with dots. `bounds`: behind the type, what a value may be."""
    return "\n".join([HEAD, *_rows(RunConfig, bounds=bounds)])


def options_table(kind: registry.Kind, name: str, bounds: bool = False) -> str:
    """The options of a plugin."""
    return "\n".join([HEAD, *_rows(registry.find(kind, name).options, bounds=bounds)])


def _rows(
    model: type[BaseModel], prefix: str = "", defaults: BaseModel | None = None, *, bounds: bool
) -> Iterator[str]:
    """`defaults`: a section's default where it differs from its class's own."""
    for name, field in model.model_fields.items():
        default = getattr(defaults, name) if defaults else field.get_default(call_default_factory=True)
        sections = [part for part in _parts(field.annotation) if _is_section(part)]
        if len(sections) > 1:
            yield _row(prefix + name, field, _yaml(default), bounds)
            for kind in sections:
                yield from _rows_of_a_kind(kind, f"{prefix}{name}.", bounds)
            continue
        section = next(iter(sections), None)
        if section is None or not isinstance(default, BaseModel):
            required = field.is_required() and defaults is None
            if section is None or not required:
                yield _row(prefix + name, field, None if required else _yaml(default), bounds)
        if section is not None:
            inner = default if isinstance(default, BaseModel) else None
            yield from _rows(section, f"{prefix}{name}.", inner, bounds=bounds)


def _rows_of_a_kind(section: type[BaseModel], prefix: str, bounds: bool) -> Iterator[str]:
    """Of a section that is one of several: what its rows are for is said first."""
    kind = section.model_fields["kind"].default
    for name, field in section.model_fields.items():
        if name != "kind":
            said = copy.copy(field)
            said.description = f"{kind}: {field.description}"
            yield _row(prefix + name, said, None if field.is_required() else _yaml(field.default), bounds)


def _row(key: str, field: FieldInfo, default: str | None, bounds: bool) -> str:
    said = " ".join((field.description or "").split()).replace("None", "`null`").replace("|", r"\|")
    kind = ", ".join([_type(field.annotation), *(_bounds(field) if bounds else ())])
    cells = [f"`{key}`", kind, f"`{default}`" if default else "**required**", said]
    return "| " + " | ".join(cells) + " |"


def _yaml(value: Any) -> str:
    """As one would write it in a config."""
    if isinstance(value, PluginRef):
        value = value.kind
    if isinstance(value, float):
        return f"{value:g}"
    plain = list(value) if isinstance(value, tuple) else value
    if not isinstance(plain, (bool, int, list, dict, types.NoneType)):
        plain = str(plain)
    text: str = yaml.safe_dump(plain, default_flow_style=True)
    return text.strip().removesuffix("...").strip()


def _type(annotation: Any) -> str:
    parts = _parts(annotation)
    names = dict.fromkeys(_name(part) for part in parts if part is not types.NoneType)
    return ", ".join(names) + (" or null" if types.NoneType in parts else "")


def _bounds(field: FieldInfo) -> Iterator[str]:
    """What the field's numbers may be, and how long its lists; also where a union or a list holds the numbers."""
    said = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "min_length": "at least {} long"}
    for each in (*field.metadata, *_metadata(field.annotation)):
        for name, text in said.items():
            if (value := getattr(each, name, None)) is not None:
                yield text.format(f"{value:g}" if isinstance(value, float) else value)


def _metadata(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is typing.Annotated:
        yield from annotation.__metadata__
    for member in typing.get_args(annotation):
        if member not in (types.NoneType, ...) and not isinstance(member, str | int | float):
            yield from _metadata(member)


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, with what Annotated adds taken off; of anything else, itself."""
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _parts(members[0])
    if origin in (typing.Union, types.UnionType):
        return [part for member in members for part in _parts(member)]
    return [annotation]


def _name(part: Any) -> str:
    origin, members = typing.get_origin(part), typing.get_args(part)
    if origin is Literal:
        return ", ".join(f"`{member}`" for member in members)
    if origin in (list, tuple):
        return "list of " + _type(members[0])
    if _is_section(part):
        return "section"
    name: str = part.__name__
    return {"str": "text", "Path": "path", "PluginRef": "plugin", "dict": "mapping"}.get(name, name)


def _is_section(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel) and part is not PluginRef


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            print(config_table())
        case [kind, name] if kind in registry.KINDS:
            print(options_table(kind, name))
        case _:
            sys.exit(__doc__)
