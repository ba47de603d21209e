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
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rlkit import modules
from rlkit.blame import Blame, importing_plugin, place, shown
from rlkit.errors import ConfigError, PluginLoadError, module_of, nearest, origin
from rlkit.mistakes import Instead, explain, nothing_else
from rlkit.plugin import KINDS as KINDS
from rlkit.plugin import Kind as Kind
from rlkit.plugin import Plugin as Plugin
from rlkit.plugin import singular

F = TypeVar("F", bound=Callable[..., Any])

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
        raise ConfigError(f"{origin(name)}: give the plugin a name, as in @{singular(kind)}({called!r})")

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
        # What a package registers is the package's, whoever's file has imported it.
        source = None if _entry_points(kind).get(name) else _loading_from
        homes = tuple(dict.fromkeys((written, registered)))
        if source is not None and modules.is_file(source):
            homes = (str(Path(source).resolve()),)
        _add(Plugin(kind, name, factory, where, source or _distribution_of_module(kind, name), homes))
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


def environment(name: str) -> Callable[[F], F]:
    """Decorator: make an environment known, which `environment: NAME` lets the model act in.

    It decorates a class whose options its __init__ takes as keyword-only parameters, or a function from its options to
    an `rlkit.Environment`.

    Args:
        name: by which configs call it.

    Returns:
        The class or function itself.

    Raises:
        ConfigError: where another environment has the name.

    Example:
        >>> @rlkit.environment("guess")
        ... class Guess:
        ...     def start(self, task: rlkit.Task, seed: int) -> rlkit.Observation | str: ...
        ...     def step(self, action: str) -> rlkit.Observation | str: ...
    """
    return register("environments", name)


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
            raise ConfigError(f"unknown {singular(kind)} {name!r}{nearest(name, names(kind))}")
        with importing_plugin(f"{singular(kind)} {name!r} ({points[0].value} of {_distribution(points[0])})", None):
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
    model = validate_options(plugin, options, where=singular(kind))
    values = {field: getattr(model, field) for field in type(model).model_fields}
    has_config = "config" in plugin.parameters
    if kind == "rewards" and not plugin.is_class and not has_config:
        if not values:
            return plugin.factory
        partial = functools.partial(plugin.factory, **values)
        functools.update_wrapper(partial, plugin.factory)
        return partial
    blame = Blame(f"{singular(kind)} {name!r}", "its factory", plugin.factory, PluginLoadError)
    if unknown := plugin.required[len(context) :]:
        raise blame.fault(
            f"takes {', '.join(unknown)}, which nobody gives it: it is called with its options, and must "
            f"return {_IS[kind]}"
        )
    with blame:
        built = plugin.factory(model, *context) if has_config else plugin.factory(*context, **values)
    lacks = [method for method in _METHODS.get(kind, ()) if not callable(getattr(built, method, None))]
    if lacks:
        methods = " and ".join("can be called" if m == "__call__" else f"has a method {m}" for m in lacks)
        forgot = ": does it end with `return ...`?" if built is None else ""
        raise blame.fault(f"returned {shown(built)}; it must return something that {methods}{forgot}")
    return built


_IS: dict[Kind, str] = {
    "algorithms": "an rlkit.Algorithm",
    "advantages": "the advantage, which is then called with (batch, state)",
    "losses": "the loss, which is then called with (new, batch, targets)",
    "rewards": "the reward, which is then called with (samples)",
    "noise": "the noise: an object with an attribute `needs_range` that is called with (value, key, coin, range) and "
    "gives the noisy value. `rlkit new noise NAME` writes one, as a class whose options its __init__ takes",
    "environments": "the environment: an object with the methods start and step",
    "samplers": "an object with the methods generate, sync and close",
    "trackers": "an object with the methods log, log_samples and close",
    "suites": "a Suite",
}
"""What a factory of that kind makes."""
_METHODS: dict[Kind, tuple[str, ...]] = {
    **dict.fromkeys(("advantages", "losses", "rewards", "noise"), ("__call__",)),
    "environments": ("start", "step"),
    "samplers": ("generate", "sync", "close"),
    "trackers": ("log", "log_samples", "close"),
}
"""What is called of a thing of that kind. Of an algorithm and a suite it is fields."""


def validate_options(plugin: Plugin, options: dict[str, Any], where: str, instead: Instead = nothing_else) -> BaseModel:
    """The options as the plugin's model; SettingsError naming each key that does not fit.

    instead: the keys that a word which is no option may have been meant for."""
    try:
        return plugin.options.model_validate(options)
    except ValidationError as error:
        raise explain(error, plugin.options, where, instead) from error
