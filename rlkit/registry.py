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
import importlib.metadata
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, ValidationError, create_model

from rlkit import modules
from rlkit.errors import ConfigError, module_of, nearest, origin

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
    homes: tuple[str, ...]
    """What another process loads to have it too: modules, or the file it was loaded from."""

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(_whole(self.factory)) or "").partition("\n")[0]

    @property
    def is_class(self) -> bool:
        """It makes what it stands for, and is not that itself."""
        return inspect.isclass(_whole(self.factory))

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Those of its signature; none where it has no signature, as some built-in functions."""
        try:
            return inspect.signature(self.factory).parameters
        except (TypeError, ValueError):
            return {}

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
        config = self._hint("config") if "config" in self.parameters else None
        if inspect.isclass(config) and issubclass(config, BaseModel):
            if config.model_config.get("extra", "ignore") != "ignore":
                return config
            # pydantic's own default would let a misspelt option pass.
            return type(
                config.__name__, (config,), {"model_config": ConfigDict(extra="forbid"), "__module__": __name__}
            )
        fields: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                default = ... if parameter.default is inspect.Parameter.empty else parameter.default
                fields[name] = (self._hint(name), default)
        return create_model(f"{self.name}_options", __config__=ConfigDict(extra="forbid"), **fields)

    def _hint(self, name: str) -> Any:
        """The annotation of a parameter. No other is looked at: that of the samples may hold names which only a type
        checker knows."""
        annotation = self.parameters[name].annotation
        if annotation is inspect.Parameter.empty:
            return Any
        function: Any = inspect.unwrap(_whole(self.factory))
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
                f"{_singular(self.kind)} {self.name!r}, {self.origin}: the annotation of its option {name!r} "
                f"({annotation}) cannot be resolved, so no value can be checked against it: {error}. Import what it "
                "names at the top of the file, outside of `if TYPE_CHECKING`"
            ) from error


def _whole(factory: Callable[..., Any]) -> Callable[..., Any]:
    """What a partial is a part of; anything else as it is."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory


def _keys(model: type[BaseModel]) -> Iterator[str | int]:
    """The names under which its fields are given, aliases among them."""
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        for key in (name, *(alias.choices if isinstance(alias, AliasChoices) else [alias])):
            if key is not None:
                yield key.path[0] if isinstance(key, AliasPath) else key


_plugins: dict[tuple[Kind, str], Plugin] = {}
_loading_from: str | None = None


def _add(plugin: Plugin) -> Plugin:
    kind, name = plugin.kind, plugin.name
    known = _plugins.get((kind, name))
    # A cell of a notebook is run again and again: there the newest counts.
    again = "__main__" in plugin.homes or plugin.homes == _script()
    interactive = known is not None and "__main__" in known.homes and again
    if known is not None and known.origin != plugin.origin and not interactive:
        raise ConfigError(
            f"{kind}: the name {name!r} is registered twice, by {known.origin} and by {plugin.origin}. "
            "Rename one of them."
        )
    _plugins[kind, name] = plugin
    return plugin


def _script() -> tuple[str] | None:
    """The homes of a plugin that the script which is being run names as its own: other processes can load that."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return (str(Path(file).resolve()),) if file else None


def register(kind: Kind, name: str) -> Callable[[F], F]:
    """Decorator: make a factory known under a name. ConfigError where the name is taken."""
    if not isinstance(name, str):
        called = getattr(name, "__name__", "mine")
        raise ConfigError(f"{origin(name)}: give the plugin a name, as in @{_singular(kind)}({called!r})")

    def add(factory: F) -> F:
        here = sys._getframe(1)
        written, registered = module_of(factory), here.f_globals.get("__name__", "__main__")
        where = origin(factory)
        if not (inspect.isfunction(factory) or inspect.isclass(factory)):
            # Two objects of one class, or two partials of one function, are two.
            where += f", registered in {here.f_code.co_filename}:{here.f_lineno}"
        for point in _entry_points(kind).get(name, ()):
            if point.module not in (written, registered):
                raise ConfigError(
                    f"{kind}: the name {name!r} is registered twice, by {where} and by the entry point "
                    f"{point.value} of {_distribution(point)}. Rename one of them."
                )
        homes = tuple(dict.fromkeys((written, registered)))
        if _loading_from is not None and modules.is_file(_loading_from):
            homes = (str(Path(_loading_from).resolve()),)
        _add(Plugin(kind, name, factory, where, _loading_from or _distribution_of_module(kind, name), homes))
        return factory

    return add


def algorithm(name: str) -> Callable[[F], F]:
    """Decorator: make an algorithm known, so that `--algo NAME` and `rlkit.train(algo=NAME)` find it.

    It decorates a factory: a function from its options (keyword-only parameters, or a pydantic model called `config`)
    to an `rlkit.Algorithm`.

    Args:
        name: by which configs call it.

    Returns:
        The factory itself.

    Raises:
        ConfigError: where another algorithm has the name.

    Example:
        >>> @rlkit.algorithm("mine")
        ... def mine(*, scale: float = 1.0) -> rlkit.Algorithm:
        ...     return rlkit.Algorithm(advantage=advantage, policy_loss=loss)
    """
    return register("algorithms", name)


def advantage(name: str) -> Callable[[F], F]:
    """Decorator: make an advantage known, which `advantage: NAME` puts in the place of an algorithm's own.

    It decorates a factory: a function from its options to an `rlkit.Advantage`.

    Args:
        name: by which configs call it.

    Returns:
        The factory itself.

    Raises:
        ConfigError: where another advantage has the name.

    Example:
        >>> @rlkit.advantage("centred")
        ... def centred(*, scale: float = 1.0) -> rlkit.Advantage:
        ...     return compute
    """
    return register("advantages", name)


def loss(name: str) -> Callable[[F], F]:
    """Decorator: make a policy loss known, which `loss: NAME` puts in the place of an algorithm's own.

    It decorates a factory: a function from its options to an `rlkit.PolicyLoss`.

    Args:
        name: by which configs call it.

    Returns:
        The factory itself.

    Raises:
        ConfigError: where another loss has the name.

    Example:
        >>> @rlkit.loss("plain")
        ... def plain() -> rlkit.PolicyLoss:
        ...     return compute
    """
    return register("losses", name)


def reward(name: str) -> Callable[[F], F]:
    """Decorator: make a reward known, so that `reward: NAME` and `rlkit.train(reward=NAME)` find it.

    It decorates the reward itself, an `rlkit.RewardFn` whose keyword-only parameters are its options; or a class whose
    objects are rewards.

    Args:
        name: by which configs call it.

    Returns:
        The function or class itself.

    Raises:
        ConfigError: where another reward has the name.

    Example:
        >>> @rlkit.reward("brief")
        ... def brief(samples, *, limit: int = 20):
        ...     return [float(s.response.endswith(s.answer) and len(s.tokens) <= limit) for s in samples]
    """
    return register("rewards", name)


def noise(name: str) -> Callable[[F], F]:
    """Decorator: make a noise on rewards known, so that `--noise NAME:P` finds it.

    It decorates a factory: a class or function from its options to what disturbs rewards.

    Args:
        name: by which configs call it.

    Returns:
        The factory itself.

    Raises:
        ConfigError: where another noise has the name.

    Example:
        >>> @rlkit.noise("shift")
        ... class Shift:
        ...     def __init__(self, *, by: float) -> None: ...
    """
    return register("noise", name)


def sampler(name: str) -> Callable[[F], F]:
    """Decorator: make a sampler known, so that `sampler: NAME` finds it.

    It decorates a factory, which gets its options and what `rlkit.generation` says.

    Args:
        name: by which configs call it.

    Returns:
        The factory itself.

    Raises:
        ConfigError: where another sampler has the name.

    Example:
        >>> @rlkit.sampler("mine")
        ... def mine(model, context, seed, *, greedy: bool = False): ...
    """
    return register("samplers", name)


def tracker(name: str) -> Callable[[F], F]:
    """Decorator: make a tracker known, which mirrors a run's metrics where `trackers: [NAME]` asks for it.

    It decorates a factory, which gets its options and an `rlkit.tracking.RunInfo`.

    Args:
        name: by which configs call it.

    Returns:
        The factory itself.

    Raises:
        ConfigError: where another tracker has the name.

    Example:
        >>> @rlkit.tracker("mine")
        ... class Mine:
        ...     def __init__(self, run) -> None: ...
    """
    return register("trackers", name)


def suite(name: str) -> Callable[[F], F]:
    """Decorator: make a benchmark suite known, so that `rlkit eval --suite NAME` finds it.

    It decorates a function without parameters that returns an `rlkit.evaluation.suites.Suite`.

    Args:
        name: by which it is called.

    Returns:
        The function itself.

    Raises:
        ConfigError: where another suite has the name.

    Example:
        >>> @rlkit.suite("mine")
        ... def mine() -> Suite: ...
    """
    return register("suites", name)


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
            _add(Plugin(kind, name, factory, origin(factory), _distribution(points[0]), (points[0].module,)))
    return _plugins[kind, name]


def all_plugins(kind: Kind) -> Iterator[tuple[str, Plugin | Exception]]:
    """Every name of a kind with its plugin, or with what its import raised."""
    for name in names(kind):
        try:
            yield name, find(kind, name)
        except Exception as error:  # shown to the user with its traceback by whoever lists
            yield name, error


def loading() -> str | None:
    """The plugin that is being imported, as it was named; None: none is."""
    return _loading_from


def load(plugins: list[str]) -> None:
    """Import users' plugins: paths to Python files, or module names.

    Raises ConfigError for one that does not exist, and, with the traceback, for one that fails to import.
    """
    global _loading_from
    for plugin in plugins:
        _loading_from = plugin
        try:
            with _importing(f"plugin {plugin!r}"):
                modules.load(plugin, "plugin")
        finally:
            _loading_from = None


@contextlib.contextmanager
def _importing(what: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} failed to import:\n{traceback.format_exc()}") from error


def build(kind: Kind, name: str, options: dict[str, Any], *context: Any) -> Any:
    """Make the thing a plugin stands for, from validated options.

    `context` is what the kind's factories get after their options: nothing for algorithms, advantages, losses,
    rewards and suites; see `rlkit.generation` and `rlkit.tracking` for the others.
    """
    plugin = find(kind, name)
    model = validate_options(plugin, options, where=_singular(kind))
    if "config" in plugin.parameters:
        return plugin.factory(model, *context)
    values = {field: getattr(model, field) for field in type(model).model_fields}
    if kind == "rewards" and not plugin.is_class:
        if not values:
            return plugin.factory
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
