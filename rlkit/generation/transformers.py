"""Sampling by transformers' `generate`: any causal model, at once, and as fast as any for tiny ones."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
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
from rlkit.registry import sampler


class TransformersConfig(Section):
    max_batch: Annotated[int, Field(ge=1)] = 256
    """Rows generated at once: lower it where memory runs out."""


@sampler("transformers")
def transformers(config: TransformersConfig, model: ModelConfig, context: int, seed: int) -> Sampler:
    """transformers' generate, on a copy of the model of its own"""
    return _Transformers(config, model, context)


class _Transformers:
    def __init__(self, config: TransformersConfig, model: ModelConfig, context: int) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig

        from rlkit.engine.attention import heed_soft_cap
        from rlkit.engine.weight_names import Intake

        path = resolve(model.path)
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, model.dtype), trust_remote_code=model.trust_remote_code
        )
        heed_soft_cap(self._model)
        self._model.to(device).eval().requires_grad_(False)
        # generate fills what it is not told from here, and a shipped repetition penalty would bend the distribution.
        self._model.generation_config = GenerationConfig()
        self._intake: Any = Intake(self._model)
        self._ends = end_tokens(path, model.trust_remote_code)
        self._stops = stops_of(model)
        self._max_batch = config.max_batch
        self._context = context
        self._version = 0

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        check(requests, self._context)
        alike: dict[SamplingParams, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(request.params, []).append(i)
        for params, rows in alike.items():
            rows.sort(key=lambda i: len(requests[i].prompt_tokens))
            for start in range(0, len(rows), self._max_batch):
                yield from self._generate(requests, rows[start : start + self._max_batch], params)

    @torch.no_grad()
    def _generate(
        self, requests: Sequence[Request], rows: list[int], params: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """Run generate until enough rows have ended; hand those out, and go on with the others alone."""
        from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        device = self._model.device
        ids, mask = _pad_left([requests[i].prompt_tokens for i in rows], device)
        stops = self._stops(params.stop) if params.stop else None
        draw = _Draw(params, [requests[i].seed for i in rows], self._ends, device, stops)
        # Models that are recurrent throughout, as Mamba, keep a cache of their own kind.
        own_cache = "past_key_values" not in inspect.signature(self._model.forward).parameters
        cache = None if own_cache else DynamicCache(config=self._model.config)
        version = self._version
        while rows:
            draw.patience = min(len(rows), max(8, len(rows) // 4)) if _can_drop_rows(cache) else len(rows)
            ids = self._model.generate(
                ids,
                attention_mask=mask,
                **({} if cache is None else {"past_key_values": cache}),
                generation_config=GenerationConfig(max_new_tokens=params.max_tokens - draw.step, do_sample=False),
                logits_processor=LogitsProcessorList([draw]),
                stopping_criteria=StoppingCriteriaList([draw.enough]),
                synced_gpus=False,
            )
            for row, completion in draw.completions(version):
                yield rows[row], completion
            live = draw.drop_ended()
            rows = [rows[i] for i in live.tolist()]
            if rows:
                assert cache is not None
                cache.batch_select_indices(live)
                ids = ids[live]
                mask = torch.nn.functional.pad(mask[live], (0, ids.shape[1] - mask.shape[1]), value=1)

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy the weights in. RlkitError for a name the model lacks, another shape, or a weight left old."""
        self._intake.load(weights)
        self._version = version

    def close(self) -> None:
        self._model = self._intake = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Draw:
    """A logits processor that chooses the tokens itself, and forces generate's greedy search to follow.

    A row's tokens follow from its own seed by inverse transform sampling: token t is the first whose cumulated
    probability exceeds the t-th number of the seed's Philox stream. So they depend neither on the other rows nor
    on how requests are cut into batches, up to float noise in the logits.
    """

    def __init__(
        self, params: SamplingParams, seeds: list[int], ends: tuple[int, ...], device: Any, stops: Stops | None = None
    ) -> None:
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        size = (len(seeds), params.max_tokens)
        self.step = 0
        self.patience = len(seeds)
        """Rows that end before `enough` says so."""
        self._temperature = params.temperature
        self._ends = torch.tensor(ends, dtype=torch.long, device=device)
        self._followers = [stops.follow() for _ in seeds] if stops else []
        self._warpers = [TopKLogitsWarper(params.top_k)] if params.top_k else []
        if params.top_p < 1:
            self._warpers.append(TopPLogitsWarper(params.top_p))
        self._uniforms = torch.from_numpy(np.stack([_uniforms(seed, params.max_tokens) for seed in seeds])).to(device)
        self._tokens = torch.zeros(size, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(size, dtype=torch.float32, device=device)
        self._length = torch.zeros(size[0], dtype=torch.long, device=device)
        """0 while the row goes on."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [rows, V] float32 logits. Returns them with all tokens but the drawn one at -inf."""
        if self._temperature == 0:
            token = scores.argmax(-1, keepdim=True)
            logprobs = scores.log_softmax(-1)
        else:
            scores = scores / self._temperature
            for warp in self._warpers:
                scores = warp(input_ids, scores)
            logprobs = scores.log_softmax(-1)
            # float32 sums over a large vocabulary would lose the rarest tokens.
            cumulated = logprobs.double().exp_().cumsum(-1)
            if not cumulated[:, -1].isfinite().all():
                raise RlkitError("the model's logits are not finite: its weights have diverged")
            point = self._uniforms[:, self.step, None] * cumulated[:, -1:]
            token = torch.searchsorted(cumulated, point, right=True)
        self._tokens[:, self.step] = token[:, 0]
        self._logprobs[:, self.step] = logprobs.gather(1, token)[:, 0]
        self.step += 1
        ended = torch.isin(token[:, 0], self._ends)
        if self._followers:
            found = [f.push([t]) is not None for f, t in zip(self._followers, token[:, 0].tolist(), strict=True)]
            ended |= torch.tensor(found, device=ended.device)
        self._length.masked_fill_(ended & (self._length == 0), self.step)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)

    def enough(self, input_ids: Tensor, scores: Any) -> Tensor:
        """generate's stopping criterion: all rows at once, or none. [rows] bool"""
        ended = (self._length > 0).sum() >= self.patience
        return ended.expand(len(input_ids))

    def completions(self, version: int) -> Iterator[tuple[int, Completion]]:
        """The rows that have ended, by an end token, a stop text or the limit on their length."""
        ended = self._ended().nonzero()[:, 0]
        columns = (self._length[ended], self._tokens[ended], self._logprobs[ended])
        for row, length, tokens, logprobs in zip(ended.tolist(), *(c.tolist() for c in columns), strict=True):
            keep = length or self.step
            yield (
                row,
                Completion(tokens=tokens[:keep], logprobs=logprobs[:keep], truncated=length == 0, version=version),
            )

    def drop_ended(self) -> Tensor:
        """Keep the rows that go on, and return their indices."""
        live = (~self._ended()).nonzero()[:, 0]
        self._uniforms, self._tokens, self._logprobs, self._length = (
            each[live] for each in (self._uniforms, self._tokens, self._logprobs, self._length)
        )
        if self._followers:
            self._followers = [self._followers[row] for row in live.tolist()]
        return live

    def _ended(self) -> Tensor:
        return (self._length > 0) | (self.step == self._tokens.shape[1])


def _uniforms(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[count] numbers in [0, 1), the same in every version of numpy: the top 53 bits of a Philox stream."""
    raw = np.random.Philox(key=seed).random_raw(count)
    return np.ldexp((raw >> np.uint64(11)).astype(np.float64), -53)


def _pad_left(prompts: list[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [rows, longest prompt] int64."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _can_drop_rows(cache: Any) -> bool:
    """False for caches of recurrent layers, which cannot be cut by rows: then all rows go on to the end."""
    return cache is not None and all(hasattr(layer, "batch_select_indices") for layer in cache.layers)
