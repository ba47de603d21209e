"""Sampling by vLLM servers elsewhere, which `rlkit serve` started: token ids out and back, weights by their own routes.

Rank 0 gives each server the new weights, and keeps a copy of them on the host for one that comes back; every rank sends
its own requests. A sample follows from its seed and the weights alone, so it is the same whichever server draws it.
"""

from __future__ import annotations

import asyncio
import collections
import os
import secrets
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate, groupby
from typing import Annotated, Any, NoReturn

import httpx
import torch
from pydantic import Field, field_validator
from torch import Tensor

from rlkit.config import ModelConfig, Positive, Section
from rlkit.dispatch import NoServerError, ServerError, dispatch, in_a_thread
from rlkit.embedded import resolve
from rlkit.engine import distributed
from rlkit.errors import ConfigError, RlkitError
from rlkit.generation import Listed, check, end_tokens
from rlkit.generation.server import UNTOUCHED, Changes, Server, look
from rlkit.generation.server_facts import LEASE_S, fingerprint, shape
from rlkit.generation.stops import stops_of
from rlkit.http import authorisation, checked_url
from rlkit.interfaces.generation import Completion, Request, Requests, Sampler
from rlkit.registry import sampler

ATTEMPTS = 5
"""At one request, each on a server that was answering, before the run ends."""
HEALTH_S = 5.0
"""Between two questions to a server whether it is well."""


class VLLMServerConfig(Section):
    urls: Annotated[list[str], Field(min_length=1)]
    """Addresses of servers that `rlkit serve` started: [http://gpu7:8000, http://gpu8:8000]."""
    api_key_env: str | None = None
    """Environment variable that holds their key; null: they want none."""
    concurrency: Positive = 256
    """Requests under way at once on each server, of each rank."""
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """For one response; then it is asked for anew."""
    patience_s: Annotated[float, Field(gt=0)] = 300.0
    """How long a rollout waits while no server is of use, before the run ends, to be resumed."""

    @field_validator("urls")
    @classmethod
    def _checked(cls, urls: list[str]) -> list[str]:
        found = [checked_url(url).removesuffix("/v1") for url in urls]
        if twice := [url for url in found if found.count(url) > 1]:
            raise ValueError(f"{twice[0]} stands there twice")
        return found


@sampler("vllm_server")
def vllm_server(config: VLLMServerConfig, model: ModelConfig, context: int, seed: int) -> Sampler:
    """vLLM servers that `rlkit serve` started, here or elsewhere"""
    return _VLLMServers(config, model, context)


class _VLLMServers:
    beside_training = True
    takes_adapters = True

    def __init__(self, config: VLLMServerConfig, model: ModelConfig, context: int) -> None:
        self._config = config
        self._model = model
        self._context = context
        self._owner = secrets.token_hex(8)
        key = authorisation(config.api_key_env, "sampler vllm_server")
        self._servers = [Server(url, key, self._owner) for url in config.urls]
        check_servers(self._servers, model, context)
        self._ends = end_tokens(resolve(model.path), model.trust_remote_code)
        self._stops = stops_of(model)
        self._weights: dict[str, Tensor] = {}
        """On rank 0, after the first sync: what the servers sample with."""
        self._name = UNTOUCHED
        """Of these weights."""
        self._changes: Changes | None = None
        """Between them and those before."""
        self._current = threading.Lock()
        """Held while they change, or are on their way."""
        self._given = 0
        self._version = 0
        self._closed = threading.Event()
        self._renewing: threading.Thread | None = None

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        return self.stream(Listed(requests))

    def stream(self, requests: Requests) -> Iterator[tuple[int, Completion]]:
        if self._name == UNTOUCHED:
            self._check_untouched()
        taken = 0

        def take(wait: bool) -> Sequence[Request] | None:
            nonlocal taken
            new = requests.take(wait=wait)
            check(new or (), self._context, taken)
            taken += len(new or ())
            return new

        try:
            yield from in_a_thread(self._sample, take)
        except NoServerError as error:
            raise RlkitError(f"{error}\nWhen one is there again, the run goes on with --resume") from error

    async def _sample(self, come: AsyncIterator[Sequence[Request]]) -> AsyncIterator[tuple[int, Completion]]:
        asked: dict[int, Request] = {}
        last: dict[int, Server] = {}
        """Of each prompt so far, which server has it in its cache."""

        async def groups() -> AsyncIterator[list[list[int]]]:
            count = 0
            async for new in come:
                asked.update(enumerate(new, count))
                yield list(_groups(new, count))
                count += len(new)

        def choose(index: int, free: Sequence[Server]) -> Server:
            """A conversation's next turn goes where the one before went, if there is room."""
            prompts = _beginnings(asked[index].prompt_tokens)
            known = [last[prompt] for prompt in reversed(prompts) if prompt in last]
            last[prompts[-1]] = next((server for server in known if server in free), free[0])
            return last[prompts[-1]]

        timeout, key = httpx.Timeout(None, connect=10.0), self._servers[0].headers
        async with httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(), headers=key) as client:
            async for pair in dispatch(
                groups(),
                self._servers,
                lambda server, index: self._ask(client, server, asked[index]),
                lambda server: self._watch(client, server),
                concurrency=self._config.concurrency,
                patience_s=self._config.patience_s,
                attempts=ATTEMPTS,
                give_up=_given_up,
                choose=choose,
            ):
                del asked[pair[0]]
                yield pair

    async def _ask(self, client: httpx.AsyncClient, server: Server, request: Request) -> Completion:
        limit = self._config.timeout_s
        try:
            async with asyncio.timeout(limit):
                reply = await server.complete(client, request, self._ends)
                end = None
                if request.params.stop:
                    end = self._stops(request.params.stop).follow().push(reply.completion.tokens)
                    if end is None and reply.stopped_by_text:
                        # It read its tokens as another text than they are as a whole: the same sample, on to its end.
                        whole = replace(request, params=replace(request.params, stop=()))
                        reply = await server.complete(client, whole, self._ends)
                        end = self._stops(request.params.stop).follow().push(reply.completion.tokens)
        except TimeoutError as error:
            raise ServerError(f"{server.url} has not answered a request within {limit:g} s (timeout_s)") from error
        if reply.weights != self._name:
            raise ServerError(
                f"{server.url} does not hold the newest weights: it was started anew, or is another run's"
            )
        said = reply.completion
        return Completion(
            tokens=said.tokens[:end],
            logprobs=said.logprobs[:end],
            truncated=end is None and said.truncated,
            version=self._version,
        )

    async def _watch(self, client: httpx.AsyncClient, server: Server) -> str | None:
        """See `dispatch`."""
        if server.out is None:
            return await self._gone(client, server)
        wait = 0.5
        while True:
            await asyncio.sleep(wait)
            try:
                await asyncio.to_thread(self._readmit, server)
            except ServerError as error:
                server.out = str(error)
                wait = min(2 * wait, 10.0)
            else:
                return None

    async def _gone(self, client: httpx.AsyncClient, server: Server) -> str:
        """Wait until a server is not well, and say how. A machine that has vanished breaks no connection."""
        silent = 0
        while True:
            await asyncio.sleep(HEALTH_S)
            if server.out is not None:
                return server.out
            try:
                reply = await client.get(f"{server.url}/health", timeout=30.0)
            except httpx.HTTPError as error:
                silent += 1
                if silent == 2:
                    return f"{server.url} cannot be reached ({error or type(error).__name__})"
            else:
                silent = 0
                if reply.status_code != 200:
                    return f"{server.url} says that it is not well (status {reply.status_code})"

    def _readmit(self, server: Server) -> None:
        """Give a server work again, with the current weights. ServerError where it is not ready for it."""
        server.ask("GET", "/health")
        if server.version() == self._name:
            return
        if not self._weights:
            raise ServerError(f"{server.url} does not hold the newest weights")
        with self._current:
            server.give(self._weights, self._name, self._who())

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Give the servers the weights; on all ranks. RlkitError where one does not take the first ones; later one is
        out until it has them."""
        failure, out = None, {}
        if distributed.main_rank():
            with self._current:
                self._changes = Changes(self._name, self._keep(weights))
                self._given += 1
                self._name = f"{self._owner}:{self._given}:{version}"
                try:
                    self._give_all()
                except RlkitError as error:
                    failure = error
            out = {server.url: server.out for server in self._servers}
        else:
            collections.deque(weights, maxlen=0)  # under ZeRO-3 each is gathered on all ranks
        failure, self._name, out = distributed.gather_objects((failure, self._name, out))[0]
        if failure is not None:
            raise failure
        for server in self._servers:
            server.out = out[server.url]
        self._version = version

    def _keep(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Copy them to the host, over the old ones. Returns the names of those that have changed."""
        come, changed = set(), set()
        for name, tensor in weights:
            come.add(name)
            here, kept = tensor.detach().cpu(), self._weights.get(name)
            if kept is None:
                self._weights[name] = here.clone()
            elif torch.equal(kept, here):
                continue
            else:
                kept.copy_(here)
            changed.add(name)
        for name in self._weights.keys() - come:
            del self._weights[name]
        return changed

    def _give_all(self) -> None:
        first = self._renewing is None

        def give(server: Server) -> None:
            was_out = server.out is not None
            try:
                if first:
                    server.take(self._who())
                server.give(self._weights, self._name, self._who(), self._changes)
                server.out = None
            except ServerError as error:
                server.out = str(error)
                if not (first or was_out):
                    warnings.warn(f"a server is left out until it is back: {error}", stacklevel=2)

        with ThreadPoolExecutor(len(self._servers)) as all_at_once:
            list(all_at_once.map(give, self._servers))
        out = [server.out for server in self._servers if server.out is not None]
        if first and out:
            raise RlkitError("the new weights did not get to the servers:\n  " + "\n  ".join(out))
        if first:
            self._renewing = threading.Thread(target=self._renew, name="leases", daemon=True)
            self._renewing.start()

    def _renew(self) -> None:
        """Keep the leases while this process lives; a server that was started anew gets the weights, for whichever
        rank waits for it."""
        while not self._closed.wait(LEASE_S / 6):
            for server in self._servers:
                try:
                    if not server.hold(self._who()):
                        server.route = None
                        with self._current:
                            server.give(self._weights, self._name, self._who())
                except (RlkitError, ValueError, RuntimeError):
                    pass  # a rollout finds out what is wrong with it

    def _who(self) -> str:
        return f"process {os.getpid()} on {socket.gethostname()}"

    def _check_untouched(self) -> None:
        """Before the first sync, as in `rlkit eval`: the servers must hold this very model."""
        own = fingerprint(resolve(self._model.path))
        for server in self._servers:
            url, theirs = server.url, server.about["files"]
            if server.version() != UNTOUCHED:
                raise RlkitError(f"{url} holds weights that a run has given it: start it anew with {self._model.path}")
            if own is not None and theirs is not None and own != theirs:
                raise RlkitError(
                    f"{url} holds other weights than {self._model.path}: it was started with {server.about['model']}"
                )

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            if self._renewing is not None:
                self._renewing.join()
            for server in self._servers:
                server.close()
        self._weights = {}


def _groups(requests: Sequence[Request], first: int) -> Iterator[list[int]]:
    """Numbers of requests that stand together and have one prompt. `first`: the first one's."""
    for _, group in groupby(enumerate(requests, first), lambda pair: tuple(pair[1].prompt_tokens)):
        yield [number for number, _ in group]


def _beginnings(tokens: Sequence[int]) -> list[int]:
    """A number for each beginning of the tokens, the whole the last."""
    return list(accumulate(tokens, lambda before, token: hash((before, token)), initial=0))[1:]


def _given_up(index: int, error: ServerError) -> NoReturn:
    raise RlkitError(f"request {index} has failed {ATTEMPTS} times, the last time so: {error}") from error


def check_servers(servers: Sequence[Server], model: ModelConfig, context: int) -> None:
    """ConfigError where a server is not there, not one that `rlkit serve` started, or not right for this model."""
    from transformers import AutoConfig

    path = resolve(model.path)
    text = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code).get_text_config()
    own = {"shape": shape(text), "dtype": model.settled().dtype}
    with ThreadPoolExecutor(len(servers)) as all_at_once:
        list(all_at_once.map(look, servers))
    for server in servers:
        if wrong := _wrong(server.about, own, context, model.path):
            raise ConfigError(f"sampler.urls: {server.url} {wrong}")
    _check_tokenizers(servers, model)


def _wrong(about: dict[str, Any] | Any, own: dict[str, Any], context: int, path: str) -> str | None:
    """Why a server is not right; None: it is."""
    if about["shape"] != own["shape"]:
        differs = [
            f"{name} {about['shape'].get(name)}"
            for name, value in own["shape"].items()
            if about["shape"].get(name) != value
        ]
        return (
            f"serves another model, {about['model']} ({', '.join(differs)} there): start it with the one that is "
            f"trained, rlkit serve {path}"
        )
    if about["dtype"] != own["dtype"]:
        return (
            f"computes in {about['dtype']}, this run in {own['dtype']}: start it with `-- --dtype {own['dtype']}`, or "
            f"set model.dtype: {about['dtype']}"
        )
    if about["context"] < context:
        return (
            f"has a context of {about['context']} tokens, and the longest prompt with its response takes {context}: "
            f"start it with `-- --max-model-len {context}` or more, or lower sampling.max_tokens"
        )
    if about["logprobs"] != "processed_logprobs":
        return f"gives {about['logprobs']}, not those of the distribution drawn from: start it without --logprobs-mode"
    if about["transfer"] not in ("rlkit_gloo", "nccl"):
        return "was started without weight transfer, so it can take no new weights: start it with rlkit serve alone"
    return None


def _check_tokenizers(servers: Sequence[Server], model: ModelConfig) -> None:
    """Tokens mean the same on both sides: a text with words of the whole vocabulary is cut alike."""
    from rlkit.engine.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    words = range(0, len(tokenizer), max(1, len(tokenizer) // 500))
    text = tokenizer.decode(list(words), skip_special_tokens=True).replace("\ufffd", "")
    own = tokenizer.encode(text, add_special_tokens=False)
    for server in servers:
        try:
            theirs = server.ask("POST", "/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        except RlkitError as error:
            raise ConfigError(f"sampler.urls: {error}") from error
        if theirs != own:
            raise ConfigError(
                f"sampler.urls: {server.url} has another tokenizer than {model.path} (it was started with "
                f"{server.about['model']}): its tokens would mean something else"
            )
