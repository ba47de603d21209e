"""What a sweep asks for, and the arms and runs that come of it."""

from __future__ import annotations

import importlib.resources
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from rlkit import config as configs
from rlkit import registry
from rlkit.config import RunConfig, Section
from rlkit.config.keys import SHORT
from rlkit.config.places import Places
from rlkit.errors import ConfigError, SettingsError, nearest
from rlkit.mistakes import explain
from rlkit.sweeps.labels import is_own, settings_label

Settings = dict[str, Any]
"""Dotted key -> value, as in `optimizer.lr`."""

THE_SWEEPS = {
    "algo": "algos",
    "algo.kind": "algos",
    "noise": "noise",
    "seed": "seeds",
    "name": "--name of the sweep",
    "out": "--out of the sweep",
}
"""What the sweep gives each run by itself, and what says it instead."""


def _flat(settings: Any, prefix: str = "") -> Any:
    """{optimizer: {lr: 1}} -> {optimizer.lr: 1}; a short name (lr) is the key that it stands for."""
    if not isinstance(settings, Mapping):
        return {} if settings is None else settings
    flat: Settings = {}
    for key, value in settings.items():
        name = configs.full_name(f"{prefix}{key}", value)
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _algorithms(value: Any) -> Any:
    names = _names(value)
    if not isinstance(names, list):
        return names
    if len({*names}) < len(names):
        raise ValueError(f"an algorithm is named twice: {', '.join(names)}")
    return {name: {} for name in names}


def _names(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _noises(value: Any) -> Any:
    """The commas within a noise (`asymmetric:0.1,0.2`) stand before numbers."""
    return (
        [part.strip() for part in re.split(r",(?!\s*[-+.\d])", value) if part.strip()]
        if isinstance(value, str)
        else value
    )


def parse_seeds(value: Any) -> Any:
    """`0-2,7` -> [0, 1, 2, 7]. ValueError for what is not numbers and ranges."""
    if isinstance(value, int):
        return [value]
    if not isinstance(value, str):
        return value
    seeds: list[int] = []
    for part in value.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise ValueError(f"{value!r}: expected numbers and ranges, the lower end first, as in 0-4 or 0,2,5-7")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    return seeds


def _listed(value: Any) -> Any:
    flat = _flat(value)
    if not isinstance(flat, Mapping):
        return flat
    return {key: each if isinstance(each, list) else [each] for key, each in flat.items()}


Seeds = Annotated[list[int], BeforeValidator(parse_seeds)]
Flat = Annotated[Settings, BeforeValidator(_flat)]
Listed = Annotated[dict[str, list[Any]], BeforeValidator(_listed)]


class SweepConfig(Section):
    """A sweep as a YAML file says it; `rlkit sweep`'s options are the same things."""

    base: str | dict[str, Any] = "embedded"
    """Preset, YAML file, or the config itself."""
    algos: Annotated[dict[str, Flat], BeforeValidator(_algorithms)] = {}
    """Names; or a mapping from each name to settings of its own."""
    seeds: Seeds = [0]
    """`0-4`, `0,2,5`, or a list."""
    noise: Annotated[list[str], BeforeValidator(_noises)] = ["none"]
    """`none`, or noises as `--noise` takes them; `+` between several that act one after the other."""
    set: Flat = {}
    """Settings of every run."""
    grid: Listed = {}
    """Settings with several values: every combination."""
    zip: Listed = {}
    """Settings with as many values each: all the first ones, all the second ones, ..."""
    written: list[Flat] = Field([{}], alias="list")
    """Settings that go together, each case written out."""
    tune: Listed = {}
    """Settings to choose for each arm before the scored runs, on seeds of their own: every combination is tried."""
    tune_seeds: Seeds = []
    """Seeds of the tuning runs; none of them may be scored."""
    _places: Places = PrivateAttr(default_factory=Places)

    def place_of(self, path: Sequence[str], algo: str, settings: Settings) -> str:
        """The line that gives a setting to an arm with these settings; "" where none of the sweep's own file does."""
        key = ".".join(path)
        cases = [f"list.{i}" for i, case in enumerate(self.written) if key in case and case[key] == settings.get(key)]
        names = [key, *(short for short, name in SHORT.items() if name == key)]
        roots = ["set", f"algos.{algo}", "grid", "zip", *cases, "tune"]
        return next(
            (line for root in roots for name in names if (line := self._places.line([root, name]))),
            "",
        )

    @model_validator(mode="after")
    def _whole(self) -> SweepConfig:
        if not self.algos:
            raise ValueError("the sweep has no arms: name the algorithms, as in --algos vimpo,grpo (algos: in a file)")
        for name, values in (("seeds", self.seeds), ("noise", self.noise), ("list", self.written)):
            if not values:
                raise ValueError(f"the sweep has no arms: {name} is empty")
        for name, once in (("seeds", self.seeds), ("noise", self.noise), ("tune_seeds", self.tune_seeds)):
            if len({*once}) < len(once):
                raise ValueError(f"{name} holds the same one twice: {', '.join(map(str, once))}")
        empty = [key for key, values in (self.grid | self.zip | self.tune).items() if not values]
        if empty:
            raise ValueError(f"the sweep has no arms: {empty[0]} has no values")
        if len({len(values) for values in self.zip.values()}) > 1:
            counts = ", ".join(f"{key} {len(values)}" for key, values in self.zip.items())
            raise ValueError(
                f"zip goes through its settings together, so each needs as many values; there are: {counts}"
            )
        named = [*self.grid, *self.zip, *(key for case in self.written for key in case)]
        given = [*self.set, *named, *self.tune, *(key for own in self.algos.values() for key in own)]
        if taken := [key for key in given if key in THE_SWEEPS]:
            raise ValueError(f"{taken[0]} is no setting of a sweep: it comes from {THE_SWEEPS[taken[0]]}")
        if twice := [key for key in self.tune if key in named]:
            raise ValueError(
                f"{twice[0]} is tuned, and has values of its own: the arms would not be what they are called"
            )
        if repeated := [key for key, values in self.tune.items() if len({*map(repr, values)}) < len(values)]:
            raise ValueError(f"tune.{repeated[0]} holds the same value twice")
        if bool(self.tune) != bool(self.tune_seeds):
            raise ValueError(
                "tune and tune_seeds go together: settings to try, and seeds to try them on, as in "
                "--tune lr=1e-4,2e-4 --tune-seeds 100-101"
            )
        if shared := sorted({*self.tune_seeds} & {*self.seeds}):
            raise ValueError(
                f"seed {shared[0]} is both tuned on and scored, so that its score would be too good: "
                "give tune_seeds others"
            )
        return self


def shipped() -> dict[str, str]:
    """Name -> YAML text of the sweeps that ship."""
    folder = importlib.resources.files("rlkit_configs") / "sweeps"
    return {file.name.removesuffix(".yaml"): file.read_text() for file in folder.iterdir()}


def load(source: str | None, given: Mapping[str, Any]) -> SweepConfig:
    """A sweep that ships, or a YAML file, with `given` in place of what it says; or `given` alone.

    Raises ConfigError for what cannot be read, unknown keys, and a sweep that has no arms or contradicts itself.
    """
    data: Any = {}
    places = Places()
    if source is not None:
        file, ours = Path(source), shipped()
        if not file.is_file() and source not in ours:
            raise ConfigError(
                f"no sweep {source!r}: neither a file (looked in {Path.cwd()}) nor one that ships"
                + nearest(source, ours)
            )
        try:
            text = file.read_text() if file.is_file() else ours[source]
        except OSError as error:
            raise ConfigError(f"the sweep's file {source} cannot be read: {error}") from error
        data, places = configs.read_yaml(text, source)
    # A file's own settings stay beside those of the command line.
    for name in given:
        if name in ("set", "grid") and isinstance(data.get(name), dict):
            for key in given[name]:
                places.set_elsewhere(f"{name}.{key}")
            given = {**given, name: {**_flat(data[name]), **given[name]}}
        else:
            places.set_elsewhere(name)
    data = {**data, **given}
    base = data.get("base")
    if isinstance(base, str) and base not in configs.presets():
        # What the file says now is what all runs share, whatever becomes of it until the last.
        data["base"] = configs.load(base).model_dump(mode="json", exclude_unset=True)
    try:
        spec = SweepConfig.model_validate(data)
    except ValidationError as error:
        raise places.point(explain(error, SweepConfig), in_file=True) from error
    spec._places = places
    return spec


def given_settings(settings: Sequence[str], tune: Sequence[str], plugins: Sequence[str]) -> dict[str, Any]:
    """The fields that the command line's key=v1,v2 make: one value is set, several are a grid. ConfigError."""
    parsed, tuned = (
        {configs.full_name(key, values): values for key, values in map(parse_values, given)}
        for given in (settings, tune)
    )
    fields = {
        "set": {key: values[0] for key, values in parsed.items() if len(values) == 1},
        "grid": {key: values for key, values in parsed.items() if len(values) > 1},
        "tune": tuned,
    }
    if plugins:
        fields["set"]["plugins"] = list(plugins)
    return {name: given for name, given in fields.items() if given}


@dataclass(frozen=True, kw_only=True, eq=False)
class Arm:
    """An algorithm with its settings, under one condition."""

    name: str
    condition: str
    algo: str
    noise: str
    settings: Settings

    def config(self, spec: SweepConfig, seed: int, out: Path, name: str, more: Mapping[str, Any]) -> RunConfig:
        """The resolved config of a run of this arm. ConfigError, with the arm's name, for what cannot be."""
        settings = {**self.settings, **more, "seed": seed, "name": name, "out": str(out)}
        try:
            config = configs.load(spec.base, [f"{k}={json.dumps(v)}" for k, v in settings.items()], self.algo)
            registry.load(config.plugins)
            if config.noise:
                raise ConfigError("the base has a noise of its own: take it out there, and name it with --noise")
            if self.noise != "none":
                config = config.model_copy(update={"noise": parse_noises(self.noise)})
            return configs.resolve(config)
        except ConfigError as error:
            said = str(error)
            if isinstance(error, SettingsError):
                placed = [(spec.place_of(path, self.algo, self.settings), each) for path, each in error.mistakes]
                said = "\n".join(f"{place}: {each}" if place else each for place, each in placed)
            shared = [key for key in {**spec.set, **spec.grid} if key.startswith("algo.")]
            hint = (
                f"\nA setting of one algorithm alone stands under its name, in a sweep's file: "
                f"algos: {{{', '.join(spec.algos)}}}, each with its own settings, as in vimpo: {{{shared[0]}: ...}}"
                if shared and len(spec.algos) > 1
                else ""
            )
            raise ConfigError(f"arm {self.name!r}, condition {self.condition!r}: {said}{hint}") from error


def parse_noises(text: str) -> list[configs.PluginRef]:
    """`group_flip:0.25+drop:0.1`, as configs have it."""
    from rlkit.scoring.noise import parse_noise

    return [configs.PluginRef(**parse_noise(part.strip())) for part in text.split("+")]


def arms(spec: SweepConfig) -> list[Arm]:
    """Every algorithm under every noise with every combination of settings, in the order of the file."""
    found = []
    variants = list(_variants(spec))
    for noise, variant, (algo, own) in itertools.product(spec.noise, variants, spec.algos.items()):
        mine = {key: value for key, value in variant.items() if is_own(key)}
        shared = {key: value for key, value in variant.items() if not is_own(key)}
        condition = [noise] if noise != "none" or not shared else []
        found.append(
            Arm(
                name=" ".join([algo, *settings_label(mine, variants)]),
                condition=" ".join([*condition, *settings_label(shared, variants)]),
                algo=algo,
                noise=noise,
                settings={**spec.set, **own, **variant},
            )
        )
    names = [(arm.name, arm.condition) for arm in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"the sweep has arm {twice[0][0]!r} under {twice[0][1]!r} twice: leave one out")
    return found


def _variants(spec: SweepConfig) -> Iterator[Settings]:
    rows = [dict(zip(spec.zip, row, strict=True)) for row in zip(*spec.zip.values(), strict=True)] or [{}]
    for combination, row, written in itertools.product(combinations(spec.grid), rows, spec.written):
        yield {**combination, **row, **written}


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Every combination of a grid's values."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def run_name(arm: Arm, seed: int, tried: Mapping[str, Any] | None = None) -> str:
    """Of a run's folder: `vimpo-group_flip_0.25-seed0`."""
    condition = [] if arm.condition == "none" else [arm.condition]
    parts = [arm.name, *condition, *settings_label(tried or {}), f"seed{seed}"]
    return re.sub(r"[^\w.=+-]+", "_", "-".join(parts))


def parse_values(text: str) -> tuple[str, list[Any]]:
    """`key=v1,v2` -> (key, [v1, v2]); commas within brackets, braces and quotes do not part. ConfigError."""
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise ConfigError(f"{text}: expected key=value, or key=value,value,... for several")
    listed = f"[{values}]"
    try:
        whole = yaml.compose(listed, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{text}: the values are not YAML: {error}\nPut quotes around a text with ' #', a comma or a bracket, "
            "which the shell must leave there, as in -s 'data.system=\"End with #### and the number\"'"
        ) from error
    assert isinstance(whole, yaml.SequenceNode)
    return key, [
        _number(configs.parse_value(listed[node.start_mark.index : node.end_mark.index], text)) for node in whole.value
    ]


def _number(value: Any) -> Any:
    """YAML takes 1e-4 for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
