"""A plugin: what it is called, where it comes from, and which options it has."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, create_model

from rlkit.errors import ConfigError

Kind = Literal[
    "algorithms", "advantages", "losses", "rewards", "noise", "environments", "samplers", "trackers", "suites"
]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)


@dataclass(frozen=True)
class Plugin:
    kind: Kind
    name: str
    factory: Callable[..., Any]
    origin: str
    """module:name and file, for messages."""
    distribution: str
    """The installed package it comes from, with its version, or the file it was loaded from."""
    homes: tuple[str, ...]
    """What another process loads to have it too: modules, or the file it was loaded from."""

    @property
    def doc(self) -> str:
        """Its docstring."""
        return inspect.getdoc(whole(self.factory)) or ""

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.partition("\n")[0]

    @property
    def noun(self) -> str:
        """What one of its kind is called."""
        return singular(self.kind)

    @property
    def place(self) -> tuple[Path, int] | None:
        """The file in which it is written, and the line at which it begins there; None where no file holds it."""
        written: Any = inspect.unwrap(whole(self.factory))
        written = written if inspect.isroutine(written) or inspect.isclass(written) else type(written)
        try:
            return Path(inspect.getsourcefile(written) or ""), inspect.getsourcelines(written)[1]
        except (OSError, TypeError):
            return None

    @property
    def is_class(self) -> bool:
        """It makes what it stands for, and is not that itself."""
        return inspect.isclass(whole(self.factory))

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Those of its signature; none where it has no signature, as some built-in functions."""
        try:
            return inspect.signature(self.factory).parameters
        except (TypeError, ValueError):
            return {}

    @property
    def required(self) -> list[str]:
        """Parameters that must be given and are no options, in order."""
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [
            name
            for name, each in self.parameters.items()
            if each.kind in positional and each.default is each.empty and name != "config"
        ]

    @functools.cached_property
    def options(self) -> type[BaseModel]:
        """The pydantic model of its options. Unknown keys are refused.

        Raises ConfigError where an option has a name that the config needs for itself.
        """
        model = self._options()
        taken = {"kind": "names the plugin"}
        if self.kind == "rewards":
            taken["weight"] = "is the reward's share in the sum of several"
        for key in sorted(taken.keys() & set(_keys(model))):
            raise ConfigError(
                f"{singular(self.kind)} {self.name!r}, {self.origin}: it has an option {key!r}, which no config could "
                f"set, for there {key!r} {taken[key]}. Rename the option"
            )
        return model

    def _options(self) -> type[BaseModel]:
        config = self._hint("config") if "config" in self.parameters else None
        if inspect.isclass(config) and issubclass(config, BaseModel):
            if config.model_config.get("extra", "ignore") != "ignore":
                return config
            # pydantic's own default would let a misspelt option pass.
            return type(
                config.__name__, (config,), {"model_config": ConfigDict(extra="forbid"), "__module__": __name__}
            )
        fields: dict[str, Any] = {}
        options = [name for name, each in self.parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY]
        meanings = _meanings(self.doc, options)
        for name in options:
            hint, default = self._hint(name), self.parameters[name].default
            if name in meanings:
                hint = Annotated[hint, Field(description=meanings[name])]
            fields[name] = (hint, ... if default is inspect.Parameter.empty else default)
        return create_model(f"{self.name}_options", __config__=ConfigDict(extra="forbid"), **fields)

    def _hint(self, name: str) -> Any:
        """The annotation of a parameter. No other is looked at: that of the samples may hold names which only a type
        checker knows."""
        annotation = self.parameters[name].annotation
        if annotation is inspect.Parameter.empty:
            return Any
        function: Any = inspect.unwrap(whole(self.factory))
        if inspect.isclass(function):
            function = function.__init__
        elif not hasattr(function, "__globals__"):
            function = vars(type(function)).get("__call__", function)
        # No class or module: of any other object, get_type_hints takes names from where it is told to.
        alone = SimpleNamespace(__annotations__={name: annotation})
        try:
            names = getattr(inspect.unwrap(function), "__globals__", {})
            return typing.get_type_hints(alone, globalns=names, include_extras=True)[name]
        except (NameError, AttributeError, SyntaxError, TypeError) as error:
            raise ConfigError(
                f"{singular(self.kind)} {self.name!r}, {self.origin}: the annotation of its option {name!r} "
                f"({annotation}) cannot be resolved, so no value can be checked against it: {error}. Import what it "
                "names at the top of the file, outside of `if TYPE_CHECKING`"
            ) from error


def whole(factory: Callable[..., Any]) -> Callable[..., Any]:
    """What a partial is a part of; anything else as it is."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory


def paragraphs(doc: str, options: Sequence[str]) -> list[str]:
    """A docstring's paragraphs, but for what it says of options."""
    split = [" ".join(part.split()) for part in re.split(r"\n\s*\n", doc)]
    return [part for part in split if part and part.partition(":")[0].partition(" (")[0] not in options]


def _meanings(doc: str, options: Sequence[str]) -> dict[str, str]:
    """What a docstring says of each option: in lines that begin with `name: `, each up to the next one or an empty
    line."""
    found: dict[str, str] = {}
    current = None
    for line in doc.splitlines():
        begun = re.match(r"\s*(\w+)(?: \([^)]*\))?: +(.*)", line)
        if begun and begun[1] in options:
            current = begun[1]
            found[current] = begun[2]
        elif not line.strip():
            current = None
        elif current is not None:
            found[current] += f" {line.strip()}"
    return found


def _keys(model: type[BaseModel]) -> Iterator[str | int]:
    """The names under which its fields are given, aliases among them."""
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        for key in (name, *(alias.choices if isinstance(alias, AliasChoices) else [alias])):
            if key is not None:
                yield key.path[0] if isinstance(key, AliasPath) else key


def singular(kind: Kind) -> str:
    """What one of the kind is called."""
    return {"losses": "loss", "noise": "noise"}.get(kind, kind[:-1])
