"""What a run knows between two steps, besides the engines: typed, and with a version of its own in checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from rlkit.errors import RlkitError
from rlkit.interfaces.learning import State

VERSION = 2


@dataclass(frozen=True)
class Place:
    """How far a run has gone through its data."""

    problems: int = 0
    """Problems taken: see `rlkit.data.Cursor`."""
    replacements: int = 0
    """Problems taken to replace groups that taught nothing, from an order of their own."""


@dataclass(kw_only=True)
class RunState:
    step: int = 0
    """Steps done."""
    place: Place = field(default_factory=Place)
    """Where the next step begins."""
    not_finite: int = 0
    """Updates in a row that were not finite."""
    algorithm: State = field(default_factory=dict)
    """What the algorithm remembers."""
    ahead: dict[str, Any] | None = None
    """In a checkpoint: the rollout of the next step, where it was there before this one was learnt from; see
    rollouts.py."""

    def saved(self) -> dict[str, Any]:
        """Plain data and tensors, to be read by `restored`."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def restored(cls, saved: dict[str, Any], where: str) -> Self:
        """RlkitError for what another rlkit wrote; `where` is for the message."""
        found = dict(saved)
        version, known = found.pop("version", "none"), cls.__dataclass_fields__.keys()
        if version != VERSION or found.keys() != known:
            differs = [f"{key} is missing" for key in known if key not in found]
            differs += [f"{key} is unknown" for key in found if key not in known]
            raise RlkitError(
                f"{where} holds a run's state of version {version}, and this rlkit reads version {VERSION}"
                + (f" ({', '.join(differs)})" if differs else "")
                + ": resume it with the rlkit that made it (provenance.json names it), or begin the run anew"
            )
        return cls(**found | {"place": Place(**found["place"])})
