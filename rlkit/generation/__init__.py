"""Samplers: they turn requests into completions, and take new weights after every update.

A sampler's factory gets its options, the model's settings, the context (longest prompt + max_tokens) and the
run's seed: `def mine(config: MineConfig, model: ModelConfig, context: int, seed: int) -> Sampler`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import distribution, registry
from rlkit.blame import Blame, shown
from rlkit.config import ModelConfig, PluginRef, resolve_ref
from rlkit.embedded import resolve
from rlkit.errors import ConfigError, RlkitError
from rlkit.interfaces.generation import Completion

if TYPE_CHECKING:
    from torch import Tensor

    from rlkit.interfaces.generation import Request, Requests, Sampler


def choose() -> tuple[str, str]:
    """The sampler that `sampler: auto` stands for, and one sentence that says why. Imports no vLLM."""
    import torch

    if importlib.util.find_spec("vllm") is None:
        return "transformers", "vLLM is not installed"
    if torch.cuda.is_available():
        return "vllm", "vLLM is installed and there is a GPU"
    # docs/benchmarks.md: measured from 2.7 to 135 M parameters.
    return "transformers", "there is no GPU, without which vLLM is the slower one"


def resolve_sampler(ref: PluginRef, model: ModelConfig) -> tuple[PluginRef, str]:
    """The sampler with all its options, whatever `auto` stands for here, and one sentence that says why it."""
    from rlkit.engine.models import model_shape

    if ref.kind == "vllm":
        distribution.check_extra("sampler vllm", "vllm")
    if ref.kind != "auto":
        return resolve_ref("samplers", ref, "sampler"), "named in the config"
    kind, why = choose()
    if kind == "vllm" and model_shape(model) is not None:
        from rlkit.generation.vllm import refusal

        if refused := refusal(model):
            kind, why = "transformers", f"vLLM does not serve this model here: {refused}"
    return resolve_ref("samplers", PluginRef(kind=kind), "sampler"), why


def starts_slowly(ref: PluginRef) -> str | None:
    """What to say before such a sampler is built, which is silent for long; None: it is not."""
    import torch

    if ref.kind != "vllm" or not torch.cuda.is_available() or ref.options.get("enforce_eager"):
        return None
    return (
        "  vLLM compiles the model and captures CUDA graphs: a minute or two without a word "
        "(-s sampler.enforce_eager=true does without, and samples more slowly)"
    )


def end_tokens(path: str, trust_remote_code: bool = False) -> tuple[int, ...]:
    """The model's own end tokens: all that its generation config, its config and its tokenizer name.

    path: a folder, or a hub id.
    """
    return tuple(dict.fromkeys(end for ends in _named_ends(path, trust_remote_code).values() for end in ends))


def checked_end_tokens(model: ModelConfig, otherwise: str | None) -> tuple[int, ...]:
    """`end_tokens`, with a warning where the model's files do not agree on them.

    otherwise: what to do where they name none, for the message of a ConfigError; None: that is no mistake, since
    something else ends a response.
    """
    named = _named_ends(resolve(model.path), model.trust_remote_code)
    found = tuple(dict.fromkeys(end for ends in named.values() for end in ends))
    if not found and otherwise is not None:
        raise ConfigError(
            f"model.path {model.path!r}: neither {' nor '.join(named)} names an end token, so every response would run "
            f"to its limit: {otherwise}"
        )
    if found and len({frozenset(ends) for ends in named.values()}) > 1 and int(os.environ.get("RANK", "0")) == 0:
        said = ", ".join(f"{', '.join(map(str, ends)) or 'none'} in {file}" for file, ends in named.items())
        warnings.warn(
            f"{model.path}: the model's files name different end tokens ({said}). Any of them ends a response here; a "
            "program that reads one file alone may go on past it",
            stacklevel=2,
        )
    return found


def _named_ends(path: str, trust_remote_code: bool) -> dict[str, list[int]]:
    """The end tokens that each of a model's files names, those files that it has.

    As they stand in the files: a config class fills in a number of its own, which in this vocabulary may be any token.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    found, vocabulary = {}, sys.maxsize
    for file in ("generation_config.json", "config.json"):
        try:
            settings, _ = PreTrainedConfig.get_config_dict(path, _configuration_file=file)
        except OSError:  # most have no generation config
            continue
        # A model of several kinds of input has the language model's settings one level down.
        settings = (settings.get("text_config") or {}) | {
            key: value for key, value in settings.items() if value is not None
        }
        vocabulary = settings.get("vocab_size", vocabulary)
        found[file] = _ids(settings.get("eos_token_id"))
    if _has_tokenizer(Path(path)):
        with contextlib.suppress(OSError, ValueError):  # a sampler can do without a tokenizer
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
            found["the tokenizer"] = _ids(tokenizer.eos_token_id)
    # A tokenizer gives an end token that its vocabulary lacks a number past the model's.
    return {file: [end for end in ends if end < vocabulary] for file, ends in found.items()}


def _has_tokenizer(folder: Path) -> bool:
    """False for a folder without one: transformers would make up a tokenizer of the model's class, end token and all.
    What is no folder is the hub's, which knows."""
    return not folder.is_dir() or any(any(folder.glob(f"{name}*")) for name in ("tokenizer", "vocab", "spiece"))


def _ids(named: Any) -> list[int]:
    return [end for end in (named if isinstance(named, list) else [named]) if isinstance(end, int) and end >= 0]


def build_sampler(ref: PluginRef, model: ModelConfig, context: int, seed: int) -> Sampler:
    """The sampler that `ref` names, which is none of `auto`, with what its factory is told. What it raises, or gives
    that was not asked for, is a PluginError that names it."""
    from rlkit.generation.plain_linear import plain_linear

    with plain_linear():
        return _Named(registry.build("samplers", ref.kind, ref.options, model, context, seed), f"sampler {ref.kind!r}")


class _Named:
    """A plugin's sampler, whose faults carry its name."""

    def __init__(self, sampler: Sampler, name: str) -> None:
        self._sampler = sampler
        self._generate = Blame(name, "its generate", sampler.generate)
        self._sync = Blame(name, "its sync", sampler.sync)
        self._close = Blame(name, "its close", sampler.close)
        self.beside_training = bool(getattr(sampler, "beside_training", False))
        self.takes_adapters = bool(getattr(sampler, "takes_adapters", False))
        self._room = Blame(name, "its make_room", getattr(sampler, "make_room", sampler))
        self._streams = Blame(name, "its stream", getattr(sampler, "stream", sampler))
        if hasattr(sampler, "stream"):
            self.stream = self._stream

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        given = _Open(Listed(requests))
        given.take(wait=False)
        return self._checked(self._generate, lambda: self._sampler.generate(requests), given)

    def _stream(self, requests: Requests) -> Iterator[tuple[int, Completion]]:
        given = _Open(requests)
        return self._checked(self._streams, lambda: self._sampler.stream(given), given)  # type: ignore[attr-defined]

    def _checked(
        self, blame: Blame, begin: Callable[[], Iterable[tuple[int, Completion]]], given: _Open
    ) -> Iterator[tuple[int, Completion]]:
        from rlkit.generation.plain_linear import stepped

        # Beside training the learner computes meanwhile, in the same process, and needs what it has put there.
        with blame:
            for pair in begin() if self.beside_training else stepped(begin):
                if wrong := _wrong_completion(pair, given.open):
                    raise blame.fault(wrong)
                given.open.remove(pair[0])
                yield pair
            if given.open:
                raise blame.fault(
                    f"gave no completion for {len(given.open)} of {given.count} requests, the first of them request "
                    f"{min(given.open)}; it must yield (index, completion) once for each"
                )

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        with self._sync:
            self._sampler.sync(weights, version)

    def make_room(self, *, until_sync: bool) -> None:
        if hasattr(self._sampler, "make_room"):
            with self._room:
                self._sampler.make_room(until_sync=until_sync)

    def close(self) -> None:
        with self._close:
            self._sampler.close()


def make_room(sampler: Sampler, *, until_sync: bool) -> None:
    """Have a sampler on the learner's device give its memory back, where it can (see `Sampler`)."""
    if (give := getattr(sampler, "make_room", None)) is not None:
        give(until_sync=until_sync)


class Listed:
    """A list of requests as `Requests`: all at once, and no more."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._left: Sequence[Request] | None = requests

    def take(self, *, wait: bool) -> Sequence[Request] | None:
        left, self._left = self._left, None
        return left


class _Open:
    """Requests, and the numbers of those that are not answered yet."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self.open: set[int] = set()
        self.count = 0

    def take(self, *, wait: bool) -> Sequence[Request] | None:
        new = self._requests.take(wait=wait)
        if new:
            self.open.update(range(self.count, self.count + len(new)))
            self.count += len(new)
        return new


def _wrong_completion(pair: object, missing: set[int]) -> str | None:
    """What is wrong with what a sampler yielded while these requests were open; None: nothing."""
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Completion)):
        return f"yielded {shown(pair)}; it must yield pairs of a request's index and its Completion"
    index, completion = pair
    if index not in missing:
        return f"yielded a completion of request {index}, which there is not, or which was answered before"
    if len(completion.logprobs) != len(completion.tokens):
        return (
            f"yielded {len(completion.logprobs)} logprobs for {len(completion.tokens)} tokens, for request {index}; it "
            "must give one for each"
        )
    return None


def check(requests: Sequence[Request], context: int, first: int = 0) -> None:
    """RlkitError for a request that cannot be served within `context` tokens. `first`: the number of the first."""
    for i, request in enumerate(requests, first):
        prompt, limit = len(request.prompt_tokens), request.params.max_tokens
        if prompt < 1 or limit < 1:
            raise RlkitError(f"request {i}: {prompt} prompt tokens and max_tokens {limit}; each must be at least 1")
        if prompt + limit > context:
            raise RlkitError(
                f"request {i}: a prompt of {prompt} tokens and max_tokens {limit} exceed the sampler's context of "
                f"{context}. Lower max_tokens or drop long prompts"
            )
