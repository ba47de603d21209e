"""Names and shapes of weights on disk, which some models hold in memory under others.

transformers packs the experts of a mixture into one tensor a layer, and renames what has moved since a model was
published. Everybody else (vLLM, a folder, a server) knows the names on disk, so weights travel under those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from rlkit.errors import RlkitError


def alike(model: Any) -> bool:
    """Whether the model's names in memory are those on disk."""
    return not getattr(model, "_weight_conversions", None)


def group(name: str) -> str:
    """What is converted together: a weight's layer, or outside of the layers the weight alone."""
    layer = re.match(r".*?\.\d+\.", name)
    return layer.group() if layer else name


def on_disk(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole groups of weights, under their names and in their shapes on disk."""
    return dict(weights) if alike(model) else revert_weight_conversion(model, dict(weights))


class Intake:
    """Copies weights with the names on disk into a model that stands in memory."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in model.state_dict().items():
            self._groups.setdefault(name if alike(model) else group(name), {})[name] = tensor
        self._shapes: dict[str, dict[str, torch.Size]] = {}
        self._group_of: dict[str, str] = {}
        for key, own in self._groups.items():
            shadows = {name: torch.empty_like(tensor, device="meta") for name, tensor in own.items()}
            self._shapes[key] = {name: shadow.shape for name, shadow in on_disk(model, shadows).items()}
            self._group_of |= dict.fromkeys(self._shapes[key], key)

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy them in; of tied weights one is enough.

        RlkitError for a name the model lacks, another shape, and a weight that did not come.
        """
        come: dict[str, dict[str, Tensor]] = {}
        old = {parameter.data_ptr(): name for name, parameter in self._model.named_parameters()}
        for name, tensor in weights:
            key = self._group_of.get(name)
            if key is None:
                raise RlkitError(f"sync: the sampler's model has no weight {name!r}")
            if tensor.shape != self._shapes[key][name]:
                raise RlkitError(
                    f"sync: {name!r} is {list(tensor.shape)}, the sampler's is {list(self._shapes[key][name])}"
                )
            come.setdefault(key, {})[name] = tensor
            if come[key].keys() == self._shapes[key].keys():
                self._take(key, come.pop(key))
                for own in self._groups[key].values():
                    old.pop(own.data_ptr(), None)
        if old:
            raise RlkitError(
                f"sync: {len(old)} weights of the sampler were not sent, {next(iter(old.values()))!r} first"
            )

    def _take(self, key: str, weights: Mapping[str, Tensor]) -> None:
        own = self._groups[key]
        if alike(self._model):
            own[key].copy_(weights[key])
            return
        # The way to the disk only moves numbers. Sent along it, their places say where each of them came from.
        sizes = [tensor.numel() for tensor in own.values()]
        places = torch.split(torch.arange(sum(sizes)), sizes)
        sent = on_disk(self._model, {n: p.view(own[n].shape) for n, p in zip(own, places, strict=True)})
        back = torch.empty(sum(sizes), device=next(iter(own.values())).device)
        for name, place in sent.items():
            back[place.flatten().to(back.device)] = weights[name].flatten().to(back)
        for tensor, part in zip(own.values(), torch.split(back, sizes), strict=True):
            tensor.copy_(part.view(tensor.shape))
