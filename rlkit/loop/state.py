"""What a run knows between two steps, besides the engines: typed, and with a version of its own in checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from rlkit.errors import RlkitError
from rlkit.interfaces.learning import State

VERSION = 1


@dataclass(kw_only=True)
class RunState:
    step: int = 0
    """Steps done."""
    problems: int = 0
    """Problems taken from the data: see `rlkit.data.Cursor`."""
    replacements: int = 0
    """Problems taken to replace groups that taught nothing, from an order of their own."""
    not_finite: int = 0
    """Updates in a row that were not finite."""
    algorithm: State = field(default_factory=dict)
    """What the algorithm remembers."""

    def saved(self) -> dict[str, Any]:
        """Plain data and tensors, to be read by `restored`."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def restored(cls, saved: dict[str, Any], where: str) -> Self:
        """RlkitError for what another rlkit wrote; `where` is for the message."""
        found = dict(saved)
        version = found.pop("version", None)
        if version != VERSION or found.keys() != cls.__dataclass_fields__.keys():
            raise RlkitError(
                f"{where} holds a run's state of version {version or 'none'}, and this rlkit reads version {VERSION}: "
                "resume it with the rlkit that made it (provenance.json names it), or begin the run anew"
            )
        return cls(**found)
