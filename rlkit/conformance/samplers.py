"""Samplers held against their contract, with the smallest model that ships."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rlkit import registry
from rlkit.config import ModelConfig
from rlkit.conformance.findings import Broken, Check
from rlkit.embedded import resolve
from rlkit.embedded.task import VOCABULARY
from rlkit.generation import end_tokens
from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams
from rlkit.registry import Plugin

MODEL = ModelConfig(path="embedded:xs", dtype="float32")
CONTEXT = 48
PROMPTS = ["47+85=", "10+10=", "99+1=", "3+4="]
GAP = 1e-2
"""Between a sampler's log-probs and the model's, in nats: kernels differ, mistakes are larger."""


def checks(plugin: Plugin, options: dict[str, Any]) -> Iterator[Check]:
    subject = _Subject(plugin, options)
    try:
        yield Check("it answers every request once", subject.answers, first=True)
        yield Check("tokens are the model's, and as many as were asked for at most", subject.tokens)
        yield Check("`truncated` says that neither an end token nor a stop text ended the response", subject.truncation)
        yield Check("log-probs are of the distribution that was drawn from, one a token", subject.logprobs)
        yield Check("the same seed gives the same tokens", subject.seeds)
        if hasattr(subject.sampler, "stream"):
            yield Check("requests that come late are answered by `stream`, as by `generate`", subject.streams)
        yield Check("new weights sample, under their version", subject.syncs)
        yield Check("closing it twice is harmless", subject.closes)
    finally:
        with contextlib.suppress(Exception):
            subject.sampler.close()


class _Subject:
    def __init__(self, plugin: Plugin, options: dict[str, Any]) -> None:
        self.plugin, self.options = plugin, options

    @cached_property
    def sampler(self) -> Sampler:
        made: Sampler = registry.build("samplers", self.plugin.name, self.options, MODEL, CONTEXT, 0)
        return made

    @cached_property
    def model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(resolve(MODEL.path), dtype=torch.float32).eval()

    @cached_property
    def requests(self) -> list[Request]:
        kinds = [
            SamplingParams(max_tokens=24),
            SamplingParams(max_tokens=3),
            SamplingParams(max_tokens=24, temperature=0.5),
            SamplingParams(max_tokens=24, temperature=0.0),
            SamplingParams(max_tokens=24, stop=(";",)),
        ]
        return [
            Request(prompt_tokens=_encoded(prompt), seed=1000 * at + number, params=params)
            for at, params in enumerate(kinds)
            for number, prompt in enumerate(PROMPTS)
        ]

    @cached_property
    def completions(self) -> list[Completion]:
        return self._ask(self.requests)

    def _ask(self, requests: Sequence[Request]) -> list[Completion]:
        pairs = list(self.sampler.generate(requests))
        indices = sorted(index for index, _ in pairs)
        if indices != list(range(len(requests))):
            raise Broken(
                f"of {len(requests)} requests it answered those of the indices {indices}: yield each index once, with "
                "its completion"
            )
        return [completion for _, completion in sorted(pairs, key=lambda pair: pair[0])]

    def answers(self) -> None:
        assert self.completions

    def tokens(self) -> None:
        for request, made in zip(self.requests, self.completions, strict=True):
            if not made.tokens or len(made.tokens) > request.params.max_tokens:
                raise Broken(
                    f"{_named(request)}: {len(made.tokens)} tokens, where 1 to {request.params.max_tokens} may be"
                )
            if wrong := [token for token in made.tokens if not (type(token) is int and 0 <= token < len(VOCABULARY))]:
                raise Broken(f"{_named(request)}: {wrong[0]!r} is no token of the model's {len(VOCABULARY)}")

    def truncation(self) -> None:
        ends = end_tokens(resolve(MODEL.path))
        for request, made in zip(self.requests, self.completions, strict=True):
            text = "".join(VOCABULARY[token] for token in made.tokens)
            ended = made.tokens[-1] in ends or any(stop in text for stop in request.params.stop)
            if made.truncated is ended:
                raise Broken(
                    f"{_named(request)}: truncated is {made.truncated}, and the response {text!r} "
                    f"{'was ended by an end token or a stop text' if ended else 'was ended by neither'}"
                )
            if not ended and len(made.tokens) < request.params.max_tokens:
                raise Broken(
                    f"{_named(request)}: the response {text!r} stops after {len(made.tokens)} tokens for no reason"
                )
            if any(token in ends for token in made.tokens[:-1]):
                raise Broken(f"{_named(request)}: the response {text!r} goes on after an end token")

    def logprobs(self) -> str:
        largest = 0.0
        for request, made in zip(self.requests, self.completions, strict=True):
            if len(made.logprobs) != len(made.tokens):
                raise Broken(f"{_named(request)}: {len(made.logprobs)} log-probs for {len(made.tokens)} tokens")
            if wrong := [x for x in made.logprobs if not (math.isfinite(x) and x <= 1e-6)]:
                raise Broken(f"{_named(request)}: {wrong[0]!r} is no log-prob: these are finite and at most 0")
            prompt = list(request.prompt_tokens)
            with torch.no_grad():
                logits = self.model(torch.tensor([[*prompt, *made.tokens]])).logits[0, len(prompt) - 1 : -1].double()
            expected = (logits / (request.params.temperature or 1.0)).log_softmax(-1)
            expected = expected.gather(1, torch.tensor(made.tokens)[:, None])[:, 0]
            gap = float((expected - torch.tensor(made.logprobs).double()).abs().max())
            if gap > GAP:
                raise Broken(
                    f"{_named(request)}: a log-prob is {gap:.3g} nats off that of the model at temperature "
                    f"{request.params.temperature:g}. They are of the distribution that was drawn from, the "
                    "temperature applied"
                )
            largest = max(largest, gap)
        return f"{largest:.1g} nats off the model's at most"

    def seeds(self) -> None:
        again = self._ask(self.requests)
        for request, one, other in zip(self.requests, self.completions, again, strict=True):
            if one.tokens != other.tokens:
                raise Broken(f"{_named(request)}: asked again with the same seed, it gave other tokens")
        sampled = [r for r in self.requests if r.params == self.requests[0].params]
        others = [
            Request(prompt_tokens=r.prompt_tokens, seed=r.seed + 7 * k, params=r.params)
            for r in sampled
            for k in range(1, 5)
        ]
        first = {tuple(r.prompt_tokens): made.tokens for r, made in zip(sampled, self.completions, strict=False)}
        if all(made.tokens == first[tuple(r.prompt_tokens)] for r, made in zip(others, self._ask(others), strict=True)):
            raise Broken("whatever the seed, it gives the same tokens")

    def streams(self) -> None:
        late = _Late(self.requests)
        for index, made in self.sampler.stream(late):  # type: ignore[attr-defined]
            if index not in late.open:
                raise Broken(f"it yielded the index {index!r}, and those of the open requests are {sorted(late.open)}")
            late.open.remove(index)
            if made.tokens != self.completions[index].tokens:
                raise Broken(f"{_named(self.requests[index])}: other tokens than by `generate`")
        if late.left or late.open:
            raise Broken(
                f"it ended with {len(late.open)} requests unanswered and {len(late.left)} not asked for: it goes on "
                "until `take` gives None, and all are answered"
            )

    def syncs(self) -> None:
        request = self.requests[:1]
        for version, scale in ((3, 0.5), (4, 1.0)):
            weights: list[tuple[str, Tensor]] = [(n, w.detach() * scale) for n, w in self.model.state_dict().items()]
            self.sampler.sync(iter(weights), version)
            made = self._ask(request)[0]
            if made.version != version:
                raise Broken(f"after sync(weights, {version}) a completion carries the version {made.version}")
            same = made.tokens == self.completions[0].tokens and all(
                abs(a - b) < GAP for a, b in zip(made.logprobs, self.completions[0].logprobs, strict=True)
            )
            if same is (scale != 1.0):
                what = "half as large" if scale != 1.0 else "as they were"
                raise Broken(f"with weights {what} it samples {'as before' if same else 'otherwise than before'}")

    def closes(self) -> None:
        self.sampler.close()
        self.sampler.close()


class _Late:
    """Requests as of conversations: the first half at once, then one for each answer."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.left = list(requests)
        self.given = 0
        self.open: set[int] = set()
        """Numbers of those that are not answered."""

    def take(self, *, wait: bool) -> Sequence[Request] | None:
        if not self.left:
            return None
        half = (self.given + len(self.left)) // 2
        new = self.left[: half - len(self.open)]
        if wait and not new:
            raise Broken(
                f"it waits for requests (take(wait=True)) while {len(self.open)} are unanswered: what comes next may "
                "follow from an answer, so it would wait for ever"
            )
        self.left = self.left[len(new) :]
        self.open.update(range(self.given, self.given + len(new)))
        self.given += len(new)
        return new


def _encoded(text: str) -> list[int]:
    return [VOCABULARY.index(letter) for letter in text]


def _named(request: Request) -> str:
    params = request.params
    stop = f", stop {list(params.stop)}" if params.stop else ""
    prompt = "".join(VOCABULARY[token] for token in request.prompt_tokens)
    limits = f"max_tokens {params.max_tokens}, temperature {params.temperature:g}{stop}"
    return f"prompt {prompt!r}, seed {request.seed}, {limits}"
