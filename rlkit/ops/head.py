"""The seam for log-probs: what a language model's head says of given tokens, from hidden states and head weights.

The logits of all tokens are never in memory at once. They are computed in tiles of tokens and vocabulary, forward and
again backward, and each tile leaves behind only sums over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkit.interfaces.names import Stat

TILE = 1 << 20
"""Logits in a tile, on a CPU: 4 MiB in float32, about what a core's cache holds."""
TILE_ON_GPU = 1 << 24
ROWS = 1024
"""Tokens in a tile, at most where the vocabulary is larger than a tile has room for."""
ALIVE = 8
"""Tiles alive at the peak, in float32: measured 2.3 (log-probs) to 6.8 (all statistics, bfloat16), and one more under
a soft cap."""


def peak_bytes(tokens: int, vocabulary: int, on_gpu: bool = False, *, learns: int = 0, width: int = 4) -> int:
    """What `head_stats` and its backward take at most, beside weights and hidden states. `learns`: the width of a head
    that learns, whose gradient is summed up in float32 and given in `width` bytes a number; 0: it does not."""
    gradient = vocabulary * learns * (4 if width == 4 else 4 + width)
    return ALIVE * 4 * min(tokens * vocabulary, TILE_ON_GPU if on_gpu else TILE) + gradient


@dataclass(frozen=True)
class Head:
    """How a language model makes logits: of hidden states h, cap * tanh(scale * (h @ weight.T + bias) / cap)."""

    weight: Tensor | None
    """[V, d]; None: the hidden states are logits already, of a model whose head is unknown."""
    bias: Tensor | None = None
    """[V]"""
    scale: float = 1.0
    cap: float | None = None
    """The soft cap, which no logit exceeds; None: there is none."""

    def logits(self, hidden: Tensor, part: slice = slice(None)) -> Tensor:
        """[N, d] -> [N, V], or the logits of a part of the vocabulary: the product in the weight's dtype, the rest in
        float32 (float64 for float64 inputs). May be written to."""
        if self.weight is None:
            product = hidden[:, part].clone()
        else:
            product = F.linear(hidden, self.weight[part], None if self.bias is None else self.bias[part])
        wide = product if product.dtype == torch.float64 else product.float()
        if self.cap is None:
            return wide if self.scale == 1.0 else wide.mul_(self.scale)
        return wide.mul_(self.scale / self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """The logits' derivative in the product that they are made of."""
        return self.scale if self.cap is None else (logits / self.cap).square_().neg_().add_(1.0).mul_(self.scale)

    def at(self, temperature: float) -> Head:
        """Its logits, divided by a temperature."""
        return replace(self, scale=self.scale / temperature, cap=self.cap and self.cap / temperature)

    def size(self, hidden: Tensor) -> int:
        """V"""
        return hidden.shape[1] if self.weight is None else self.weight.shape[0]


def head_stats(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    *,
    want: Set[Stat] = frozenset({"logprobs"}),
    observe: Set[Stat] = frozenset(),
    temperature: float = 1.0,
    reference: tuple[Tensor, Head] | None = None,
    tile: int | None = None,
) -> dict[str, Tensor]:
    """The wanted statistics of N tokens, differentiable in `hidden` and the head's weight and bias.

    Args:
        hidden: [N, d], the states that predict the tokens. N may be 0.
        head: of the policy, over V tokens.
        tokens: [N] int64.
        want: of "logprobs", "entropy", "ref_logprobs" and "token_kl" (exact, over all V tokens).
        observe: more of them, without gradient.
        temperature: of the distribution that was drawn from; applied to policy and reference.
        reference: the reference policy's hidden states [N, d'] and head; needed for "ref_logprobs" and "token_kl". No
            gradient flows into it.
        tile: logits that are in memory at once; None: what suits the device.

    Returns:
        Each wanted statistic, [N], in nats.

    Raises:
        ValueError: "values" is wanted (a critic's), what needs a reference comes without one, or a tile has no room.
    """
    every = want | observe
    if "values" in every:
        raise ValueError("a language model's head gives no 'values': they are the critic's")
    compares = every & {"ref_logprobs", "token_kl"}
    if compares and reference is None:
        raise ValueError(f"{', '.join(sorted(compares))}: needs a reference")
    if tile is None:
        tile = TILE_ON_GPU if hidden.is_cuda else TILE
    if tile < 1:
        raise ValueError(f"tile {tile}: at least one logit must fit")
    task = _Task(
        head=head.at(temperature),
        tokens=tokens,
        entropy="entropy" in every,
        reference=(reference[0].detach(), reference[1].at(temperature)) if reference is not None and compares else None,
        kl="token_kl" in every,
        tile=tile,
        learns=torch.is_grad_enabled(),
    )
    found = _Stats.apply(hidden, head.weight, head.bias, task)  # type: ignore[no-untyped-call]
    names: tuple[Stat, ...] = ("logprobs", "entropy", "ref_logprobs", "token_kl")
    stats = {name: values for name, values in zip(names, found, strict=True) if name in every}
    return {name: values if name in want else values.detach() for name, values in stats.items()}


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is asked of a pass. Temperatures are in the heads' scales and caps."""

    head: Head
    tokens: Tensor
    entropy: bool
    reference: tuple[Tensor, Head] | None
    kl: bool
    tile: int
    learns: bool
    """A backward pass may come."""

    def tiles(
        self, hidden: Tensor, row: slice, part: slice, *, reference: bool = True, policy: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of these rows and this part of the vocabulary, the policy's (made already, where given) and the
        reference's."""
        z = self.head.logits(hidden[row], part) if policy is None else policy
        if self.reference is None or not reference:
            return z, None
        return z, self.reference[1].logits(self.reference[0][row], part)


@dataclass(frozen=True)
class _Sums:
    """Of rows of logits z, over the part of the vocabulary seen so far; all [rows]."""

    top: Tensor
    """The largest z."""
    total: Tensor
    """sum exp(z - top)"""
    chosen: Tensor
    """z of the rows' tokens; 0 until it comes."""
    weighted: Tensor | None = None
    """sum exp(z - top) (z - top)"""
    apart: Tensor | None = None
    """sum exp(z - top) (z - z_ref)"""

    def with_more(self, other: _Sums) -> _Sums:
        """Of both parts of the vocabulary together."""
        top = torch.maximum(self.top, other.top)
        mine, theirs = (self.top - top).exp_(), (other.top - top).exp_()
        weighted = apart = None
        if self.weighted is not None and other.weighted is not None:
            moved = self.weighted + self.total * (self.top - top), other.weighted + other.total * (other.top - top)
            weighted = mine * moved[0] + theirs * moved[1]
        if self.apart is not None and other.apart is not None:
            apart = mine * self.apart + theirs * other.apart
        total = mine * self.total + theirs * other.total
        return _Sums(top, total, self.chosen + other.chosen, weighted, apart)


def _sums(z: Tensor, tokens: Tensor, part: slice, entropy: bool = False, reference: Tensor | None = None) -> _Sums:
    top = z.amax(1)
    shifted = z - top[:, None]
    weighted = None
    if entropy:
        weight = shifted.exp()
        # exp(z - top) is 0 where z - top is too far down for the product to count.
        weighted = shifted.mul_(weight).sum(1)
    else:
        weight = shifted.exp_()
    apart = None
    if reference is not None:
        apart = torch.sub(z, reference, out=shifted if entropy else None).mul_(weight).sum(1)
    return _Sums(top, weight.sum(1), _pick(z, tokens, part), weighted, apart)


def _pick(z: Tensor, tokens: Tensor, part: slice) -> Tensor:
    """z of each row's token; 0 where the token is not in this part of the vocabulary."""
    at = tokens - part.start
    here = (at >= 0) & (at < z.shape[1])
    chosen: Tensor = z.gather(1, (at * here)[:, None])[:, 0] * here
    return chosen


def _tiles(tokens: int, vocabulary: int, tile: int) -> tuple[list[slice], list[slice]]:
    """Rows, and parts of the vocabulary: a tile is one of each."""
    width = min(vocabulary, max(1, tile // max(1, min(tokens, ROWS))))
    height = max(1, tile // width)
    return _slices(tokens, height), _slices(vocabulary, width)


def _slices(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


class _Stats(torch.autograd.Function):
    """Log-probs, entropy, the reference's log-probs and the KL, [N] each; zeros for what is not asked for.

    Backward makes the logits again. The last tile is kept, so that where one is enough nothing is made twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, task: _Task
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs, entropy, ref_logprobs, kl, *norms = (
            torch.zeros(len(hidden), dtype=dtype, device=hidden.device) for _ in range(8)
        )
        top, log_total, ref_top, ref_log_total = norms
        rows, parts = _tiles(len(hidden), task.head.size(hidden), task.tile)
        z = None
        for row in rows:
            mine: _Sums | None = None
            theirs: _Sums | None = None
            for part in parts:
                z, z_ref = task.tiles(hidden, row, part)
                found = _sums(z, task.tokens[row], part, task.entropy, z_ref if task.kl else None)
                mine = found if mine is None else mine.with_more(found)
                if z_ref is not None:
                    found = _sums(z_ref, task.tokens[row], part)
                    theirs = found if theirs is None else theirs.with_more(found)
            assert mine is not None
            top[row], log_total[row] = mine.top, mine.total.log()
            logprobs[row] = mine.chosen - mine.top - log_total[row]
            if mine.weighted is not None:
                entropy[row] = log_total[row] - mine.weighted / mine.total
            if theirs is not None:
                ref_top[row], ref_log_total[row] = theirs.top, theirs.total.log()
                ref_logprobs[row] = theirs.chosen - theirs.top - ref_log_total[row]
                if mine.apart is not None:
                    kl[row] = mine.apart / mine.total - (mine.top - theirs.top) - (mine.total / theirs.total).log()
        ctx.task, ctx.rows, ctx.parts = task, rows, parts
        ctx.last = z if task.learns else None
        ctx.save_for_backward(hidden, weight, bias, entropy, kl, *norms)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(ref_logprobs)
        return logprobs, entropy, ref_logprobs, kl

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_logprobs: Tensor | None, g_entropy: Tensor | None, _: Any, g_kl: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden, weight, bias, entropy, kl, top, log_total, ref_top, ref_log_total = ctx.saved_tensors
        task, last = ctx.task, ctx.last
        head = task.head
        ctx.last = None
        d_hidden = _Grad(hidden) if ctx.needs_input_grad[0] else None
        d_weight = _Grad(weight) if ctx.needs_input_grad[1] else None
        d_bias = _Grad(bias) if ctx.needs_input_grad[2] else None
        for row in reversed(ctx.rows):
            for part in reversed(ctx.parts):
                z, z_ref = task.tiles(hidden, row, part, reference=g_kl is not None, policy=last)
                last = None
                slope = head.slope(z)
                logp = z.sub_(top[row, None]).sub_(log_total[row, None])
                factor: Tensor | None = None
                if g_kl is not None:
                    logq = z_ref.sub_(ref_top[row, None]).sub_(ref_log_total[row, None])
                    factor = torch.sub(logp, logq, out=logq).sub_(kl[row, None]).mul_(g_kl[row, None])
                if g_entropy is not None:
                    term = (logp + entropy[row, None]).mul_(g_entropy[row, None])
                    factor = term.neg_() if factor is None else factor.sub_(term)
                p = logp.exp_()
                if factor is not None:
                    d_z = factor.mul_(p) if g_logprobs is None else factor.sub_(g_logprobs[row, None]).mul_(p)
                else:
                    assert g_logprobs is not None
                    d_z = p.mul_(-g_logprobs[row, None])
                if g_logprobs is not None:
                    _add_to_tokens(d_z, task.tokens[row], part, g_logprobs[row])
                d_x = d_z.mul_(slope).to(hidden.dtype)
                if weight is None:
                    if d_hidden is not None:
                        d_hidden.add((row, part), d_x)
                    continue
                if d_hidden is not None:
                    d_hidden.add_product(row, d_x, weight[part])
                if d_weight is not None:
                    d_weight.add_product(part, d_x.T, hidden[row])
                if d_bias is not None:
                    d_bias.add(part, d_x.sum(0))
        grads = (None if grad is None else grad.value() for grad in (d_hidden, d_weight, d_bias))
        return (*grads, None)  # type: ignore[return-value]


def _add_to_tokens(d_z: Tensor, tokens: Tensor, part: slice, values: Tensor) -> None:
    """Add each row's value at its token, where that is in this part of the vocabulary."""
    at = tokens - part.start
    here = (at >= 0) & (at < d_z.shape[1])
    d_z.scatter_add_(1, (at * here)[:, None], (values * here)[:, None])


class _Grad:
    """A gradient that is summed up in parts, in float32 at least."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._wide = torch.float32 if like.dtype in (torch.bfloat16, torch.float16) else like.dtype
        self._sum: Tensor | None = None

    def add(self, at: slice | tuple[slice, slice], part: Tensor) -> None:
        if self._sum is None and part.shape == self._like.shape:
            self._sum = part.to(self._wide)
        else:
            self._room()[at].add_(part)

    def add_product(self, at: slice, left: Tensor, right: Tensor) -> None:
        if self._sum is None or left.dtype != self._wide:
            self.add(at, left @ right)
        else:
            self._sum[at].addmm_(left, right)

    def value(self) -> Tensor:
        return self._room().to(self._like.dtype)

    def _room(self) -> Tensor:
        if self._sum is None:
            self._sum = torch.zeros(self._like.shape, dtype=self._wide, device=self._like.device)
        return self._sum
