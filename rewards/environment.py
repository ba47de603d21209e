"""An environment that was written for another project, used as it is."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlkit import environment
from rlkit.blame import shown
from rlkit.errors import ConfigError
from rlkit.interfaces.environments import Observation, Task

from .adapting import taken
from .common import Range, Source, named_in
from .environment_openenv import OpenEnv, session_url
from .environment_styles import STYLES, SkyRL, Style, calls, guess, misfit
from .styles import signature_of
from .tool_calls import Format


class ClassConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    path: Source | None = None
    """A Python file, or a module that can be imported or lies in the working directory."""
    name: str | None = None
    """The class in it, or a function that makes the environment."""
    style: Literal["trl", "skyrl", "verifiers", "gym", "textarena", "openenv"] | None = None
    """The project whose way of calling it follows; None: as its methods tell."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments that it is made with."""
    format: Format = "hermes"
    """Styles trl and verifiers: how the model writes calls of tools: hermes, qwen, json or python."""
    range: Range | None = None
    """Lowest and highest sum of a trajectory's rewards; None: the class's own attribute `range`, where it has one."""
    url: str | None = None
    """Style openenv: the server, in place of path and name."""
    api_key_env: str | None = None
    """Style openenv: environment variable that holds the server's key; None: it wants none."""
    action: str | None = "message"
    """Style openenv: the field of the server's action that gets the model's turn; None: the turn itself is the action,
    a JSON object."""
    observation: str | None = Field(default=None, min_length=1)
    """Style openenv: the field of its observation that the model reads, with dots into what it holds; None: all of it,
    as JSON."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.style == "openenv":
            if self.url is None or self.path is not None or self.name is not None:
                raise ValueError("style openenv asks a server: give url, and neither path nor name")
            if self.kwargs:
                raise ValueError("style openenv takes no kwargs: the server makes the environment")
            session_url(self.url)
        elif self.url is not None:
            raise ValueError("url: the server of style openenv; set style: openenv")
        elif self.path is None or self.name is None:
            raise ValueError("give path and name, as in my_env.py:MyEnv; or, in style openenv, url")
        elif given := [key for key in ("api_key_env", "action", "observation") if self._changed(key)]:
            raise ValueError(f"{given[0]}: for style openenv, whose server url names")
        if self._changed("format") and self.style not in (None, "trl", "verifiers"):
            raise ValueError(f"format is for the tools of styles trl and verifiers; {self.style} reads text")
        return self

    def _changed(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


@environment("class")
class Adapted:
    """Your own environment, as written for TRL, SkyRL, verifiers, Gymnasium or TextArena, or an OpenEnv server's.

    Raises ConfigError where the class is not there or has not the methods of the style, with the style that would fit;
    RlkitError for what it returns and its project does not.
    """

    def __init__(self, config: ClassConfig) -> None:
        self.range = config.range
        if config.url is not None:
            self._adapted: Style = OpenEnv(config.url, config.api_key_env, config.action, config.observation)
        else:
            assert config.path is not None
            assert config.name is not None
            found = _find(config.path, config.name)
            self._adapted, thing = _adapted(found, f"{Path(config.path).name}:{config.name}", config)
            self.range = config.range or getattr(thing, "range", None) or getattr(self._adapted, "range", None)
        self.tools = self._adapted.tools
        self.cut = getattr(self._adapted, "cut", None)

    def start(self, task: Task, seed: int) -> Observation:
        return self._adapted.start(task, seed)

    def step(self, action: str) -> Observation:
        return self._adapted.step(action)


def _adapted(found: Callable[..., Any], name: str, config: ClassConfig) -> tuple[Style, Any]:
    """The environment in its style, and the object itself, or what makes one of each row."""
    if inspect.isclass(found):
        style = _style(found, name, config.style)
        thing = None if style == "skyrl" else _made(found, name, config.kwargs)
    elif config.style == "skyrl":  # which makes each of a row
        style, thing = "skyrl", None
    else:
        thing = _made(found, name, config.kwargs)
        style = _style(thing, name, config.style)
    if style == "skyrl":
        of_a_row = taken(found, {"env_config": {}, "extras": {}, **config.kwargs}, config.kwargs)
        _can_be_made(found, name, of_a_row)
        return SkyRL(found, name, config.kwargs), found
    with_tools = {"form": config.format} if style in ("trl", "verifiers") else {}
    try:
        return STYLES[style](thing, name, **with_tools), thing
    except ConfigError as error:
        if (fits := guess(thing)) not in (style, None):
            raise ConfigError(f"{error}. Or set style: {fits}, whose methods it has") from error
        raise


def _style(thing: object, name: str, given: str | None) -> str:
    style = given or guess(thing)
    if style is not None and (why := misfit(thing, style)) is None:
        return style
    if callable(getattr(thing, "start", None)) and callable(getattr(thing, "step", None)):
        why = (
            "start and step are those of an environment of rlkit's own: decorate it with @rlkit.environment(NAME), "
            "name its file in plugins, and set environment: NAME"
        )
    elif style is None:
        known = "; ".join(f"{each} has {calls(each)}" for each in STYLES)
        why = f"its methods are those of no style: {known}"
    raise ConfigError(f"environment {name} does not fit: {why}")


def _made(found: Callable[..., Any], name: str, kwargs: dict[str, Any]) -> Any:
    _can_be_made(found, name, kwargs)
    # Some libraries' environments handle interrupts themselves, which here is the run's to do.
    kept = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        return found(**kwargs)
    finally:
        for each, handler in kept.items():
            if signal.getsignal(each) is not handler and handler is not None:
                signal.signal(each, handler)


def _can_be_made(found: Callable[..., Any], name: str, given: dict[str, Any]) -> None:
    signature = signature_of(found)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ConfigError(f"environment {name}{signature} cannot be made of kwargs ({error}): set them anew") from error


def _find(path: str, name: str) -> Callable[..., Any]:
    found = named_in(path, name, "environment:")
    if not callable(found):
        raise ConfigError(
            f"environment: {path}:{name} is {shown(found)}; name a class, or a function that makes the environment"
        )
    return found  # type: ignore[no-any-return]
