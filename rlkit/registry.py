"""Named plugins: decorators and entry points.

A plugin is a factory. Its options are the fields of the pydantic model that its parameter `config` is
annotated with, or, where it has none, its keyword-only parameters, of which its docstring says the meaning in lines
that begin with `name: `. A reward may be the function itself.

    @algorithm("mine")
    def mine(config: MineConfig) -> Algorithm: ...

    @reward("short")
    def short(samples: Sequence[Sample], *, limit: int = 20) -> list[float]: ...

Built-in plugins come in by the same entry points as a stranger's, and are imported when first used.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, ValidationError, create_model

from rlkit import modules
from rlkit.blame import Blame, importing_plugin, place, shown
from rlkit.errors import ConfigError, PluginLoadError, SettingsError, module_of, nearest, origin

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

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
    def doc(self) -> str:
        """Its docstring."""
        return inspect.getdoc(_whole(self.factory)) or ""

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.partition("\n")[0]

    @property
    def noun(self) -> str:
        """What one of its kind is called."""
        return _singular(self.kind)

    @property
    def place(self) -> tuple[Path, int] | None:
        """The file in which it is written, and the line at which it begins there; None where no file holds it."""
        written: Any = inspect.unwrap(_whole(self.factory))
        written = written if inspect.isroutine(written) or inspect.isclass(written) else type(written)
        try:
            return Path(inspect.getsourcefile(written) or ""), inspect.getsourcelines(written)[1]
        except (OSError, TypeError):
            return None

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

    Raises ConfigError for an unknown name (naming the nearest), for a name that two packages claim, and for a module
    that fails to import, with the line that does.
    """
    points = _entry_points(kind).get(name, [])
    if len(points) > 1:
        places = " and by ".join(f"{p.value} of {_distribution(p)}" for p in points)
        raise ConfigError(f"{kind}: the name {name!r} is registered twice, by {places}. Uninstall one of them.")
    if (kind, name) not in _plugins:
        if not points:
            raise ConfigError(f"unknown {_singular(kind)} {name!r}{nearest(name, names(kind))}")
        with importing_plugin(f"{_singular(kind)} {name!r} ({points[0].value} of {_distribution(points[0])})", None):
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

    Raises ConfigError for one that does not exist, and for one that fails to import, with the line that does.
    """
    global _loading_from
    for plugin in plugins:
        _loading_from = plugin
        try:
            file = str(Path(plugin).resolve()) if modules.is_file(plugin) else None
            with importing_plugin(f"plugin {place(file) if file else plugin!r}", file):
                modules.load(plugin, "plugin")
        finally:
            _loading_from = None


def of(source: str) -> list[Plugin]:
    """What a file or a module that was loaded has registered, the modules within it and its entry points included."""
    if modules.is_file(source):
        return [plugin for plugin in _plugins.values() if str(Path(source).resolve()) in plugin.homes]

    def within(module: str) -> bool:
        return module == source or module.startswith(f"{source}.")

    named = [
        (kind, name)
        for kind in KINDS
        for name, points in _entry_points(kind).items()
        if any(within(point.module) for point in points)
    ]
    found = [find(kind, name) for kind, name in named]
    return found + [
        plugin
        for plugin in _plugins.values()
        if plugin not in found and (plugin.distribution == source or any(map(within, plugin.homes)))
    ]


def of_factory(factory: object) -> Plugin | None:
    """The plugin that a decorated factory was registered as; None where it was not."""
    return next((plugin for plugin in _plugins.values() if plugin.factory is factory), None)


def build(kind: Kind, name: str, options: dict[str, Any], *context: Any) -> Any:
    """Make the thing a plugin stands for, from validated options.

    `context` is what the kind's factories get after their options: nothing for algorithms, advantages, losses,
    rewards and suites; see `rlkit.generation` and `rlkit.tracking` for the others. Raises ConfigError for options that
    cannot be, and for a factory that raises or makes what cannot stand for its kind.
    """
    plugin = find(kind, name)
    model = validate_options(plugin, options, where=_singular(kind))
    values = {field: getattr(model, field) for field in type(model).model_fields}
    has_config = "config" in plugin.parameters
    if kind == "rewards" and not plugin.is_class and not has_config:
        if not values:
            return plugin.factory
        partial = functools.partial(plugin.factory, **values)
        functools.update_wrapper(partial, plugin.factory)
        return partial
    blame = Blame(f"{_singular(kind)} {name!r}", "its factory", plugin.factory, PluginLoadError)
    with blame:
        built = plugin.factory(model, *context) if has_config else plugin.factory(*context, **values)
    lacks = [method for method in _METHODS.get(kind, ()) if not callable(getattr(built, method, None))]
    if lacks:
        methods = " and ".join("can be called" if m == "__call__" else f"has a method {m}" for m in lacks)
        forgot = ": does it end with `return ...`?" if built is None else ""
        raise blame.fault(f"returned {shown(built)}; it must return something that {methods}{forgot}")
    return built


_METHODS: dict[Kind, tuple[str, ...]] = {
    **dict.fromkeys(("advantages", "losses", "rewards", "noise"), ("__call__",)),
    "samplers": ("generate", "sync", "close"),
    "trackers": ("log", "log_samples", "close"),
}
"""What is called of a thing of that kind. Of an algorithm and a suite it is fields."""


def validate_options(plugin: Plugin, options: dict[str, Any], where: str) -> BaseModel:
    """The options as the plugin's model; SettingsError naming each key that does not fit."""
    try:
        return plugin.options.model_validate(options)
    except ValidationError as error:
        raise explain(error, plugin.options, where) from error


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> SettingsError:
    """One sentence for each mistake: the key, where it stands, and what to do."""
    mistakes = []
    for item in error.errors():
        inside, path = _walked(model, item["loc"])
        path = [where, *path] if where else path
        mistakes.append((path, _said(item, path, inside)))
    return SettingsError(mistakes)


def _said(item: ErrorDetails, path: list[str], inside: type[BaseModel] | None) -> str:
    key = ".".join(path)
    match item["type"]:
        case "extra_forbidden":
            known = inside.model_fields if inside else {}
            place = f"in {'.'.join(path[:-1])!r}" if path[:-1] else "at the top level"
            return f"unknown key {path[-1]!r} {place}{nearest(path[-1], known)}"
        case "missing" if path[-1] == "kind":
            return f"{key!r} is missing: name the plugin whose options these are"
        case "union_tag_invalid":
            tags = [tag.strip(" '") for tag in item["ctx"]["expected_tags"].split(",")]
            tag = item["ctx"]["tag"]
            return f"{key!r}: there is no {tag!r}{nearest(tag, tags)}"
        case "missing":
            return f"{key!r} is missing: it has no default"
        case "value_error":
            prefix = f"{key!r}: " if path else ""
            return prefix + str(item["ctx"]["error"])
        case "model_type" | "model_attributes_type":
            return f"{key!r}: should hold keys and values of its own (got {item['input']!r})"
        case "list_type":
            return f"{key!r}: should be a list, as in -s '{key}=[a, b]' (got {item['input']!r})"
        case "string_type":
            return (
                f"{key!r}: should be text (got {item['input']!r}). If YAML has made that of a text, put quotes around "
                f"it, which the shell must leave there, as in -s '{key}=\"no\"'"
            )
    said = item["msg"][0].lower() + item["msg"][1:]
    return f"{key!r}: {said} (got {item['input']!r})"


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
