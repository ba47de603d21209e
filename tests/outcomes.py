"""What becomes of a config: it runs, or it is refused with a message that names a key of it."""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import rlkit
from rlkit.errors import ConfigError
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import last_step


def outcome(config: dict[str, Any]) -> str:
    """ "ran" or "refused"; whatever else it raised is raised, a refusal that names no key too."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rlkit.train({**config, "out": folder, "name": "fuzzed"}, quiet=True)
        except ConfigError as error:
            if _names_a_key(str(error), config):
                return "refused"
            raise
        run = RunFolder.open(Path(folder) / "fuzzed")
        assert last_step(run.read_metrics()) == 2
        assert run.report.is_file()
    return "ran"


def _names_a_key(said: str, config: dict[str, Any]) -> bool:
    """By its whole name, its last or its section's."""
    names = {name for key, _ in leaves(config) for name in (key, *key.split("."))}
    return any(re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", said) for name in names)


def leaves(section: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Keys with dots, and what they are set to."""
    found: list[tuple[str, Any]] = []
    for name, value in section.items():
        if isinstance(value, dict) and value:
            found += leaves(value, f"{before}{name}.")
        else:
            found.append((before + name, value))
    return found
