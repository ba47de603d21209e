"""Named plugins: decorators and entry points.

A plugin is a factory. Its options are the fields of the pydantic model that its parameter `config` is
annotated with, or, where it has none, its keyword-only parameters. A reward may be the function itself.

    @algorithm("mine")
    def mine(config: MineConfig) -> Algorithm: ...

    @reward("short")
    def short(samples: Sequence[Sample], *, limit: int = 20) -> list[float]: ...

Built-in plugins come in by the same entry points as a stranger's, and are imported when first used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import traceback
import typing
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, ValidationError, create_model

from rlkit.errors import ConfigError, nearest, origin

Kind = Literal["algorithms", "advantages", "losses", "rewards", "noise", "samplers", "trackers", "suites"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Plugin:
    kind: Kind
    name: str
    factory: Callable[..., Any]
    origin: str
    """module:name and file, for messages."""
    distribution: str
    """The installed package it comes from, with its version, or the file it was loaded from."""

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

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
                f"{_singular(self.kind)} {self.name!r}, {self.origin}: it has an option {key!r}, which no config could "
                f"set, for there {key!r} {taken[key]}. Rename the option"
            )
        return model

    def _options(self) -> type[BaseModel]:
        signature = self.factory.__init__ if inspect.isclass(self.factory) else self.factory
        hints = typing.get_type_hints(signature, include_extras=True)
        config = hints.get("config")
        if inspect.isclass(config) and issubclass(config, BaseModel):
            if config.model_config.get("extra", "ignore") != "ignore":
                return config
            # pydantic's own default would let a misspelt option pass.
            return type(
                config.__name__, (config,), {"model_config": ConfigDict(extra="forbid"), "__module__": __name__}
            )
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(self.factory).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                default = ... if parameter.default is inspect.Parameter.empty else parameter.default
                fields[name] = (hints.get(name, Any), default)
        return create_model(f"{self.name}_options", __config__=ConfigDict(extra="forbid"), **fields)


def _keys(model: type[BaseModel]) -> Iterator[str | int]:
    """The names under which its fields are given, aliases among them."""
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        for key in (name, *(alias.choices if isinstance(alias, AliasChoices) else [alias])):
            if key is not None:
                yield key.path[0] if isinstance(key, AliasPath) else key


_plugins: dict[tuple[Kind, str], Plugin] = {}
_loading_from: str | None = None


def _add(kind: Kind, name: str, factory: Callable[..., Any], distribution: str) -> Plugin:
    plugin = Plugin(kind, name, factory, origin(factory), distribution)
    known = _plugins.get((kind, name))
    # A cell of a notebook is run again and again: there the newest counts.
    interactive = known is not None and known.factory.__module__ == factory.__module__ == "__main__"
    if known is not None and known.origin != plugin.origin and not interactive:
        raise ConfigError(
            f"{kind}: the name {name!r} is registered twice, by {known.origin} and by {plugin.origin}. "
            "Rename one of them."
        )
    _plugins[kind, name] = plugin
    return plugin


def register(kind: Kind, name: str) -> Callable[[F], F]:
    """Decorator: make a factory known under a name. ConfigError where the name is taken."""
    if not isinstance(name, str):
        raise ConfigError(f"{origin(name)}: give the plugin a name, as in @{_singular(kind)}({name.__name__!r})")

    def add(factory: F) -> F:
        for point in _entry_points(kind).get(name, ()):
            if point.module != factory.__module__:
                raise ConfigError(
                    f"{kind}: the name {name!r} is registered twice, by {origin(factory)} and by the entry point "
                    f"{point.value} of {_distribution(point)}. Rename one of them."
                )
        _add(kind, name, factory, _loading_from or _distribution_of_module(kind, name))
        return factory

    return add


algorithm = functools.partial(register, "algorithms")
advantage = functools.partial(register, "advantages")
loss = functools.partial(register, "losses")
reward = functools.partial(register, "rewards")
noise = functools.partial(register, "noise")
sampler = functools.partial(register, "samplers")
tracker = functools.partial(register, "trackers")
suite = functools.partial(register, "suites")


@functools.cache
def _entry_points(kind: Kind) -> dict[str, list[importlib.metadata.EntryPoint]]:
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=f"rlkit.{kind}"):
        if point not in found.setdefault(point.name, []):
            found[point.name].append(point)
    return found


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "?"


def _distribution_of_module(kind: Kind, name: str) -> str:
    points = _entry_points(kind).get(name)
    return _distribution(points[0]) if points else "registered in this process"


def names(kind: Kind) -> list[str]:
    """All names of a kind; nothing is imported."""
    return sorted({name for k, name in _plugins if k == kind} | set(_entry_points(kind)))


def find(kind: Kind, name: str) -> Plugin:
    """The plugin of that name, imported if need be.

    Raises ConfigError for an unknown name (naming the nearest), for a name that two packages claim, and, with
    the traceback, for a module that fails to import.
    """
    points = _entry_points(kind).get(name, [])
    if len(points) > 1:
        places = " and by ".join(f"{p.value} of {_distribution(p)}" for p in points)
        raise ConfigError(f"{kind}: the name {name!r} is registered twice, by {places}. Uninstall one of them.")
    if (kind, name) not in _plugins:
        if not points:
            raise ConfigError(f"unknown {_singular(kind)} {name!r}{nearest(name, names(kind))}")
        with _importing(f"{_singular(kind)} {name!r} ({points[0].value} of {_distribution(points[0])})"):
            factory = points[0].load()
        if (kind, name) not in _plugins:
            _add(kind, name, factory, _distribution(points[0]))
    return _plugins[kind, name]


def all_plugins(kind: Kind) -> Iterator[tuple[str, Plugin | Exception]]:
    """Every name of a kind with its plugin, or with what its import raised."""
    for name in names(kind):
        try:
            yield name, find(kind, name)
        except Exception as error:  # shown to the user with its traceback by whoever lists
            yield name, error


def load(plugins: list[str]) -> None:
    """Import users' plugins: paths to Python files, or module names.

    Raises ConfigError for one that does not exist, and, with the traceback, for one that fails to import.
    """
    global _loading_from
    for plugin in plugins:
        _loading_from = plugin
        try:
            with _importing(f"plugin {plugin!r}"):
                if plugin.endswith(".py") or os.sep in plugin:
                    _load_file(Path(plugin))
                elif _exists(plugin):
                    importlib.import_module(plugin)
                else:
                    raise ConfigError(
                        f"plugin module {plugin!r} does not exist: give a module that can be imported, or a path "
                        "ending in .py"
                    )
        finally:
            _loading_from = None


def _exists(module: str) -> bool:
    parent = module.rpartition(".")[0]
    return (not parent or _exists(parent)) and importlib.util.find_spec(module) is not None


@contextlib.contextmanager
def _importing(what: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} failed to import:\n{traceback.format_exc()}") from error


def _load_file(path: Path) -> None:
    if not path.is_file():
        why = "is a folder, not a Python file" if path.is_dir() else f"does not exist (looked in {Path.cwd()})"
        raise ConfigError(f"plugin file {str(path)!r} {why}")
    name = f"rlkit_plugin_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def build(kind: Kind, name: str, options: dict[str, Any], *context: Any) -> Any:
    """Make the thing a plugin stands for, from validated options.

    `context` is what the kind's factories get after their options: nothing for algorithms, advantages, losses,
    rewards and suites; see `rlkit.generation` and `rlkit.tracking` for the others.
    """
    plugin = find(kind, name)
    model = validate_options(plugin, options, where=_singular(kind))
    parameters = inspect.signature(plugin.factory).parameters
    if "config" in parameters:
        return plugin.factory(model, *context)
    values = {field: getattr(model, field) for field in type(model).model_fields}
    if kind == "rewards" and not inspect.isclass(plugin.factory):
        built = functools.partial(plugin.factory, **values)
        functools.update_wrapper(built, plugin.factory)
        return built
    return plugin.factory(*context, **values)


def validate_options(plugin: Plugin, options: dict[str, Any], where: str) -> BaseModel:
    """The options as the plugin's model; ConfigError naming each key that does not fit."""
    try:
        return plugin.options.model_validate(options)
    except ValidationError as error:
        raise ConfigError(explain(error, plugin.options, where)) from error


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> str:
    """One sentence for each mistake: the key, where it stands, and what to do."""
    lines = []
    for item in error.errors():
        inside, path = _walked(model, item["loc"])
        if where:
            path.insert(0, where)
        if item["type"] == "extra_forbidden":
            known = inside.model_fields if inside else {}
            place = f"in {'.'.join(path[:-1])!r}" if path[:-1] else "at the top level"
            lines.append(f"unknown key {path[-1]!r} {place}{nearest(path[-1], known)}")
        elif item["type"] == "missing" and path[-1] == "kind":
            lines.append(f"{'.'.join(path)!r} is missing: name the plugin whose options these are")
        elif item["type"] == "union_tag_invalid":
            tags = [tag.strip(" '") for tag in item["ctx"]["expected_tags"].split(",")]
            tag = item["ctx"]["tag"]
            lines.append(f"{'.'.join(path)!r}: there is no {tag!r}{nearest(tag, tags)}")
        elif item["type"] == "missing":
            lines.append(f"{'.'.join(path)!r} is missing: it has no default")
        elif item["type"] == "value_error":
            prefix = f"{'.'.join(path)!r}: " if path else ""
            lines.append(prefix + str(item["ctx"]["error"]))
        elif item["type"] in ("model_type", "model_attributes_type"):
            lines.append(f"{'.'.join(path)!r}: should hold keys and values of its own (got {item['input']!r})")
        elif item["type"] == "list_type":
            lines.append(
                f"{'.'.join(path)!r}: should be a list, as in -s '{'.'.join(path)}=[a, b]' (got {item['input']!r})"
            )
        elif item["type"] == "string_type":
            key = ".".join(path)
            lines.append(
                f"{key!r}: should be text (got {item['input']!r}). If YAML has made that of a text, put quotes around "
                f"it, which the shell must leave there, as in -s '{key}=\"no\"'"
            )
        else:
            said = item["msg"][0].lower() + item["msg"][1:]
            lines.append(f"{'.'.join(path)!r}: {said} (got {item['input']!r})")
    return "\n".join(lines)


def _walked(model: type[BaseModel] | None, location: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """The model that holds the last part of an error's location, and the location as a user writes it: pydantic puts
    the kind of a section that has several into it."""
    path: list[str] = []
    among: list[type[BaseModel]] = []
    for at, part in enumerate(location):
        tagged = [each for each in among if "kind" in each.model_fields and each.model_fields["kind"].default == part]
        if tagged and (model is None or part not in model.model_fields):
            model, among = tagged[0], []
            continue
        path.append(str(part))
        if isinstance(part, int) or model is None or at == len(location) - 1:
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        among = [each for each in _members(annotation) if inspect.isclass(each) and issubclass(each, BaseModel)]
        model = among[0] if among else None
    return model, path


def _members(annotation: Any) -> Iterator[Any]:
    """The annotation and all that its unions, lists and Annotated are made of."""
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _members(inner)


def _singular(kind: Kind) -> str:
    return {"losses": "loss", "noise": "noise"}.get(kind, kind[:-1])
