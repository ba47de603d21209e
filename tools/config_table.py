"""Print the tables of settings in docs/, as Markdown, from the pydantic models that define them.

    python tools/config_table.py                   every field of a run's config (docs/configuration.md)
    python tools/config_table.py algorithms vimpo  the options of a plugin (docs/algorithms.md)

`tests/unit/test_docs.py` holds the pages against it.
"""

from __future__ import annotations

import sys

from pydantic import BaseModel

from rlkit import registry
from rlkit.config import RunConfig
from rlkit.config.keys import Key, keys

HEAD = "| key | type | default | what it is |\n|---|---|---|---|"


def config_table(bounds: bool = False) -> str:
    """Every field of RunConfig; sections with dots. `bounds`: behind the type, what a value may be."""
    return _table(RunConfig, bounds)


def options_table(kind: registry.Kind, name: str, bounds: bool = False) -> str:
    """The options of a plugin."""
    return _table(registry.find(kind, name).options, bounds)


def _table(model: type[BaseModel], bounds: bool) -> str:
    return "\n".join([HEAD, *(_row(key, bounds) for key in keys(model))])


def _row(key: Key, bounds: bool) -> str:
    default = f"`{key.default}`" if key.default else "**required**"
    kind = f"{key.type}, {key.bounds}" if bounds and key.bounds else key.type
    cells = [f"`{key.name}`", kind, default, key.meaning.replace("|", r"\|")]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            print(config_table())
        case [kind, name] if kind in registry.KINDS:
            print(options_table(kind, name))
        case _:
            sys.exit(__doc__)
