"""What a person asks to have checked: files, modules and names, and the options of each plugin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkit import modules, registry
from rlkit.config.reading import set_key
from rlkit.conformance.rewards import elsewhere
from rlkit.errors import ConfigError, nearest
from rlkit.registry import KINDS, Plugin


def plugins_of(asked: Sequence[str]) -> list[Plugin]:
    """The plugins that are meant: all of a file or a module, or one of a registered name, `grpo` or `rewards/math`.

    Raises ConfigError for what is none of these, for a file that registers nothing, and for a name that several kinds
    have.
    """
    found: list[Plugin] = []
    registry.load([text for text in asked if text.endswith(".py")])  # whatever is named may be theirs
    for text in asked:
        for plugin in _meant(text):
            if plugin not in found:
                found.append(plugin)
    return found


def _meant(text: str) -> list[Plugin]:
    kind, slash, name = text.partition("/")
    if slash and kind in KINDS and not text.endswith(".py"):
        return [registry.find(kind, name)]
    if not modules.is_file(text):
        kinds = [kind for kind in KINDS if text in registry.names(kind)]
        if len(kinds) > 1:
            raise ConfigError(f"{text!r} is of several kinds: say {' or '.join(f'{kind}/{text}' for kind in kinds)}")
        if kinds:
            return [registry.find(kinds[0], text)]
    try:
        registry.load([text])
    except ConfigError as error:
        known = [name for kind in KINDS for name in registry.names(kind)]
        if "does not exist" not in str(error) or modules.is_file(text):
            raise
        raise ConfigError(
            f"{text!r} is no registered plugin{nearest(text, known)}; nor a file or a module: {error}"
        ) from error
    if not (plugins := registry.of(text)):
        raise ConfigError(
            f"{text} registers no plugin: put a decorator over the function or class, as in @rlkit.reward('mine')"
        )
    return plugins


def options_of(plugins: Sequence[Plugin], overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Each plugin's options. OPTION=VALUE is of the only plugin, NAME.OPTION=VALUE of the one of that name.

    Raises ConfigError for what is neither, and for options that cannot be.
    """
    options: list[dict[str, Any]] = [{} for _ in plugins]
    for override in overrides:
        first, dot, rest = override.partition("=")[0].partition(".")
        mine = [at for at, plugin in enumerate(plugins) if dot and plugin.name == first and rest]
        if mine:
            for at in mine:
                set_key(options[at], override.partition(".")[2])
        elif len(plugins) == 1:
            set_key(options[0], override)
        else:
            names = " or ".join(f"{plugin.name}.OPTION=VALUE" for plugin in plugins[:3])
            raise ConfigError(f"-s {override}: say whose option it is, as in -s {names}")
    for plugin, chosen in zip(plugins, options, strict=True):
        if plugin.kind == "rewards" and elsewhere(plugin, chosen):
            continue
        try:
            registry.validate_options(plugin, chosen, "")
        except ConfigError as error:
            how = "OPTION=VALUE" if len(plugins) == 1 else f"{plugin.name}.OPTION=VALUE"
            raise ConfigError(f"{plugin.noun} {plugin.name!r}: {error}. Options are given with -s {how}") from error
    return options
