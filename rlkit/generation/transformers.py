"""Sampling with transformers' own models: any causal model, at once, and as fast as any for tiny ones."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rlkit.config import ModelConfig, Section
from rlkit.embedded import resolve
from rlkit.errors import RlkitError
from rlkit.generation import check, end_tokens
from rlkit.generation.stops import Stops, stops_of
from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams
from rlkit.interfaces.progress import alive
from rlkit.registry import sampler

BLOCK = 256
"""Tokens of the vocabulary whose probabilities are added up together."""


class TransformersConfig(Section):
    max_batch: Annotated[int, Field(ge=1)] = 256
    """Rows generated at once, at most."""
    kv_gib: Annotated[float, Field(gt=0)] = 4.0
    """Keys and values of rows generated at once, at their full length: as many rows as that holds, and at least one.
    Lower it where memory runs out; more is quicker."""


@sampler("transformers")
def transformers(config: TransformersConfig, model: ModelConfig, context: int, seed: int) -> Sampler:
    """the model as transformers has it, a copy of its own"""
    return _Transformers(config, model, context)


class _Transformers:
    def __init__(self, config: TransformersConfig, model: ModelConfig, context: int) -> None:
        from transformers import AutoModelForCausalLM

        from rlkit.engine.attention import heed_soft_cap
        from rlkit.engine.memory import GROWN
        from rlkit.engine.models import kept_of_a_token
        from rlkit.engine.weight_names import Intake
        from rlkit.generation.decoding import share_keys

        path = resolve(model.path)
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, model.settled().dtype), trust_remote_code=model.trust_remote_code
        )
        heed_soft_cap(self._model)
        self._model.to(device).eval().requires_grad_(False)
        share_keys(self._model)
        self._intake: Any = Intake(self._model)
        self._ends = end_tokens(path, model.trust_remote_code)
        self._stops = stops_of(model)
        self._max_batch = config.max_batch
        kept = kept_of_a_token(self._model.config.get_text_config()) * self._model.dtype.itemsize
        self._room = config.kv_gib * 2**30 / (GROWN * kept) if kept else math.inf
        """Tokens whose keys and values may be in memory at once."""
        self._context = context
        self._version = 0

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        check(requests, self._context)
        alike: dict[SamplingParams, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(replace(request.params, max_tokens=0), []).append(i)
        for params, rows in alike.items():
            rows.sort(key=lambda i: len(requests[i].prompt_tokens))
            while rows:
                whole = accumulate((len(requests[i].prompt_tokens) + requests[i].params.max_tokens for i in rows), max)
                batch = self._fitting(list(whole))
                yield from self._generate(requests, rows[:batch], params)
                rows = rows[batch:]

    def _fitting(self, lengths: list[int]) -> int:
        """How many rows go together of those with these ascending lengths: all are padded to the longest."""
        most = min(len(lengths), self._max_batch)
        return next((n for n in range(most, 1, -1) if n * lengths[n - 1] <= self._room), 1)

    @torch.no_grad()
    def _generate(
        self, requests: Sequence[Request], rows: list[int], params: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """Add tokens until enough rows have ended; hand those out, and go on with the others alone."""
        from rlkit.generation.decoding import Continuation

        device, version = self._model.device, self._version
        stops = self._stops(params.stop) if params.stop else None
        draw = _Draw(params, [requests[i] for i in rows], self._ends, device, stops)
        grown = Continuation(self._model, [tuple(requests[i].prompt_tokens) for i in rows])
        while True:
            tokens = draw(grown.logits)
            alive()
            patience = min(len(rows), max(8, len(rows) // 4)) if grown.can_select else len(rows)
            # A row past its own limit may be past the positions that the model has.
            if draw.ended() >= patience or (grown.can_select and draw.any_at_its_limit()):
                for row, completion in draw.completions(version):
                    yield rows[row], completion
                live = draw.drop_ended()
                rows = [rows[i] for i in live.tolist()]
                if not rows:
                    return
                grown.keep(live)
                tokens = tokens[live]
            grown.add(tokens)

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy the weights in. RlkitError for a name the model lacks, another shape, or a weight left old."""
        self._intake.load(weights)
        self._version = version

    def close(self) -> None:
        self._model = self._intake = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Draw:
    """Chooses the tokens.

    A row's tokens follow from its own seed by inverse transform sampling: token t is the first whose cumulated
    probability exceeds the t-th number of the seed's Philox stream. So they depend neither on the other rows nor
    on how requests are cut into batches, up to float noise in the logits.
    """

    def __init__(
        self,
        params: SamplingParams,
        requests: list[Request],
        ends: tuple[int, ...],
        device: Any,
        stops: Stops | None = None,
    ) -> None:
        """`params`: what all requests have in common, which is all but the longest response."""
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        limits = [request.params.max_tokens for request in requests]
        longest = max(limits)
        size = (len(requests), longest)
        self._step = 0
        self._temperature = params.temperature
        self._ends = torch.tensor(ends, dtype=torch.long, device=device)
        self._followers = [stops.follow() for _ in requests] if stops else []
        self._warpers = [TopKLogitsWarper(params.top_k)] if params.top_k else []
        if params.top_p < 1:
            self._warpers.append(TopPLogitsWarper(params.top_p))
        self._uniforms = torch.from_numpy(np.stack([_uniforms(each.seed, longest) for each in requests])).to(device)
        self._limits = torch.tensor(limits, device=device)
        self._tokens = torch.zeros(size, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(size, dtype=torch.float32, device=device)
        self._length = torch.zeros(size[0], dtype=torch.long, device=device)
        """0 while the row goes on."""

    def __call__(self, scores: Tensor) -> Tensor:
        """scores: [rows, V] float32 logits. Returns the next tokens, [rows]."""
        if self._temperature == 0:
            token = scores.argmax(-1, keepdim=True)
            logprobs = scores.log_softmax(-1)
        else:
            if self._temperature != 1:
                scores = scores / self._temperature
            for warp in self._warpers:
                scores = warp(None, scores)
            logprobs = scores.log_softmax(-1)
            token = _first_past(logprobs, self._uniforms[:, self._step, None])
        self._tokens[:, self._step] = token[:, 0]
        self._logprobs[:, self._step] = logprobs.gather(1, token)[:, 0]
        self._step += 1
        ended = torch.isin(token[:, 0], self._ends)
        if self._followers:
            found = [f.push([t]) is not None for f, t in zip(self._followers, token[:, 0].tolist(), strict=True)]
            ended |= torch.tensor(found, device=ended.device)
        self._length.masked_fill_(ended & (self._length == 0), self._step)
        return token[:, 0]

    def any_at_its_limit(self) -> bool:
        """Some row has come to the limit on its length."""
        return bool((self._step >= self._limits).any())

    def ended(self) -> int:
        """Rows that have ended."""
        return int(self._ended().sum())

    def completions(self, version: int) -> Iterator[tuple[int, Completion]]:
        """The rows that have ended, by an end token, a stop text or the limit on their length."""
        ended = self._ended().nonzero()[:, 0]
        columns = (self._length[ended], self._limits[ended], self._tokens[ended], self._logprobs[ended])
        for row, length, limit, tokens, logprobs in zip(ended.tolist(), *(c.tolist() for c in columns), strict=True):
            keep = length or limit
            yield (
                row,
                Completion(tokens=tokens[:keep], logprobs=logprobs[:keep], truncated=length == 0, version=version),
            )

    def drop_ended(self) -> Tensor:
        """Keep the rows that go on, and return their indices."""
        live = (~self._ended()).nonzero()[:, 0]
        self._uniforms, self._tokens, self._logprobs, self._length, self._limits = (
            each[live] for each in (self._uniforms, self._tokens, self._logprobs, self._length, self._limits)
        )
        if self._followers:
            self._followers = [self._followers[row] for row in live.tolist()]
        return live

    def _ended(self) -> Tensor:
        return (self._length > 0) | (self._step >= self._limits)


def _first_past(logprobs: Tensor, share: Tensor) -> Tensor:
    """[rows, 1]: the first token whose cumulated probability exceeds this share, [rows, 1] in [0, 1), of them all.

    Adding up is quicker than cumulating: so the first block of tokens is found, and then the token in it.
    """
    rows, vocabulary = logprobs.shape
    blocks = -(-vocabulary // BLOCK)
    # float32 sums over a large vocabulary would lose the rarest tokens.
    probabilities = logprobs.new_zeros(rows, blocks * BLOCK, dtype=torch.float64)
    probabilities[:, :vocabulary].copy_(logprobs).exp_()
    probabilities = probabilities.view(rows, blocks, BLOCK)
    cumulated = probabilities.sum(-1).cumsum(-1)
    if not cumulated[:, -1].isfinite().all():
        raise RlkitError(
            "the model's logits are not finite: its weights have diverged. Train anew, or from an earlier checkpoint, "
            "with a lower optimizer.lr or optimizer.weight_decay"
        )
    point = share * cumulated[:, -1:]
    block = _index_past(cumulated, point)
    before = torch.where(block > 0, cumulated.gather(1, (block - 1).clamp_(min=0)), 0.0)
    within = probabilities.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1)
    return block * BLOCK + _index_past(within, point - before)


def _index_past(cumulated: Tensor, point: Tensor) -> Tensor:
    """[rows, 1]: where the sums, [rows, n], first exceed the point, [rows, 1]; where they first reach their end if, by
    rounding, none does."""
    last = cumulated[:, -1:]
    return torch.searchsorted(cumulated, torch.minimum(point, last.nextafter(torch.zeros_like(last))), right=True)


def _uniforms(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[count] numbers in [0, 1), the same in every version of numpy: the top 53 bits of a Philox stream."""
    raw = np.random.Philox(key=seed).random_raw(count)
    return np.ldexp((raw >> np.uint64(11)).astype(np.float64), -53)
