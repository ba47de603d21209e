"""What becomes of a config: it runs, or it is refused with a message that names a key of it."""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

from fuzzed import BASE, KEYS

import rlkit
from rlkit.errors import ConfigError, RlkitError
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import last_step


def outcome(config: dict[str, Any]) -> str:
    """Ran, refused, or stopped: a verifier that has no verdict on these data shows it when it sees them, and so few
    samples may teach nothing. Whatever else it raises is raised, a refusal that names no key too."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rlkit.train({**config, "out": folder, "name": "fuzzed"}, quiet=True)
        except RlkitError as error:
            taught_nothing = "but no update: none had a sample to learn from" in str(error)
            if not taught_nothing and not _names_a_key(str(error), config):
                raise
            return "refused" if isinstance(error, ConfigError) else "stopped"
        run = RunFolder.open(Path(folder) / "fuzzed")
        assert last_step(run.read_metrics()) == 2
        assert run.report.is_file()
    return "ran"


def _names_a_key(said: str, config: dict[str, Any]) -> bool:
    """One that is not of `BASE`, by its whole name, its last or its section's; or any other by its whole name."""
    names = {name for each in leaves(config) if each not in leaves(BASE) for name in (each[0], *each[0].split("."))}
    names |= {key for key in KEYS if "." in key}
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
