"""`rlkit new`: a plugin of one's own, written from templates that are real files and pass their own tests.

In a template `my_plugin` stands for the name, `MyPlugin` for its class, `my_object` for whichever of both is
registered, and `my_kind`, `my_group` and `my_rlkit` for what their names say.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rlkit import distribution, registry
from rlkit.errors import ConfigError

Kind = Literal["algorithm", "reward", "noise", "environment", "suite"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_TEMPLATES = Path(__file__).parent / "templates"
_GROUPS: dict[Kind, registry.Kind] = {
    "algorithm": "algorithms",
    "reward": "rewards",
    "noise": "noise",
    "environment": "environments",
    "suite": "suites",
}
_TRY: dict[Kind, str] = {
    "algorithm": "rlkit run embedded_xs{plugin} --algo {name} --name {name}",
    "reward": "rlkit run embedded_xs{plugin} -s reward={name} --name {name}",
    "noise": "rlkit run embedded_xs{plugin} --noise {name}:0.25 --name {name}",
    "environment": 'rlkit run embedded_xs{plugin} -s environment={name} -s "reward=[]" --name {name}',
    "suite": "rlkit eval --model embedded:xs{plugin} --suite {name} --max-tokens 32",
}


@dataclass(frozen=True)
class Written:
    """What `write` has written, and what to type next."""

    files: list[Path]
    next: list[tuple[str, str]]
    """Commands, and what each is for."""


def write(kind: Kind, name: str, *, single_file: bool = False) -> Written:
    """Write a plugin of that kind and name into the working directory: a package in a folder, or NAME.py alone.

    Raises ConfigError for a name that cannot be or that is taken, and where something stands already; nothing is
    written then.
    """
    target = Path(f"{name}.py" if single_file else name)
    _check_name(kind, name, target)
    texts = {f"{name}.py": _filled(f"{kind}/my_plugin.py", kind, name)}
    if single_file:
        places = {target: texts[f"{name}.py"]}
    else:
        texts["pyproject.toml"] = _filled("pyproject.toml", kind, name)
        texts[f"test_{name}.py"] = _filled(f"{kind}/test_my_plugin.py", kind, name)
        texts["README.md"] = _filled(f"{kind}/README.md", kind, name)
        places = {target / file: text for file, text in texts.items()}
    try:
        for place, text in places.items():
            place.parent.mkdir(exist_ok=True)
            place.write_text(text)
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or target}: {error.strerror}") from error
    return Written(list(places), _next(kind, name, single_file))


def _next(kind: Kind, name: str, single_file: bool) -> list[tuple[str, str]]:
    tried = {
        "algorithm": "trains a very small model with it: half a minute",
        "reward": "trains a very small model with it: half a minute",
        "noise": "trains a very small model under it: half a minute",
        "environment": "trains a very small model in it: half a minute",
        "suite": "measures a very small model on it",
    }[kind]
    if single_file:
        command = _TRY[kind].format(name=name, plugin=f" --plugin {name}.py")
        return [(command, tried), (f"rlkit check {name}.py", "holds it against the contract")]
    return [
        (f"pip install -e {name}", "makes it known by name, wherever you are"),
        (_TRY[kind].format(name=name, plugin=""), tried),
        (f"python -m pytest {name}", "holds it against the contract"),
    ]


def _check_name(kind: Kind, name: str, target: Path) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a plugin: give letters (a to z), digits and underscores, a letter "
            f"first, and none of Python's own words{_suggested(name)}"
        )
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target} exists already: choose another name, or remove it first")
    group = _GROUPS[kind]
    if name in registry.names(group):
        raise ConfigError(f"there is {_article(kind)} {name!r} already (`rlkit list {group}`): choose another name")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise ConfigError(
            f"there is a Python module {name!r} already, which {name}.py would hide from whoever imports it: choose "
            "another name"
        )


def _suggested(name: str) -> str:
    close = re.sub(r"\W+", "_", name.strip(), flags=re.ASCII).lstrip("_0123456789").rstrip("_")
    close = f"my_{close}" if keyword.iskeyword(close) else close
    return f"; {close!r} would do" if close else ""


def _article(kind: Kind) -> str:
    return {"algorithm": "an algorithm", "environment": "an environment"}.get(kind, f"a {kind}")


def _filled(template: str, kind: Kind, name: str) -> str:
    class_name = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    values = {
        "my_kind": kind,
        "my_group": _GROUPS[kind],
        "my_rlkit": distribution.NAME,
        "my_object": class_name if kind in ("noise", "environment") else name,
        "my_plugin": name,
        "my-plugin": re.sub("_+", "-", name).strip("-"),
        "MyPlugin": class_name,
    }
    # In one go: a name may hold a placeholder.
    return re.sub("|".join(values), lambda found: values[found[0]], (_TEMPLATES / template).read_text())
