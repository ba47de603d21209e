"""Attention over sequences packed into one row, which never look at each other.

It is registered with transformers under a name, so it serves every family whose attention goes through transformers'
interface; the sequences' bounds arrive as `cu_seq_lens_q`, the name that flash attention has for them. Without bounds
each row is a sequence. A prompt that several sequences share is in the row once, and everything but attention computes
it once; attention writes the sequences out, so that each is computed from what it would be computed from alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from rlkit.ops.packing import pack

NAME = "rlkit"


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    spread: Tensor | None = None,
    kept: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence.

    Args:
        query: [b, heads, T, d]; key and value may have fewer heads, of which each serves several of the query's.
        attention_mask: not read.
        scaling: of the scores; None: 1 / sqrt(d).
        softcap: a bound that scores approach and do not pass.
        sliding_window: each token sees itself and so many before it, less one; None: all.
        s_aux: [heads], a score that every token gives to nothing (GPT-OSS's sinks).
        cu_seq_lens_q: [n + 1], on the CPU: where the n sequences of the only row begin, and the end.
        cu_seq_lens_k: the same, int32 on the row's device.
        spread, kept: where a prompt serves several sequences, see `rlkit.ops.packing.pack`; the bounds are then of the
            sequences written out.

    Returns:
        [b, T, heads, d]
    """
    if cu_seq_lens_q is None:
        out = _causal(query, key, value, scaling, softcap, sliding_window, s_aux)
    else:
        if spread is not None:
            query, key, value = (whole.index_select(2, spread) for whole in (query, key, value))
        lengths = cu_seq_lens_q.diff().tolist()
        if cu_seq_lens_k is not None and softcap is None and s_aux is None and _flash(query, value):
            out = _varlen(query, key, value, cu_seq_lens_k, max(lengths), scaling, sliding_window)
        else:
            runs = [list(run) for _, run in itertools.groupby(lengths)]
            # Slices would each have a gradient of the whole row's size.
            parts = zip(
                *(torch.split(whole, [sum(run) for run in runs], 2) for whole in (query, key, value)), strict=True
            )
            attended = []
            for run, (q, k, v) in zip(runs, parts, strict=True):
                q, k, v = (_apart(part, run[0]) for part in (q, k, v))
                attended.append(_joined(_causal(q, k, v, scaling, softcap, sliding_window, s_aux)))
            out = torch.cat(attended, 2)
        if kept is not None:
            out = out.index_select(2, kept)
    return out.transpose(1, 2).contiguous(), None


def _apart(row: Tensor, length: int) -> Tensor:
    """[1, heads, n * length, d] -> [n, heads, length, d]: sequences of one length, which attend in one go."""
    _, heads, _, width = row.shape
    return row.view(heads, -1, length, width).transpose(0, 1)


def _joined(sequences: Tensor) -> Tensor:
    """The other way."""
    return sequences.transpose(0, 1).flatten(1, 2)[None]


def _causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    length, shared = query.shape[2], query.shape[1] != key.shape[1]
    narrow = window is not None and window < length
    if softcap is None and sinks is None:
        mask = _mask(length, window, query.device) if narrow else None
        if shared and query.is_cuda and (mask is not None or query.dtype == torch.float32):
            # Flash alone shares heads there, and it takes neither: the kernel that is left holds all scores at once.
            key, value, shared = *_repeated(query, key, value), False
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
        )
    if shared:
        key, value = _repeated(query, key, value)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~_mask(length, window if narrow else None, query.device), -torch.inf)
    if sinks is not None:
        nothing = sinks.reshape(1, -1, 1, 1).expand(len(scores), -1, length, 1).to(scores.dtype)
        weights = torch.cat([scores, nothing], -1).softmax(-1, dtype=torch.float32)[..., :-1]
    else:
        weights = scores.softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


def _flash(query: Tensor, value: Tensor) -> bool:
    """Flash attention takes these."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and width == value.shape[-1]
        and width % 8 == 0
        and width <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float | None, window: int | None
) -> Tensor:
    """All sequences in one kernel; [1, heads, T, d] as `_causal`."""
    q, k, v = (whole[0].transpose(0, 1) for whole in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out.transpose(0, 1)[None]


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values once for each head that shares them."""
    times = query.shape[1] // key.shape[1]
    return key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)


@functools.lru_cache(maxsize=64)
def _mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """[length, length] bool: what each token sees."""
    back = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (back >= 0) & (back < (length if window is None else window))


def use_packing(model: Any, known: bool | None = None) -> bool:
    """Give the model this attention, if with it packed sequences have the hidden states that they have alone.

    False, and the model is as it was, where they have not: its attention is of its own making, or it is recurrent.
    known: what came out for another of the same model; None: it is tried.
    """
    heed_soft_cap(model)
    if known is not None:
        if known:
            model.set_attn_implementation(NAME)
        return known
    config = model.config.get_text_config()
    before = model.config._attn_implementation
    if not set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}:
        return False
    embedding = model.get_input_embeddings().weight
    vocabulary = getattr(embedding, "ds_shape", embedding.shape)[0]
    *others, last = (
        torch.arange(start, start + length) % vocabulary for start, length in ((1, 7), (5, 3), (4, 5), (2, 11))
    )
    alone = _states(model, input_ids=last[None])[0]
    try:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation == NAME:
            # The last two have one prompt.
            packed, behind_others = (
                _last_states(model, [one, two, last[:4], last[:4]], [two, one, three, last[4:]])
                for one, two, three in (others, [tokens.flip(0) for tokens in others])
            )
            size, exact = alone.abs().max(), alone.dtype == torch.float32
            as_alone = (packed - alone).abs().max() <= (1e-3 if exact else 0.1) * size
            # What stands before a sequence must not matter; a mixture's experts may round otherwise in other company.
            apart = (packed - behind_others).abs().max() <= (1e-6 if exact else 1e-2) * size
            if as_alone and apart:
                return True
    except Exception:  # of a model's own code, which may not know the arguments
        pass
    model.set_attn_implementation(before)
    return False


def heed_soft_cap(model: Any) -> None:
    """Have a model cap its attention scores where it should: transformers' faster ways leave the cap out in silence."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")


def _last_states(model: Any, prompts: Sequence[Tensor], responses: Sequence[Tensor]) -> Tensor:
    """Of the last of packed sequences, whose prompt is that of the one before it."""
    placed = pack(prompts, responses)
    return _states(model, **placed)[0, placed["spread"]][-len(prompts[-1]) - len(responses[-1]) :]


@torch.no_grad()
def _states(model: Any, **inputs: Tensor) -> Tensor:
    there = {n: value if n == "cu_seq_lens_q" else value.to(model.device) for n, value in inputs.items()}
    states: Tensor = model(**there, use_cache=False).last_hidden_state
    return states.cpu()


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
