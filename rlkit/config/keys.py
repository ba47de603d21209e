"""The keys of a config, as a person writes them: what each is called, takes and means. Needs no torch."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlkit import registry
from rlkit.config.sections import PluginRef

SHORT = {
    "model": "model.path",
    "data": "data.path",
    "reward": "reward",
    "steps": "steps",
    "lr": "optimizer.lr",
    "batch": "batch.prompts_per_step",
}
"""Short name -> key: options of the commands that take settings, arguments in Python, keys of sweeps."""

PLUGINS: dict[str, registry.Kind] = {
    "algo": "algorithms",
    "advantage": "advantages",
    "loss": "losses",
    "environment": "environments",
    "reward": "rewards",
    "noise": "noise",
    "sampler": "samplers",
    "trackers": "trackers",
}
"""Keys whose values are plugins -> their kind."""
LISTS = ("noise", "trackers")
"""Those of them that hold a list."""


def full_name(key: str, value: Any) -> str:
    """The key that a short name stands for, with this value. A section that is given whole keeps its name."""
    values = value if isinstance(value, list) else [value]
    return key if any(isinstance(each, Mapping) for each in values) else SHORT.get(key, key)


def one_key(section: str) -> str | None:
    """The key of a section that a plain value in the section's place stands for: `model: embedded:s` is its path."""
    name, _, key = SHORT.get(section, "").partition(".")
    return key if name == section and key else None


@dataclass(frozen=True)
class Key:
    name: str
    """With dots for sections: `optimizer.lr`."""
    type: str
    """In words; what is written as it stands is in backticks."""
    default: str | None
    """As YAML; None: it must be given."""
    bounds: str
    """`0 or more, below 1`; empty: none."""
    meaning: str
    """In one line."""
    choices: tuple[str, ...]
    """The words that it takes, where it takes words."""


def keys(model: type[BaseModel], prefix: str = "", defaults: BaseModel | None = None) -> Iterator[Key]:
    """Every key of a section, sections within it included; what `prefix` says stands before each.

    defaults: the section's default where it differs from its class's own.
    """
    for name, field in model.model_fields.items():
        default = getattr(defaults, name) if defaults else field.get_default(call_default_factory=True)
        sections = [part for part in _parts(field.annotation) if _is_section(part)]
        if len(sections) > 1:
            yield _key(prefix + name, field, as_yaml(default))
            for kind in sections:
                yield from _of_a_kind(kind, f"{prefix}{name}.")
            continue
        section = next(iter(sections), None)
        if section is None or not isinstance(default, BaseModel):
            required = field.is_required() and defaults is None
            if section is None or not required:
                yield _key(prefix + name, field, None if required else as_yaml(default))
        if section is not None:
            yield from keys(section, f"{prefix}{name}.", default if isinstance(default, BaseModel) else None)


def _of_a_kind(section: type[BaseModel], prefix: str) -> Iterator[Key]:
    """Of a section that is one of several: what its keys are for is said first."""
    kind = section.model_fields["kind"].default
    for name, field in section.model_fields.items():
        if name != "kind":
            default = None if field.is_required() else as_yaml(field.default)
            yield _key(prefix + name, field, default, f"{kind}: {field.description}")


def _key(name: str, field: FieldInfo, default: str | None, meaning: str | None = None) -> Key:
    said = " ".join((meaning or field.description or "").split()).replace("None", "`null`")
    choices = [
        member
        for part in _parts(field.annotation)
        if typing.get_origin(part) is Literal
        for member in typing.get_args(part)
    ]
    return Key(name, _type(field.annotation), default, _bounds(field), said, tuple(map(str, choices)))


def as_yaml(value: Any) -> str:
    """As one would write it in a config, in one line."""
    if isinstance(value, PluginRef):
        value = value.kind
    if isinstance(value, float):
        return f"{value:g}"
    plain = list(value) if isinstance(value, tuple) else value
    if not isinstance(plain, (bool, int, list, dict, types.NoneType)):
        plain = str(plain)
    text: str = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.strip().removesuffix("...").strip()


def _type(annotation: Any) -> str:
    parts = _parts(annotation)
    names = dict.fromkeys(_name(part) for part in parts if part is not types.NoneType)
    return ", ".join(names) + (" or null" if types.NoneType in parts else "")


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
    name: str = getattr(part, "__name__", str(part))
    return {"str": "text", "Path": "path", "PluginRef": "plugin", "dict": "mapping", "Any": "anything"}.get(name, name)


def _is_section(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel) and part is not PluginRef


_LIMITS: dict[type, tuple[str, str]] = {
    annotated_types.Ge: ("ge", "{} or more"),
    annotated_types.Gt: ("gt", "above {}"),
    annotated_types.Le: ("le", "{} or less"),
    annotated_types.Lt: ("lt", "below {}"),
    annotated_types.MinLen: ("min_length", "at least {} of them"),
    annotated_types.MaxLen: ("max_length", "at most {} of them"),
}


def _bounds(field: FieldInfo) -> str:
    said = []
    for limit in [*field.metadata, *_metadata(field.annotation)]:
        if type(limit) in _LIMITS:
            attribute, words = _LIMITS[type(limit)]
            said.append(words.format(getattr(limit, attribute)))
    return ", ".join(dict.fromkeys(said))


def _metadata(annotation: Any) -> Iterator[Any]:
    """What Annotated says within the annotation: of `Annotated[float, Field(gt=0)] | None`, the bound."""
    if typing.get_origin(annotation) is typing.Annotated:
        for each in typing.get_args(annotation)[1:]:
            yield from each.metadata if isinstance(each, FieldInfo) else [each]
    for member in typing.get_args(annotation):
        if not isinstance(member, str):
            yield from _metadata(member)
