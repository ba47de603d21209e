"""How new weights get to a server, one file a route: `gloo` between CPUs, `nccl` between GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Route(Protocol):
    """The trainer's end: opened once, used for each sync."""

    def send(self, weights: Mapping[str, Tensor], changed: Set[str]) -> None:
        """Those in `changed`; the server has the others."""
        ...

    def close(self) -> None: ...


class Receiver(Protocol):
    """The server's end: vLLM's four steps, by the names under which its own trainer's side calls them."""

    url: str

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...
