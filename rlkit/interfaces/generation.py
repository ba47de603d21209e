"""The contracts of sampling: what is asked of a sampler, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    max_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, besides the model's own end tokens: at the first token after which the decoded
    completion, special tokens by their names, holds one of them. That token is kept. A sampler may go on past it, which
    costs time alone: the collector cuts off what comes after."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One completion to sample: a prompt as token ids, a seed of its own."""

    prompt_tokens: Sequence[int]
    seed: int
    params: SamplingParams


@dataclass(kw_only=True, slots=True)
class Completion:
    tokens: Sequence[int]
    """As sampled, the end token included."""
    logprobs: Sequence[float]
    """Of the distribution that was drawn from, one a token."""
    truncated: bool
    version: int
    """The policy version of the weights that sampled it."""


class Requests(Protocol):
    """Requests of which more come while the first are answered: a conversation's next turn follows from the one before.

    They are numbered in the order in which `take` gives them, from 0. A sampler asks in the thread that goes through
    what it yields, and waits only where it has answered all: what comes next may follow from an answer.
    """

    def take(self, *, wait: bool) -> Sequence[Request] | None:
        """Those that have come since the last call; `wait`: not before there is one. None: no more will come."""
        ...


class Sampler(Protocol):
    """What samples.

    One that answers requests in whichever order they come may have a method more,
    `stream(requests: Requests) -> Iterator[tuple[int, Completion]]`: as `generate`, and while conversations wait for
    their environments the others go on. Without it conversations are sampled in turns, by `generate`.

    A class may carry `beside_training = True`: it holds no device of the learner's, so `generate` may go on in a thread
    while that learns, as `schedule: one_ahead` has it. `sync` is not called meanwhile.

    One with `takes_adapters = True` is given LoRA adapters beside the weights that they belong to, which come without
    them (see `rlkit.engine.adapters.parts_of`); any other, weights with the adapters merged.

    One that holds memory of the learner's device may have a method more, `make_room(*, until_sync: bool)`: it gives
    that back, since the learner computes next, and takes it again by itself when it is called; with `until_sync` the
    next call is `sync`, so that its weights need not be kept.
    """

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield (index of the request, completion) as they end, so that scoring starts early."""
        ...

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new weights (Hugging Face names, whole tensors); later completions carry `version`."""
        ...

    def close(self) -> None:
        """Free what it holds. Calling it twice is harmless."""
        ...
