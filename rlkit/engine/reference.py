"""The reference policy: frozen, or moving behind the policy; a model of its own, or the policy under other adapters.

Within a rollout it stands still. A moving one takes a step between rollouts:

    average   ref <- decay * ref + (1 - decay) * policy, after each rollout or each update, in float32
    copy      ref <- policy, every so many rollouts

With LoRA the reference has no weights of its own but the adapters': frozen is the model without them, and a moving one
averages or copies the adapters' tensors (so an average is one of A and of B, not of their product).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rlkit.config import AverageReference, CopyReference, FrozenReference, RunConfig
from rlkit.engine import distributed, states
from rlkit.engine.resharding import span
from rlkit.errors import ConfigError, RlkitError
from rlkit.interfaces.learning import Rollout
from rlkit.interfaces.names import Stat
from rlkit.interfaces.rewards import SampleKey
from rlkit.ops.head import Head


class Reference(Protocol):
    """What the policy is compared with. Every method is collective: call it on all ranks alike."""

    @property
    def kind(self) -> str:
        """As the config's `reference.kind` says it."""
        ...

    @property
    def kept(self) -> Kept | None:
        """What `keep` has kept; None: nothing."""
        ...

    def keep(self, rollout: Rollout) -> None:
        """Pass over a rollout, and keep this rank's hidden states until `after_rollout`."""
        ...

    def hidden_states(self, place: Mapping[str, Tensor]) -> Tensor:
        """[N, d'] states that predict the N tokens of a micro-batch (see `place_rows`), by a pass."""
        ...

    def head(self) -> Head | None:
        """Its head, whole, for as long as a pass lasts; None: it is the policy's own."""
        ...

    def logprobs(self, rollout: Rollout) -> Tensor:
        """[B, T] of the rollout's tokens, 0 outside `mask`: float32 on the CPU, on every rank."""
        ...

    def after_update(self) -> None:
        """The policy has made an optimizer update."""
        ...

    def after_rollout(self) -> None:
        """The policy has learnt all it will from a rollout; only now may the reference move."""
        ...

    def save(self, folder: Path) -> None:
        """Write what moved; nothing for a frozen one."""
        ...

    def load(self, folder: Path, parts: int) -> None:
        """Go on from what `save` wrote, when the weights were cut into so many parts (see `Layout`)."""
        ...


@dataclass(frozen=True)
class Kept:
    """Hidden states of a rollout's rows, in host memory. They are in the dtype they were computed in, so nothing is
    rounded: what is compared with them is what a pass anew would give."""

    rows: Mapping[SampleKey, Tensor]
    """[n, d'] at the n tokens in the row's mask."""
    empty: Tensor
    """[0, d']"""

    def of(self, rollout: Rollout) -> Tensor:
        """[N, d'] of a micro-batch, on the CPU. RlkitError where they are not those of its rows."""
        found = [self.empty]
        for key, count in zip(rollout.keys, rollout.mask.sum(1).tolist(), strict=True):
            states = self.rows.get(key, self.empty) if count else self.empty
            if len(states) != count:
                raise RlkitError(
                    f"{key}: {len(states)} hidden states of the reference are kept, and its mask has {count} tokens: "
                    "`measure` and `learn` were given different rollouts, or this is a fault in rlkit"
                )
            found.append(states)
        return torch.cat(found)


class Model(Protocol):
    """What a reference asks of an engine (`rlkit/engine/deepspeed.py`)."""

    def hidden_states(self, place: Mapping[str, Tensor], *, adapters: bool = True) -> Tensor: ...

    def head(self, *, adapters: bool = True) -> Head: ...

    @property
    def head_has_adapters(self) -> bool: ...

    def keep(self, rollout: Rollout, states: Callable[[Mapping[str, Tensor]], Tensor]) -> Kept: ...

    def own_logprobs(self, rollout: Rollout, *, adapters: bool = True) -> Tensor: ...

    def local_weights(self, trained: bool = False) -> list[Tensor]: ...

    @property
    def part(self) -> int: ...

    def renew(self) -> None: ...


COMPARED: frozenset[Stat] = frozenset({"ref_logprobs", "token_kl"})
"""Statistics that need a reference."""


@dataclass(frozen=True)
class Compared:
    """What a pass compares with."""

    reference: Reference
    head: Head | None
    """Its head, whole; None: the policy's own."""

    @classmethod
    def by(cls, reference: Reference | None, want: frozenset[Stat]) -> Compared | None:
        """None where none of the statistics needs a reference."""
        if reference is None or want.isdisjoint(COMPARED):
            return None
        return cls(reference, reference.head())

    def hidden_states(self, rollout: Rollout, place: Mapping[str, Tensor]) -> Tensor:
        """[N, d'] of a micro-batch, which `place_rows` has placed."""
        kept = self.reference.kept
        return self.reference.hidden_states(place) if kept is None else kept.of(rollout).to(place["tokens"].device)


def check_reference(want: frozenset[Stat], reference: Reference | None) -> None:
    if reference is None and not want.isdisjoint(COMPARED):
        raise RlkitError(f"{', '.join(sorted(want & COMPARED))}: needs a reference policy")


class FrozenModel:
    """A model of its own that never changes."""

    kind = "frozen"
    kept: Kept | None = None

    def __init__(self, engine: Model) -> None:
        self._engine = engine

    def keep(self, rollout: Rollout) -> None:
        self.kept = self._engine.keep(rollout, self.hidden_states)

    def hidden_states(self, place: Mapping[str, Tensor]) -> Tensor:
        return self._engine.hidden_states(place)

    def head(self) -> Head | None:
        return self._engine.head()

    def logprobs(self, rollout: Rollout) -> Tensor:
        return self._engine.own_logprobs(rollout)

    def after_update(self) -> None:
        pass

    def after_rollout(self) -> None:
        self.kept = None

    def save(self, folder: Path) -> None:
        pass

    def load(self, folder: Path, parts: int) -> None:
        pass


class AdaptersOff(FrozenModel):
    """The policy's own model without its adapters, which is what it began as."""

    def hidden_states(self, place: Mapping[str, Tensor]) -> Tensor:
        return self._engine.hidden_states(place, adapters=False)

    def head(self) -> Head | None:
        return self._engine.head(adapters=False) if self._engine.head_has_adapters else None

    def logprobs(self, rollout: Rollout) -> Tensor:
        return self._engine.own_logprobs(rollout, adapters=False)


class MovingModel(FrozenModel):
    """A model of its own whose weights follow the policy's."""

    def __init__(self, engine: Model, policy: Model, movement: AverageReference | CopyReference) -> None:
        super().__init__(engine)
        self.kind = movement.kind
        self._follower = Follower(movement, policy.local_weights, engine.local_weights, engine.part)

    def after_update(self) -> None:
        self._follower.after_update()

    def after_rollout(self) -> None:
        super().after_rollout()
        self._follower.after_rollout()
        self._renew()

    def save(self, folder: Path) -> None:
        self._follower.save(folder)

    def load(self, folder: Path, parts: int) -> None:
        self._follower.load(folder, parts)
        self._renew()

    def _renew(self) -> None:
        self._engine.renew()


class MovingAdapters(MovingModel):
    """The policy's own model under adapters that follow the trained ones, put in their place for each pass."""

    def __init__(self, policy: Model, movement: AverageReference | CopyReference) -> None:
        FrozenModel.__init__(self, policy)
        self.kind = movement.kind
        self._ours = [tensor.clone() for tensor in policy.local_weights(trained=True)]
        self._follower = Follower(movement, self._theirs, lambda: self._ours, policy.part)

    def _theirs(self) -> list[Tensor]:
        return self._engine.local_weights(trained=True)

    def hidden_states(self, place: Mapping[str, Tensor]) -> Tensor:
        with self._exchanged():
            return self._engine.hidden_states(place)

    def head(self) -> Head | None:
        if not self._engine.head_has_adapters:
            return None
        with self._exchanged():
            return self._engine.head()

    def logprobs(self, rollout: Rollout) -> Tensor:
        with self._exchanged():
            return self._engine.own_logprobs(rollout)

    @contextlib.contextmanager
    def _exchanged(self) -> Iterator[None]:
        trained = self._theirs()
        before = [tensor.clone() for tensor in trained]
        for tensor, ours in zip(trained, self._ours, strict=True):
            tensor.copy_(ours)
        self._engine.renew()
        try:
            yield
        finally:
            for tensor, kept in zip(trained, before, strict=True):
                tensor.copy_(kept)
            self._engine.renew()


Weights = Callable[[], Sequence[Tensor]]
"""What a rank holds of a model's weights, as `local_weights` gives it."""


class Follower:
    """Weights that follow others, element by element, so that each rank moves what it holds, whatever the ZeRO stage.

    An average is kept in float32 beside what passes see, unless that is float32 itself, on the wanted device, and moves
    between rollouts alone. `part`: which of the parts of the weights this rank holds (see `Engine.part`).
    """

    def __init__(
        self, movement: AverageReference | CopyReference, leading: Weights, following: Weights, part: int
    ) -> None:
        self._movement = movement
        self._leading = leading
        self._following = following
        self._part = part
        self._rollouts = 0
        self._kept: list[Tensor] | None = None
        """None: `following` themselves."""
        if isinstance(movement, AverageReference):
            where = {t.device if movement.keep_on == "device" else torch.device("cpu") for t in following()}
            whole = all(t.dtype == torch.float32 and t.device in where for t in following())
            if movement.by == "update" or not whole:
                host = torch.device("cpu") if movement.keep_on == "host" else None
                self._kept = [t.to(host or t.device, torch.float32, copy=True) for t in following()]

    @torch.no_grad()
    def after_update(self) -> None:
        if isinstance(self._movement, AverageReference) and self._movement.by == "update":
            self._average(self._movement.decay)

    @torch.no_grad()
    def after_rollout(self) -> None:
        self._rollouts += 1
        if isinstance(self._movement, AverageReference):
            if self._movement.by == "rollout":
                self._average(self._movement.decay)
            self._show()
        elif self._rollouts % self._movement.every == 0:
            for tensor, leader in zip(self._following(), self._leading(), strict=True):
                tensor.copy_(leader)

    def _average(self, decay: float) -> None:
        for kept, leader in zip(self._kept or self._following(), self._leading(), strict=True):
            kept.lerp_(leader.to(kept.device, torch.float32), 1 - decay)

    def _show(self) -> None:
        for kept, tensor in zip(self._kept or (), self._following() if self._kept else (), strict=True):
            tensor.copy_(kept)

    def save(self, folder: Path) -> None:
        if self._part != distributed.rank():
            return  # it holds what rank 0 holds
        folder.mkdir(parents=True, exist_ok=True)
        state = {"rollouts": self._rollouts, "weights": [t.cpu() for t in self._kept or self._following()]}
        torch.save(state, folder / _file_of(self._part))

    @torch.no_grad()
    def load(self, folder: Path, parts: int) -> None:
        files = [folder / _file_of(part) for part in range(parts)]
        saved = [states.read(file, mmap=True) for file in files]
        kept = self._kept or self._following()
        if len(saved[0]["weights"]) != len(kept):
            raise ConfigError(
                f"{files[0]} holds a reference of another model: resume with the settings it was made with"
            )
        self._rollouts = saved[0]["rollouts"]
        for tensor, *pieces in zip(kept, *(state["weights"] for state in saved), strict=True):
            tensor.copy_(span(pieces, self._part * tensor.numel(), tensor.numel()).view_as(tensor))
        self._show()


def _file_of(part: int) -> str:
    return f"rank-{part}.pt"


def reference_of(policy: Model, config: RunConfig, make: Callable[[], Model]) -> Reference:
    """The reference that the resolved config names. `make` loads a model of its own, frozen; LoRA needs none."""
    movement = config.reference
    lora = config.model.lora is not None
    match movement:
        case AverageReference() | CopyReference():
            return MovingAdapters(policy, movement) if lora else MovingModel(make(), policy, movement)
        case FrozenReference():
            return AdaptersOff(policy) if lora else FrozenModel(make())
    raise RlkitError("an algorithm that compares with a reference was given none")
