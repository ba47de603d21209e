"""What pip knows of this project: its name there, what to type for an extra, which versions were tested. No torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tomllib
from pathlib import Path

from rlkit.errors import ConfigError

NAME = "rlkit-rlvr"
"""The distribution's name. Import name and command are `rlkit`, which on the Python index is another project's name."""


def tested() -> dict[str, str]:
    """Package -> the newest version that the tests were run with, from tested.toml."""
    return tomllib.loads((Path(__file__).parent / "tested.toml").read_text())


def version(distribution: str) -> str | None:
    """Of what is installed; None where it is not."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def install(extra: str) -> str:
    """The command that brings an extra."""
    return f"pip install '{NAME}[{extra}]'"


def check_extra(what: str, extra: str) -> None:
    """ConfigError where the package of an extra, which `what` needs, is not installed."""
    if importlib.util.find_spec(extra) is None:
        raise ConfigError(f"{what}: the package is not installed. Run: {install(extra)}")
