"""Settings out of presets, YAML files, plain data and the command line."""

from __future__ import annotations

import importlib.resources
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlkit.config.keys import full_name, one_key
from rlkit.config.meant import instead_in
from rlkit.config.places import Places
from rlkit.config.run import RunConfig
from rlkit.config.sections import as_ref
from rlkit.errors import ConfigError, nearest
from rlkit.mistakes import explain


def presets() -> dict[str, str]:
    """Name -> YAML text of the configs that ship."""
    folder = importlib.resources.files("rlkit_configs")
    files = [f for f in folder.iterdir() if f.name.endswith(".yaml")]
    return {f.name.removesuffix(".yaml"): f.read_text() for f in sorted(files, key=lambda f: f.name)}


def load(
    source: str | Path | dict[str, Any],
    overrides: list[str] | None = None,
    algo: str | None = None,
) -> RunConfig:
    """Read a preset's name, a YAML file or plain data; then `algo`, then overrides of the form key=value.

    Raises ConfigError for what cannot be read, unknown keys, wrong types and settings that do not fit together.
    """
    if isinstance(source, dict):
        data, places = source, Places()
    else:
        data, places = read_yaml(*_read(str(source)))
    data = {key: _section(key, value) for key, value in data.items()}
    if algo is not None:
        named = as_ref(data.get("algo"))
        if not (isinstance(named, dict) and named.get("kind") == algo):
            data["algo"] = {"kind": algo}
            places.set_elsewhere("algo")
    # A plugin's kind comes first: it drops the options of the one before.
    for override in sorted(overrides or [], key=lambda o: not o.partition("=")[0].endswith(".kind")):
        places.set_elsewhere(set_key(data, override, full_name))
    try:
        return RunConfig.model_validate(data).read_from(places)
    except ValidationError as error:
        raise places.point(explain(error, RunConfig, instead=instead_in(RunConfig)), in_file=True) from error


def _section(key: str, value: Any) -> Any:
    """`model: embedded:s` as the section that it is short for."""
    inner = one_key(key)
    return value if inner is None or value is None or isinstance(value, dict) else {inner: value}


def _read(source: str) -> tuple[str, str]:
    shipped = presets()
    if source in shipped:
        return shipped[source], f"preset {source}"
    path = Path(source)
    if not path.is_file():
        raise ConfigError(
            f"no config {source!r}: neither a file (looked in {Path.cwd()}) nor a preset{nearest(source, shipped)}"
        )
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from error


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Keys and values of a YAML file; `where` is for messages. Warns of a comment that cuts off what looks like text.

    Raises ConfigError for what is not YAML, for what holds no keys, and for a key that is there twice."""
    return read_yaml(text, where)[0]


def read_yaml(text: str, where: str) -> tuple[dict[str, Any], Places]:
    """What `parse_yaml` reads, and where each key stands."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(_not_yaml(error, where)) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected keys and values, got {type(data).__name__}")
    for before, comment in comments(text):
        if _cuts(before, comment):
            line = before.end_mark.line + 1
            warnings.warn(
                f"{where}:{line}: the text ends at {before.value!r}, for ' #' begins a comment in YAML, and "
                f"{comment!r} is not read. Put quotes around the whole text if it is part of it",
                stacklevel=3,
            )
    return data, Places(where, text)


def _not_yaml(error: yaml.YAMLError, where: str) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"{where} is not YAML: {error}"
    # Of an unclosed bracket, what is wrong is found at the end of the file.
    begun = f" ({error.context}, from line {error.context_mark.line + 1})" if error.context_mark else ""
    tab = ". It is a tab: YAML indents with spaces alone" if r"'\t'" in str(error.problem) else ""
    return f"{where}:{error.problem_mark.line + 1}: not YAML: {error.problem}{begun}{tab}"


def comments(text: str) -> Iterator[tuple[Any, str]]:
    """The comments that follow a value or a key on its own line: (the YAML token before, the comment's text)."""
    if "#" not in text:
        return
    tokens = list(yaml.scan(text))
    for before, after in itertools.pairwise(tokens):
        between = text[before.end_mark.index : after.start_mark.index].partition("\n")[0].strip()
        if between.startswith("#"):
            yield before, between


def _cuts(before: Any, comment: str) -> bool:
    """Whether a comment looks as if it had been meant as a part of the text before it: several plain words, and then
    no `# ` as comments have it. Numbers, switches and single words have comments behind them."""
    words = isinstance(before, yaml.ScalarToken) and before.plain and len(before.value.split()) > 1
    return words and len(comment) > 1 and not comment[1].isspace()


def parse_value(text: str, where: str) -> Any:
    """A value of the command line, read as YAML; but a plain text is taken as it was typed, where YAML would cut it
    at a `#`, fold its lines or take 010 for 8. ConfigError for what is not YAML, and for a comment beside brackets or
    quotes."""
    try:
        node, value = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
        commented = text.lstrip().startswith("#") or any(comments(text))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{where}: the value is not YAML: {error}\nText is taken as it stands within quotes, which the shell must "
            "leave there, as in -s 'data.system=\"A text: with colons\"'"
        ) from error
    plain = node is None or (isinstance(node, yaml.ScalarNode) and node.style is None)
    if commented and not plain:
        raise ConfigError(
            f"{where}: ' #' begins a comment in YAML, and what follows it would be lost: put quotes around the text "
            "that it belongs to, or leave it out"
        )
    changed = isinstance(value, int) and not isinstance(value, bool) and str(value) != text.strip().removeprefix("+")
    return text if plain and (commented or changed or isinstance(value, str)) else value


def set_key(data: dict[str, Any], override: str, named: Callable[[str, Any], str] = lambda key, _: key) -> str:
    """Set a key=value of the command line in plain data; dots go into sections. ConfigError for what is not one.

    named: what a key is called in full, by its name and value.
    Returns the key whose value is another one now: the section, where it is another plugin's.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"-s {override}: expected key=value, as in -s optimizer.lr=1e-4")
    value = parse_value(text, f"-s {override}")
    key = named(key, value)
    *path, last = key.split(".")
    here = data
    for part in path:
        inner = here.get(part) or {}
        if isinstance(inner, list) and len(inner) == 1:
            here[part] = [dict(as_ref(inner[0]))]
            here = here[part][0]
            continue
        inner = as_ref(inner)
        if not isinstance(inner, dict):
            raise ConfigError(f"-s {override}: {part!r} is {inner!r} and has no keys")
        here[part] = dict(inner)
        here = here[part]
    if last == "kind" and here.get("kind") != value:
        here.clear()
        key = ".".join(path)
    here[last] = value
    return key
