"""The JSON schema of a config, with the options of every plugin that is registered: an editor completes by it."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from rlkit import registry
from rlkit.config.keys import LISTS, PLUGINS, SHORT, one_key
from rlkit.config.run import RunConfig
from rlkit.config.sections import RewardRef

Schema = dict[str, Any]


def schema() -> Schema:
    """For a YAML file as `rlkit run` takes it. A plugin that does not import may have any options."""
    whole = RunConfig.model_json_schema()
    shared: Schema = whole["$defs"]
    for field, kind in PLUGINS.items():
        shared[kind] = _one_of(kind, shared)
        one: Schema = {"$ref": f"#/$defs/{kind}"}
        listed = {"type": "array", "items": one}
        said = {key: value for key, value in whole["properties"][field].items() if key in ("description", "default")}
        if field == "reward":
            taken: Schema = {"anyOf": [one, listed]}
        elif field in LISTS:
            taken = listed
        else:
            taken = {"anyOf": [one, {"type": "null"}]} if whole["properties"][field].get("default", "") is None else one
        whole["properties"][field] = {**said, **taken}
    for section in SHORT:
        if key := one_key(section):
            whole_section = whole["properties"][section].pop("$ref")
            plain = shared[whole_section.rpartition("/")[2]]["properties"][key]
            whole["properties"][section]["anyOf"] = [{"$ref": whole_section}, plain]
    for unused in ("PluginRef", "RewardRef"):
        shared.pop(unused, None)
    # Only an environment gives rewards where none is named.
    whole["anyOf"] = [{"required": ["environment"]}, {"properties": {"reward": {"not": {"const": []}}}}]
    whole["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return whole


_IN_A_FILE: dict[registry.Kind, tuple[str, str]] = {
    "rewards": ("function", "FILE.py:FUNCTION"),
    "environments": ("class", "FILE.py:CLASS"),
}
"""The plugin that a thing in a file is short for, and how it is written."""


def _one_of(kind: registry.Kind, shared: Schema) -> Schema:
    """A plugin of a kind: its name, or a section that the name, as `kind`, tells apart from the others."""
    plugins = dict(registry.all_plugins(kind))
    names: list[Schema] = [{"const": name, **_described(plugin)} for name, plugin in plugins.items()]
    sections = [_section(kind, name, plugin, shared) for name, plugin in plugins.items()]
    if kind == "samplers":
        names.append({"const": "auto"})
        sections.append({"type": "object", "properties": {"kind": {"const": "auto"}}, "additionalProperties": False})
    if kind in _IN_A_FILE:
        stands_for, form = _IN_A_FILE[kind]
        in_a_file = {"type": "string", "pattern": r"\.py:\w+$", "description": form}
        names.append(in_a_file)
        options = shared[f"{kind}.{stands_for}"]["properties"]
        sections.append(_closed({**options, "kind": in_a_file}, ["kind"]))
    return {"anyOf": [*names, *sections] or [False]}  # none may be empty


def _section(kind: registry.Kind, name: str, plugin: registry.Plugin | Exception, shared: Schema) -> Schema:
    """`kind` and the plugin's options, with what they share put among the definitions."""
    here = f"{kind}.{name}"
    fixed: Schema = {"kind": {"const": name, **_described(plugin)}}
    if kind == "rewards":
        fixed["weight"] = RewardRef.model_json_schema()["properties"]["weight"]
    try:
        model: type[BaseModel] | None = None if isinstance(plugin, Exception) else plugin.options
        options = model.model_json_schema(ref_template=f"#/$defs/{here}.{{model}}") if model else None
    except PydanticInvalidForJsonSchema:  # a type that only Python has
        options = None
    if options is None:
        shared[here] = {"type": "object", "properties": fixed, "required": ["kind"]}
    else:
        shared |= {f"{here}.{inner}": each for inner, each in options.get("$defs", {}).items()}
        closed = options.get("additionalProperties") is False
        required = ["kind", *options.get("required", [])]
        shared[here] = _closed({**fixed, **options.get("properties", {})}, required, closed)
    return {"$ref": f"#/$defs/{here}"}


def _closed(properties: Schema, required: list[str], closed: bool = True) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        **({"additionalProperties": False} if closed else {}),
    }


def _described(plugin: registry.Plugin | Exception) -> Schema:
    said = "" if isinstance(plugin, Exception) else re.sub(r"\s+", " ", plugin.summary)
    return {"description": said} if said else {}
