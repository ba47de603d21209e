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


def config_table() -> str:
    """Every field of RunConfig; sections with dots."""
    return _table(RunConfig)


def options_table(kind: registry.Kind, name: str) -> str:
    """The options of a plugin."""
    return _table(registry.find(kind, name).options)


def _table(model: type[BaseModel]) -> str:
    return "\n".join([HEAD, *map(_row, keys(model))])


def _row(key: Key) -> str:
    default = f"`{key.default}`" if key.default else "**required**"
    cells = [f"`{key.name}`", key.type, default, key.meaning.replace("|", r"\|")]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            print(config_table())
        case [kind, name] if kind in registry.KINDS:
            print(options_table(kind, name))
        case _:
            sys.exit(__doc__)
