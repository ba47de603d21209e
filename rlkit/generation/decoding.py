"""What makes it cheap to add a token to many rows: a cache that grows in place, and attention that copies no keys."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

NAME = "rlkit_decoding"


class _Growing(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values, [rows, heads, tokens, d], in tensors with room for tokens to come."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = [key_states[..., :0, :], value_states[..., :0, :]]
            self._view(0)
        held, end = self._held, self._held + key_states.shape[-2]
        if end > self._rooms[0].shape[-2]:
            grown = [_room(states, end + max(32, end // 2)) for states in (key_states, value_states)]
            for room, old in zip(grown, (self.keys, self.values), strict=True):
                room[..., :held, :] = old
            self._rooms = grown
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., held:end, :] = states
        self._view(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        chosen = [_room(room[:1].expand(len(indices), -1, -1, -1), room.shape[-2]) for room in self._rooms]
        for room, old in zip(chosen, (self.keys, self.values), strict=True):
            torch.index_select(old, 0, indices, out=room[..., : self._held, :])
        self._rooms = chosen
        self._view(self._held)

    def _view(self, tokens: int) -> None:
        self._held = tokens
        self.keys, self.values = (room[..., :tokens, :] for room in self._rooms)


def _room(states: Tensor, tokens: int) -> Tensor:
    return states.new_empty(*states.shape[:-2], tokens, states.shape[-1])


class Continuation:
    """Rows that grow by a token at a time, and what the model remembers of them."""

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]]) -> None:
        """Read the prompts, each as often as it differs from the others."""
        self._model = model
        accepted = inspect.signature(model.forward).parameters
        # Models that are recurrent throughout, as Mamba, keep a cache of their own kind.
        cache = _empty_cache(model) if "past_key_values" in accepted else None
        self.can_select = cache is not None and all(hasattr(layer, "batch_select_indices") for layer in cache.layers)
        """False: the state of a recurrent layer cannot be cut by rows."""
        distinct = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))} if self.can_select else None
        self._ids, mask = _pad_left(prompts if distinct is None else list(distinct), model.device)
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "logits_to_keep": 1}
        self._inputs: dict[str, Any] = {name: value for name, value in inputs.items() if name in accepted}
        self._inputs["use_cache"] = True
        self._forget_whole_mask()
        self.logits = self._forward(first=True)
        """[rows, V] float32: of the next token"""
        if distinct is not None and len(distinct) < len(prompts):
            self._take(torch.tensor([distinct[prompt] for prompt in prompts], device=model.device))

    def add(self, tokens: Tensor) -> None:
        """The next token of every row, [rows]."""
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=1)
        self.logits = self._forward(first=False)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self._take(rows)
        self._forget_whole_mask()

    def _take(self, rows: Tensor) -> None:
        self._inputs["past_key_values"].batch_select_indices(rows)
        for name in ("attention_mask", "position_ids"):
            if self._inputs.get(name) is not None:
                self._inputs[name] = self._inputs[name][rows]
        self._ids, self.logits = self._ids[rows], self.logits[rows]

    def _forget_whole_mask(self) -> None:
        """Without padding attention is quicker without a mask."""
        mask = self._inputs.get("attention_mask")
        if mask is not None and bool(mask.all()):
            self._inputs["attention_mask"] = None

    def _forward(self, first: bool) -> Tensor:
        # What `generate` calls around a model, in its order: some models have versions of their own.
        inputs = self._model.prepare_inputs_for_generation(
            self._ids, next_sequence_length=None if first else 1, is_first_iteration=first, **self._inputs
        )
        found = self._model(**inputs, return_dict=True)
        self._inputs = self._model._update_model_kwargs_for_generation(found, self._inputs)
        logits: Tensor = found.logits[:, -1].float()
        return logits


def _empty_cache(model: Any) -> Any:
    """Each layer of the kind that the model needs."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_Growing() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _pad_left(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [rows, longest prompt] int64."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def share_keys(model: Any) -> None:
    """Have heads that share keys and values read them where they lie: transformers' sdpa copies them for each head.

    What comes out is the same to the last bit. Models whose attention is not transformers' sdpa stay as they are; on a
    GPU sdpa's quick kernels would not take such heads together with a mask.
    """
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa" and _settable(model):
        model.set_attn_implementation(NAME)


def _settable(model: Any) -> bool:
    return all(part._can_set_attn_implementation() for part in model.modules() if hasattr(part, "_supports_sdpa"))


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """As `sdpa_attention_forward`."""
    if attention_mask is None or position_bias is not None or query.shape[1] == key.shape[1]:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **rest
        )
        return found
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
