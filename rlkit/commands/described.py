"""Plugins and keys as text for the terminal: what they take, by default, within which bounds, and what it means."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from rlkit import config as configs
from rlkit import registry
from rlkit.config.keys import LISTS, PLUGINS, SHORT, Key, as_yaml, keys
from rlkit.config.meant import meant
from rlkit.config.run import RunConfig
from rlkit.config.sections import RewardRef, as_ref
from rlkit.errors import ConfigError, nearest
from rlkit.plugin import paragraphs

LONGEST_SHOWN = 60
"""Characters of a default that are shown; a judge's template has more."""


def plugin_page(plugin: registry.Plugin) -> str:
    """A plugin's page: what it does, its options, where it is written, and how a config names it."""
    options = list(keys(plugin.options))
    doc = paragraphs(plugin.doc, [key.name for key in options])
    source = ":".join(map(str, plugin.place)) if plugin.place else plugin.origin
    parts = [f"{plugin.name}  ({plugin.kind}, of {plugin.distribution})", *map(_filled, doc)]
    parts += ["options:" if options else "It has no options.", *map(option, options)]
    parts += [f"in YAML:\n{textwrap.indent(_example(plugin, options), '  ')}", f"written in {source}"]
    return "\n\n".join(parts)


def option(key: Key) -> str:
    """A key in two lines or more: how it is set, and what it means."""
    default = "required" if key.default is None else f"default {_cut(key.default)}"
    facts = "; ".join(filter(None, (key.type, key.bounds, default)))
    return _filled(f"{key.name}: {facts}", "  ") + (f"\n{_filled(key.meaning, '      ')}" if key.meaning else "")


def _example(plugin: registry.Plugin, options: list[Key]) -> str:
    values: dict[str, Any] = {"kind": plugin.name}
    for key in options:
        if "." not in key.name and key.default != "null" and len(key.default or "") <= LONGEST_SHOWN:
            values[key.name] = f"<{key.type}>" if key.default is None else yaml.safe_load(key.default)
    field = next((field for field, kind in PLUGINS.items() if kind == plugin.kind), None)
    if field is None:
        return _dumped({"eval": {"suites": [plugin.name]}})
    return _dumped({field: [values] if field in LISTS else values})


def _dumped(data: Any) -> str:
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10**9)
    return text.rstrip()


def key_page(name: str) -> str:
    """A key's page, or that of a section with all its keys. ConfigError for what is no key, naming the nearest."""
    known = {key.name: key for key in keys(RunConfig)}
    field, _, rest = name.partition(".")
    if field in PLUGINS and rest == "kind":
        name = field
    elif name == "reward.weight":
        return next(_page(key, name) for key in keys(RewardRef) if key.name == rest)
    elif field in PLUGINS and rest:
        return "\n\n".join(_of_plugins(field, rest))
    within = [key for key in known.values() if key.name.startswith(f"{name}.")]
    name = name if within else SHORT.get(name, name)
    if name not in known and not within:
        raise ConfigError(f"no preset and no key is called {name!r}{_instead(name, known)}")
    parts = [_page(known[name])] if name in known else []
    if name in PLUGINS:
        names = registry.names(PLUGINS[name])
        parts.append(_filled(f"One of: {', '.join(names)}. `rlkit list {PLUGINS[name]} NAME` shows all of one."))
    if within:
        parts += [f"keys of {name}:", *map(option, within)]
    return "\n\n".join(parts)


def _instead(name: str, known: Iterable[str]) -> str:
    if found := meant(name, {*known}):
        return f"; the key is {' or '.join(found)}"
    words = [*known, *configs.presets()]
    if difflib.get_close_matches(name, words, n=1):
        return nearest(name, words)
    return ": `rlkit config ls` lists the presets, `rlkit config validate` prints every key"


def _of_plugins(field: str, option_name: str) -> Iterator[str]:
    """The pages of an option, one for each way in which plugins have it."""
    kind = PLUGINS[field]
    alike: dict[Key, list[str]] = {}
    known = set()
    for name, plugin in registry.all_plugins(kind):
        options = [] if isinstance(plugin, Exception) else list(keys(plugin.options))
        known |= {key.name for key in options}
        for key in options:
            if key.name == option_name:
                alike.setdefault(key, []).append(name)
    if not alike:
        raise ConfigError(f"no key {option_name!r} in {field!r}: no plugin has it{nearest(option_name, known)}")
    for key, names in alike.items():
        yield _page(key, f"{field}.{option_name}", names)


def _page(key: Key, name: str | None = None, kinds: list[str] | None = None) -> str:
    """kinds: the plugins whose option it is; name: what it is called in a config."""
    name = name or key.name
    short = next((f"--{short}" for short, full in SHORT.items() if full == name), None)
    facts = {
        "of": ", ".join(kinds or ()),
        "type": key.type,
        "bounds": key.bounds,
        "default": "none: it must be given" if key.default is None else _cut(key.default),
        "presets": _among_presets(name, kinds),
        "set by": " or ".join(filter(None, (short and f"{short} V", f"-s {name}=V", "in YAML:"))),
    }
    lines = [_filled(f"{label:<9}{fact}", "  ", 11) for label, fact in facts.items() if fact]
    head = [name, *([_filled(key.meaning, "  ")] if key.meaning else [])]
    return "\n".join([*head, *lines, textwrap.indent(_block(key, name, kinds), " " * 13)])


def _block(key: Key, name: str, kinds: list[str] | None) -> str:
    """The key in YAML, within its sections, with its default where it has one."""
    *sections, last = name.split(".")
    shown = key.default not in (None, "null") and len(key.default or "") <= LONGEST_SHOWN
    block: Any = {last: yaml.safe_load(key.default or "") if shown else "V"}
    if kinds:
        block = {"kind": kinds[0], **block}
    for section in reversed(sections):
        block = {section: [block] if section in LISTS else block}
    return _dumped(block)


def _among_presets(name: str, kinds: list[str] | None) -> str:
    """`0.0004 in embedded; 1e-06 in gsm8k_qwen3, math_qwen3`."""
    found: dict[str, list[str]] = {}
    for preset, text in configs.presets().items():
        data = yaml.safe_load(text)
        field, _, rest = name.partition(".")
        if kinds and (as_ref(data.get(field)) or {}).get("kind") not in kinds:
            continue
        value = _at(data, [field, *rest.split(".")] if rest else [field])
        if value is not None:
            found.setdefault(_cut(as_yaml(value)), []).append(preset)
    return "; ".join(f"{value} in {', '.join(presets)}" for value, presets in found.items())


def _at(data: Any, path: Iterable[str]) -> Any:
    """What stands at a path of keys; None where nothing does."""
    for part in path:
        data = as_ref(data)
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _filled(text: str, indent: str = "", hanging: int | None = None) -> str:
    width = min(100, shutil.get_terminal_size().columns)
    further = indent if hanging is None else " " * hanging
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=further, break_on_hyphens=False)
