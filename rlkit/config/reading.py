"""Settings out of presets, YAML files, plain data and the command line."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlkit import registry
from rlkit.config.sections import RunConfig, as_ref
from rlkit.errors import ConfigError, nearest


def presets() -> dict[str, str]:
    """Name -> YAML text of the configs that ship."""
    folder = importlib.resources.files("rlkit_configs")
    files = [f for f in folder.iterdir() if f.name.endswith(".yaml")]
    return {f.name.removesuffix(".yaml"): f.read_text() for f in sorted(files, key=lambda f: f.name)}


def load(
    source: str | Path | dict[str, Any],
    overrides: list[str] | None = None,
    algo: str | None = None,
) -> RunConfig:
    """Read a preset's name, a YAML file or plain data; then `algo`, then overrides of the form key=value.

    Raises ConfigError for what cannot be read, unknown keys, wrong types and settings that do not fit together.
    """
    if isinstance(source, dict):
        where, data = "", source
    else:
        text, where = _read(str(source))
        data = _parse(text, where)
    data = dict(data)
    if algo is not None:
        named = as_ref(data.get("algo"))
        if not (isinstance(named, dict) and named.get("kind") == algo):
            data["algo"] = {"kind": algo}
    # A plugin's kind comes first: it drops the options of the one before.
    for override in sorted(overrides or [], key=lambda o: not o.partition("=")[0].endswith(".kind")):
        set_key(data, override)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        said = registry.explain(error, RunConfig)
        raise ConfigError(f"{where}:\n{said}" if where else said) from error


def _read(source: str) -> tuple[str, str]:
    shipped = presets()
    if source in shipped:
        return shipped[source], f"preset {source}"
    path = Path(source)
    if not path.is_file():
        raise ConfigError(
            f"no config {source!r}: neither a file (looked in {Path.cwd()}) nor a preset{nearest(source, shipped)}"
        )
    return path.read_text(), str(path)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected keys and values, got {type(data).__name__}")
    return data


def set_key(data: dict[str, Any], override: str) -> None:
    """Set a key=value of the command line in plain data; dots go into sections. ConfigError for what is not one."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"-s {override}: expected key=value, as in -s optimizer.lr=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"-s {override}: the value is not YAML: {error}") from error
    *path, last = key.split(".")
    here = data
    for part in path:
        inner = here.get(part) or {}
        if isinstance(inner, list) and len(inner) == 1:
            here[part] = [dict(as_ref(inner[0]))]
            here = here[part][0]
            continue
        inner = as_ref(inner)
        if not isinstance(inner, dict):
            raise ConfigError(f"-s {override}: {part!r} is {inner!r} and has no keys")
        here[part] = dict(inner)
        here = here[part]
    if last == "kind" and here.get("kind") != value:
        here.clear()
    here[last] = value
