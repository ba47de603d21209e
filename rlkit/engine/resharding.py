"""DeepSpeed's state of a model, read with other ranks or another ZeRO stage than it was written with.

What learns has three tensors a parameter: its weight in float32 and AdamW's two moments. On disk each is a row of
pieces, which are the parameter, flattened, in the order of ranks:

    stage 0      one piece, in the model's file
    stages 1, 2  the parameters stand behind each other, and the whole is cut into as many equal parts as ranks
    stage 3      each parameter by itself is cut into as many equal parts as ranks, the last ones padded

What a rank holds of a parameter is one span of it, in every stage. So it reads the pieces that its span lies in, where
they are: nothing is gathered, and nothing is written. (DeepSpeed's own converter writes all of it anew, a file a piece,
and from stages 1 and 2 there is no way to 3 or 0.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlkit.engine import distributed, states
from rlkit.errors import RlkitError

WEIGHT = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Layout:
    """How a model and its optimizer lie on the ranks."""

    ranks: int
    zero_stage: int
    dtype: str

    @property
    def parts(self) -> int:
        """Into how many the weights themselves are cut."""
        return self.ranks if self.zero_stage == 3 else 1

    @property
    def options(self) -> str:
        """What to type for it."""
        return f"--nproc {self.ranks} -s engine.zero_stage={self.zero_stage} -s model.dtype={self.dtype}"

    def __str__(self) -> str:
        return f"{self.ranks} rank{'s' * (self.ranks > 1)} at ZeRO {self.zero_stage}, {self.dtype}"


def span(pieces: Sequence[Tensor], start: int, size: int) -> Tensor:
    """[size] of what `pieces`, flattened, are behind each other, from `start` on; zeros past its end."""
    found, at = [torch.empty(0, dtype=pieces[0].dtype)], 0
    for piece in pieces:
        first, last = max(start - at, 0), min(start + size - at, piece.numel())
        if first < last:
            found.append(piece.flatten()[first:last])
        at += piece.numel()
    whole = torch.cat(found)
    return F.pad(whole, (0, size - whole.numel()))


class Saved:
    """What an engine wrote into a folder, opened: hardly any of it is in memory yet.

    Args:
        shapes: of all parameters, by name.
        learns: the names of those that learn, in the order of the module.

    Raises RlkitError where files are missing or damaged, or of a form that is not known here.
    """

    def __init__(
        self, folder: Path, layout: Layout, shapes: Mapping[str, Sequence[int]], learns: Sequence[str]
    ) -> None:
        self.pieces: dict[str, dict[str, list[Tensor]]] = {name: {} for name in learns}
        """Of what learns: by name, then `WEIGHT` and `MOMENTS`."""
        self.step: Tensor | None = None
        """Updates that AdamW counts; None: it has made none, and has no moments."""
        try:
            self._read(folder, layout, shapes.keys() - self.pieces.keys())
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise RlkitError(
                f"{folder} is of a form that rlkit can only read as it was saved ({type(error).__name__}: {error}): "
                f"resume with {layout.options}"
            ) from error
        rows = [(name, found.get(key, [])) for name, found in self.pieces.items() for key in (WEIGHT, *found)]
        for name, row in (*rows, *self.frozen.items()):
            if sum(piece.numel() for piece in row) < math.prod(shapes[name]):
                raise RlkitError(
                    f"{folder} holds only a part of {name}: the checkpoint is damaged; resume from another"
                )

    def _read(self, folder: Path, layout: Layout, frozen: Set[str]) -> None:
        ranks = [f"zero_pp_rank_{rank}_mp_rank_00" for rank in range(layout.ranks)]
        names = ranks if layout.zero_stage == 3 else ["mp_rank_00"]
        models = [_opened(folder, f"{name}_model_states.pt") for name in names]
        shards = [_opened(folder, f"*{name}_optim_states.pt") for name in (ranks if layout.zero_stage else [])]
        whole = models[0]["module"]
        self.counters = {name: models[0][name] for name in ("global_steps", "global_samples", "skipped_steps")}
        self.buffers: dict[str, Tensor] = {name: whole[name] for name in models[0]["buffer_names"]}
        if layout.zero_stage == 3:
            self.frozen = {name: [model["frozen_param_fragments"][name] for model in models] for name in frozen}
        else:
            self.frozen = {name: [whole[name]] for name in frozen}
        if layout.zero_stage == 0:
            moments = models[0]["optimizer"]["state"]
            for index, name in enumerate(self.pieces):
                self._add(name, whole[name], moments.get(index, {}))
        for rank, shard in enumerate(shards):
            state = shard["optimizer_state_dict"]
            if layout.zero_stage == 3:
                groups = [list(_cut(group, rank, layout.ranks)) for group in models[0]["param_shapes"]]
                self._add_flat(groups, state["fp32_flat_groups"], state["optimizer_state_dict"]["state"])
            else:
                groups = [[(name, at.start, at.numel) for name, at in g.items()] for g in state["param_slice_mappings"]]
                self._add_flat(groups, state["single_partition_of_fp32_groups"], state["base_optimizer_state"]["state"])

    def _add_flat(
        self, groups: Sequence[Sequence[tuple[str, int, int]]], flats: Sequence[Tensor], moments: Mapping[int, Any]
    ) -> None:
        """Groups of parameters: a rank's flat tensors, and name, place and size of each parameter's piece in them."""
        for index, (flat, group) in enumerate(zip(flats, groups, strict=True)):
            for name, at, size in group:
                own = {key: v[at : at + size] if v.dim() else v for key, v in moments.get(index, {}).items()}
                self._add(name, flat[at : at + size], own)

    def _add(self, name: str, weight: Tensor, moments: Mapping[str, Tensor]) -> None:
        found = self.pieces[name]
        found.setdefault(WEIGHT, []).append(weight)
        if moments:
            for key in MOMENTS:
                found.setdefault(key, []).append(moments[key])
            self.step = moments["step"] if self.step is None else torch.maximum(self.step, moments["step"])


def _cut(shapes: Mapping[str, Sequence[int]], rank: int, ranks: int) -> Iterator[tuple[str, int, int]]:
    """Name, place and size of each parameter's piece in a rank's flat tensor at stage 3; padding is left out."""
    at = 0
    for name, shape in shapes.items():
        whole = math.prod(shape)
        size = math.ceil(whole / ranks)
        yield name, at, max(0, min(size, whole - rank * size))
        at += size


def _opened(folder: Path, pattern: str) -> dict[str, Any]:
    files = list(folder.glob(pattern))
    if len(files) != 1:
        raise RlkitError(f"{folder}/{pattern} is missing: the checkpoint is damaged; resume from another")
    return states.read(files[0], mmap=True)


class Place(NamedTuple):
    """Where a rank holds its span of a parameter that learns."""

    flat: Tensor
    """A tensor that the optimizer steps, float32."""
    at: int
    """In it, flattened."""
    start: int
    """In the parameter, flattened."""
    size: int


@torch.no_grad()
def place(saved: Saved, engine: Any, module: nn.Module, stage: int) -> None:
    """Put what was saved into a DeepSpeed engine that has made no update yet; call `renew` after it (see `Engine`)."""
    optimizer = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    named: dict[str, Any] = dict(module.named_parameters())
    for name, row in saved.frozen.items():
        _fill(named[name], row, stage)
    for name, buffer in module.named_buffers():
        if name in saved.buffers:
            buffer.copy_(saved.buffers[name])
    for name, pieces in saved.pieces.items():
        if stage == 3:
            _fill(named[name], pieces[WEIGHT], stage)
        where = _place_of(named[name], engine.optimizer, stage)
        if where is None:
            continue
        flat, at, start, size = where
        flat.view(-1)[at : at + size].copy_(span(pieces[WEIGHT], start, size))
        if saved.step is None:
            continue
        state: dict[str, Tensor] = optimizer.state[flat]
        if not state:
            state.update({key: torch.zeros_like(flat) for key in MOMENTS})
        state["step"] = saved.step.to(flat.device, torch.float32, copy=True)
        for key in MOMENTS:
            if key in pieces:
                state[key].view(-1)[at : at + size].copy_(span(pieces[key], start, size))
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    for name, count in saved.counters.items():
        setattr(engine, name, count)


def _fill(parameter: Any, pieces: Sequence[Tensor], stage: int) -> None:
    """A weight as the passes see it."""
    own = parameter.ds_tensor.data if stage == 3 else parameter.data
    own.copy_(span(pieces, distributed.rank() * own.numel() if stage == 3 else 0, own.numel()).view_as(own))


def _place_of(parameter: Any, optimizer: Any, stage: int) -> Place | None:
    """None: this rank holds nothing of it."""
    if stage == 0:
        return Place(parameter, 0, 0, parameter.numel())
    if stage == 3:
        group, at, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        return Place(optimizer.fp32_partitioned_groups_flat[group], at, distributed.rank() * size, size)
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat = optimizer.optimizer.param_groups[mapping.param_group_index]["params"][0]
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Place(flat, here.start, there.start, here.numel)
