"""What a micro-batch leaves in memory on its way through a model: found by having the model's own code go forward and
backward without numbers (PyTorch's meta device), while tensors are counted as they come and go."""

from __future__ import annotations

import functools
import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from rlkit.config import ModelConfig
from rlkit.engine.models import without_numbers

LAYERS = 2
"""Of a deep model the last so many are gone through, and twice as many: what is between is what as many more take."""
TOKENS = 2**20
"""Gone through, at no cost: so many that the gradient of a weight is little beside them."""
FORWARDS = 6
"""What both ways take at most, in operations of a forward pass: with gradient checkpointing some 3."""

_NAME = "rlkit_without_numbers"


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that exist at once, beside those that were there before."""

    def __init__(self, *before: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {self._place(tensor.untyped_storage()) for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return found

    def watch(self, *tensors: Tensor) -> None:
        """Tensors that were made otherwise."""
        for tensor in tensors:
            self._watch(tensor.untyped_storage())

    def _watch(self, storage: Any) -> None:
        key, size = self._place(storage), storage.nbytes()
        if not key or key in self._known or not size:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _place(self, storage: Any) -> int:
        """Where it is, several perhaps in one place; 0: nowhere, as what has no numbers."""
        return int(storage.data_ptr())

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def bytes_of_a_token(config: ModelConfig) -> float | None:
    """Of a micro-batch, at the peak of its backward pass, the head left out: what the layers keep (with gradient
    checkpointing what each was given, and one layer's own), and gradients on their way. None where the model's config
    cannot be read from here, its code asks for numbers, or its attention is of its own making or holds all scores.

    config: with its dtype settled.
    """
    return _of_a_token(config.model_dump_json())


@functools.cache
def _of_a_token(config: str) -> float | None:
    model = without_numbers(ModelConfig.model_validate_json(config))
    if model is None:
        return None
    try:
        return _peak(model) / TOKENS
    except Exception:  # of a model's own code, which may raise any
        return None


def _peak(model: Any) -> float:
    attended = False

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any
    ) -> tuple[Tensor, None]:
        nonlocal attended
        attended = True
        if options.get("softcap") is not None or options.get("s_aux") is not None:
            raise _Unknown("it holds all scores")
        return _Attention.apply(query, key, value), None  # type: ignore[no-untyped-call]

    AttentionInterface.register(_NAME, attention)
    model.set_attn_implementation(_NAME)
    model.train()
    embedding = model.get_input_embeddings().weight
    if embedding.requires_grad:
        # Its gradient is the last of all, as large as the vocabulary, and no activation.
        embedding.requires_grad_(False)
        model.enable_input_require_grads()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    layers = next(part for part in model.base_model.modules() if isinstance(part, nn.ModuleList))
    depth = len(layers)
    _leave(model, layers, 2 * LAYERS)
    with torch.no_grad(), _Watched() as forward:
        model.base_model(input_ids=torch.zeros(1, 2, dtype=torch.long, device="meta"), use_cache=False)
    if not attended:
        raise _Unknown("attention of its own making")
    limit = FORWARDS * forward.operations
    peak = _both_ways(model, limit)
    if depth <= 2 * LAYERS:
        return peak
    _leave(model, layers, LAYERS)
    return peak + (depth - 2 * LAYERS) * (peak - _both_ways(model, limit)) / LAYERS


def _leave(model: Any, layers: nn.ModuleList, count: int) -> None:
    """Of its layers, the last ones."""
    if len(layers) > count:
        del layers[:-count]
        model.config.get_text_config().num_hidden_layers = count


def _both_ways(model: Any, limit: int) -> int:
    ids, at = (torch.zeros(size, dtype=torch.long, device="meta") for size in ((1, TOKENS), (TOKENS,)))
    with _Watched(*model.parameters(), *model.buffers(), limit=limit) as alive:
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[at, at]
        # The head gives their gradient, which is as large as they are.
        states.backward(torch.empty_like(states))
    peak: int = alive.peak
    return peak


class _Unknown(Exception):
    """What a model keeps is not known."""


class _Attention(torch.autograd.Function):
    """What flash attention keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(rows, heads, length, dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _Watched(Alive):  # type: ignore[no-untyped-call]
    def __init__(self, *before: Tensor, limit: float = math.inf) -> None:
        super().__init__(*before)
        self.operations = 0
        self._limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if self.operations > self._limit:
            raise _Unknown("it goes through the tokens one after the other")
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _place(self, storage: Any) -> int:
        return int(storage._cdata)

    def _watch(self, storage: Any) -> None:
        if storage.nbytes() >= TOKENS**2:
            raise _Unknown("it holds all scores")
        super()._watch(storage)
