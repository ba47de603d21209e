"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from rlkit import config as configs

set_option = click.option(
    "-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set any field of the config."
)
plugins_option = click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Import a plugin first."
)


def settings_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a config out of a preset or a file."""

    @click.argument("config", default="embedded")
    @click.option("--algo", metavar="NAME", help="The algorithm; other options of the same one stay as they are.")
    @set_option
    @plugins_option
    @functools.wraps(f)
    def wrapped(
        config: str, algo: str | None, overrides: tuple[str, ...], plugins: tuple[str, ...], **rest: Any
    ) -> Any:
        return f(load(config, algo, overrides, plugins), **rest)

    return wrapped


def load(config: str, algo: str | None, overrides: tuple[str, ...], plugins: tuple[str, ...]) -> configs.RunConfig:
    loaded = configs.load(config, list(overrides), algo)
    return loaded.model_copy(update={"plugins": [*loaded.plugins, *(p for p in plugins if p not in loaded.plugins)]})
