"""What ships with rlkit so that it runs with no hub and no download: small models and their tasks."""

from __future__ import annotations

from pathlib import Path

from rlkit.errors import ConfigError, nearest

PREFIX = "embedded:"
MODELS = ("s", "xs", "xs-countdown", "xs-sorting", "xs-turns")
PLAYED = ("guessing", "calculator", "keys")
"""Tasks of several turns, each for the environment of its name."""
TASKS = ("arithmetic", "countdown", "sorting", *PLAYED)


def wants_trust(error: Exception) -> str:
    """What to do where a model is refused for the code that its folder brings, for the end of a message."""
    if "trust_remote_code" not in str(error):
        return ""
    return (
        ". Its folder brings Python code of its own, which has not run: read it, and where you trust it, set "
        "model.trust_remote_code: true for a run, or give a command --trust-remote-code"
    )


def resolve(path: str) -> str:
    """The folder of an embedded model (`embedded:s`); any other path as it is.

    Raises ConfigError for a name that does not ship.
    """
    if not path.startswith(PREFIX):
        return path
    name = path.removeprefix(PREFIX)
    if name not in MODELS:
        raise ConfigError(f"no embedded model {path!r}{nearest(path, [PREFIX + known for known in MODELS])}")
    return str(Path(__file__).parent / name)
