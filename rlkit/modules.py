"""Users' Python, imported: a file as `python file.py` would have it, a module as `python -m module`.

So a file finds its neighbours, with or without a package around it, in whichever process it is loaded: the trainer, on
each rank, and the workers that rewards run in.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from rlkit.errors import ConfigError

_files: dict[Path, ModuleType] = {}
_folders: set[Path] = set()
"""Where those files found their neighbours."""


def is_file(name: str) -> bool:
    """A path to a file; else the name of a module."""
    return name.endswith(".py") or os.sep in name


def load(name: str, what: str) -> ModuleType:
    """Import a file, once, or a module, which may lie in the working directory. `what` it is opens messages.

    Raises ConfigError where it does not exist, and whatever it raises itself.
    """
    if is_file(name):
        return _load_file(Path(name), what)
    with _first_on_path(Path.cwd()):
        if not _exists(name):
            raise ConfigError(
                f"{what} module {name!r} does not exist: give a module that can be imported or lies in the working "
                f"directory ({Path.cwd()}), or a path ending in .py"
            )
        module = importlib.import_module(name)
    if module.__file__ is None and hasattr(module, "__path__"):
        raise _is_folder(Path(name.replace(".", os.sep)), what)
    return module


def _is_folder(given: Path, what: str) -> ConfigError:
    """A folder that is no package: nothing in it has been imported."""
    files = sorted((file for file in given.glob("*.py")), key=lambda file: file.stem != given.name)
    as_in = f", as in {files[0]}" if files else ""
    return ConfigError(f"{what} {str(given)!r} is a folder, not a Python file: give the file in it{as_in}")


def _exists(module: str) -> bool:
    parent = module.rpartition(".")[0]
    return (not parent or _exists(parent)) and importlib.util.find_spec(module) is not None


def _load_file(given: Path, what: str) -> ModuleType:
    if given.is_dir():
        raise _is_folder(given, what)
    if not given.is_file():
        raise ConfigError(f"{what} file {str(given)!r} does not exist (looked in {Path.cwd()})")
    path = given.resolve()
    if path not in _files:
        package = _package(path)
        root = path.parents[len(package)]
        with _first_on_path(path.parent, root), _apart(path.parent, root, package=package[0] if package else None):
            _files[path] = _of_package((*package, path.stem), path, what) if package else _alone(path)
    return _files[path]


def _package(path: Path) -> tuple[str, ...]:
    """Names of the packages around a file, outermost first; none where it lies in no package that can be imported."""
    names: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return tuple(names) if all(name.isidentifier() for name in (*names, path.stem)) else ()


def _of_package(names: tuple[str, ...], path: Path, what: str) -> ModuleType:
    module = importlib.import_module(".".join(names))
    found = Path(module.__file__ or "").resolve()
    if found != path:
        raise ConfigError(
            f"{what} file {str(path)!r} lies in a package {names[0]!r}, and {found} has the same name: rename the "
            "package, or delete its __init__.py if it is meant to be a plain folder"
        )
    return module


def _alone(path: Path) -> ModuleType:
    """A file under a name of its own: its stem may be another's, or a library's."""
    name = f"rlkit_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
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
    return module


@contextlib.contextmanager
def _first_on_path(*folders: Path) -> Iterator[None]:
    """Imports look there first; and from then on last, where a function's own imports find it and it hides nothing."""
    there = [str(folder) for folder in dict.fromkeys(folders)]
    before = list(sys.path)
    sys.path[:0] = there
    try:
        yield
    finally:
        for folder in there:
            sys.path.remove(folder)
        sys.path += [folder for folder in there if folder not in before]


@contextlib.contextmanager
def _apart(*folders: Path, package: str | None) -> Iterator[None]:
    """Neighbours of a file that was loaded before do not stand for this one's of the same name, nor does another
    package for its own."""
    own = {
        entry.stem
        for folder in folders
        for entry in folder.iterdir()
        if entry.suffix == ".py" or (entry / "__init__.py").is_file()
    }
    aside = {
        name: module
        for name, module in sys.modules.items()
        if (top := name.partition(".")[0]) in own
        and (_lies_in(module, _folders - set(folders)) or (top == package and not _lies_in(module, set(folders))))
        and top != "rlkit"
    }
    for name in aside:
        del sys.modules[name]
    _folders.update(folders)
    try:
        yield
    finally:
        sys.modules.update(aside)


def _lies_in(module: ModuleType, folders: set[Path]) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and any(Path(file).resolve().is_relative_to(folder) for folder in folders)
