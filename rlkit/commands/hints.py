"""What an unknown option may have been meant for: a key of the config."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import click
from pydantic import BaseModel

from rlkit.config.keys import SHORT, keys
from rlkit.config.meant import MEANT, named


class SettingsCommand(click.Command):
    """A command whose `-s` sets keys: an unknown option is answered with the key that it may be.

    model: gives the pydantic model of the keys.
    """

    def __init__(self, *args: Any, model: Callable[[], type[BaseModel]], **more: Any) -> None:
        super().__init__(*args, **more)
        self._model = model

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if not error.option_name.startswith("--"):
                raise
            options = [option for each in self.params for option in each.opts]
            if not (said := hint(error.option_name, options, self._model())):
                raise
            raise click.UsageError(f"no such option {error.option_name}; {said}", ctx) from error


def hint(option: str, options: list[str], model: type[BaseModel]) -> str:
    """What to write in place of an option that there is not; "" where nothing is like it."""
    word = option.removeprefix("--").replace("-", "_")
    if f"-{word}" in options:
        return f"did you mean -{word}?"
    known = {key.name for key in keys(model)}
    found = named(word, known)
    if not found:
        near = difflib.get_close_matches(option, options, n=1, cutoff=0.8)
        if near:
            return f"did you mean {near[0]}?"
        words = [*MEANT, *known, *(key.rpartition(".")[2] for key in known)]
        for each in difflib.get_close_matches(word, words, n=1, cutoff=0.75):
            found = named(each, known)
    if not found:
        return ""
    if len(found) == 1:
        return f"the key is {found[0]}: " + ", or ".join(_ways(found[0], options))
    return "it may be " + ", or ".join(_ways(key, options)[0] for key in found[:4])


def _ways(key: str, options: list[str]) -> list[str]:
    """How the key is set on the command line, shortest first."""
    short = next((f"--{name}" for name, full in SHORT.items() if full == key), f"--{key.replace('_', '-')}")
    return [short] * (short in options) + [f"-s {key}=..."]
