"""One vLLM server that `rlkit serve` started: what it is, who holds it, its weights, and one completion of it."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import httpx
from torch import Tensor

from rlkit.dispatch import ServerError
from rlkit.errors import ConfigError, RlkitError
from rlkit.generation.server_facts import OWNER
from rlkit.generation.weights import Route
from rlkit.http import BUSY, excerpt_of, exchange
from rlkit.interfaces.generation import Completion, Request

ANSWERS_S = 30.0
"""For all that a server answers at once."""
PREPARES_S = 600.0
"""For new weights, and what goes with them."""
UNTOUCHED = "default"
"""vLLM's name for the weights that a server was started with."""


@dataclass(frozen=True)
class Changes:
    """Between weights of another name and those that are to be given."""

    name: str
    names: Set[str]
    """Of the tensors that are others now."""


@dataclass(eq=False)
class Server:
    url: str
    headers: Mapping[str, str]
    """With the key."""
    owner: str
    """Of the lease: a name that no other process has."""
    out: str | None = None
    """Why it gets no work; None: it does."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """See `rlkit.generation.server_facts`."""
    route: Route | None = None
    has: str | None = None
    """The name of the weights that came by the route last."""
    leased: bool = False
    """Its lease was taken here."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Around its weights."""

    def __post_init__(self) -> None:
        # None is kept: the server ends one after an error, and one that rests, and a question could meet that end.
        connections = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.Client(headers={**self.headers, OWNER: self.owner}, limits=connections)

    def ask(self, method: str, path: str, body: Any = None, *, wait_s: float = ANSWERS_S) -> Any:
        """The JSON that a route answers. ServerError where it does not."""
        reply = self.reply(method, path, body, wait_s=wait_s)
        if reply.status_code != 200:
            raise self.refused(path, reply.status_code, reply.content)
        return reply.json() if reply.content else None

    def reply(self, method: str, path: str, body: Any = None, *, wait_s: float = ANSWERS_S) -> httpx.Response:
        try:
            return self._client.request(
                method, self.url + path, json=body, timeout=httpx.Timeout(wait_s, connect=min(wait_s, 10.0))
            )
        except httpx.TimeoutException as error:
            raise ServerError(f"{self.url} has not answered {path} within {wait_s:g} s") from error
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url} cannot be reached ({error or type(error).__name__})") from error

    def refused(self, path: str, status: int, content: bytes) -> RlkitError:
        said = f"{self.url}{path} answered with status {status}: {excerpt_of(content)}"
        return RlkitError(said) if 400 <= status < 500 and status not in BUSY else ServerError(said)

    def hold(self, who: str | None) -> bool:
        """Take or renew the lease, or end it where `who` is None. False: it was not held before.

        ServerError where another run holds it.
        """
        reply = self.reply("POST", "/rlkit/lease", {"owner": self.owner, "who": who})
        if reply.status_code == 409:
            raise ServerError(f"{self.url} is held by another run ({reply.json()['who']})")
        if reply.status_code != 200:
            raise self.refused("/rlkit/lease", reply.status_code, reply.content)
        return bool(reply.json()["renewed"])

    def take(self, who: str) -> None:
        """The lease, for the first time. Where another run's has not been renewed until it ends, that run is dead.

        ServerError where it lives, and where the lease is ours already, by another address of the same server.
        """
        seen = None
        while True:
            reply = self.reply("POST", "/rlkit/lease", {"owner": self.owner, "who": who})
            if reply.status_code == 200 and reply.json()["renewed"] and not self.leased:
                raise ServerError(
                    f"{self.url} is a server that stands in sampler.urls by another name too: name it once"
                )
            if reply.status_code != 409:
                self.leased = reply.status_code == 200
                return
            held = reply.json()
            if seen not in (None, held["renewals"]):
                raise ServerError(
                    f"{self.url} is held by another run ({held['who']}): start another server for this one, or end that"
                )
            if seen is None:
                warnings.warn(
                    f"{self.url} was held by another run ({held['who']}): it is this one's in {held['left_s']:.0f} s, "
                    "unless that still lives",
                    stacklevel=2,
                )
            seen = held["renewals"]
            time.sleep(min(2.0, held["left_s"]))

    def version(self) -> str:
        """The name of its weights."""
        return str(self.ask("GET", "/weight_info")["weight_version"])

    def give(self, weights: Mapping[str, Tensor], name: str, who: str, since: Changes | None = None) -> None:
        """Have it sample with these weights, under this name, and forget what it kept of the old ones. `since`: what
        has changed; None: it is not known. ServerError where that fails."""
        with self.lock:
            try:
                if not self.hold(who):
                    self.route = None  # it was started anew, and knows nothing of ours
                if self.route is None:
                    self.has = None
                    self.route = self._open()
                # What another process has left under way would mix old and new.
                self.ask("POST", "/pause?mode=abort", wait_s=PREPARES_S)
                known = since is not None and self.has == since.name
                self.has = None
                self.route.send(weights, since.names if known and since is not None else weights.keys())
                self.ask("POST", "/update_weight_version", {"new_version": name})
                if not self.ask("POST", "/reset_prefix_cache")["success"]:
                    raise ServerError(f"{self.url} could not forget what it had cached of the old weights")
                self.ask("POST", "/resume")
                self.has = name
            except Exception as error:
                self.route = None
                if isinstance(error, ServerError):
                    raise
                raise ServerError(f"{self.url} has not taken the new weights: {error}") from error

    def _open(self) -> Route:
        if self.about["transfer"] == "nccl":
            from rlkit.generation.weights.nccl import NcclRoute

            return NcclRoute(self, self.about["workers"])
        from rlkit.generation.weights.gloo import GlooRoute

        return GlooRoute(self, self.about["workers"])

    # A `Receiver` of weights.
    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        self.ask("POST", "/init_weight_transfer_engine", {"init_info": init_info}, wait_s=PREPARES_S)

    def start_weight_update(self) -> None:
        try:
            self.ask("POST", "/start_weight_update", wait_s=PREPARES_S)
        except ServerError as error:
            if "already active" not in str(error):
                raise
            # A run that was killed has left one under way, of which nothing stays: all weights come now.
            self.finish_weight_update()
            self.ask("POST", "/start_weight_update", wait_s=PREPARES_S)

    def update_weights(self, update_info: Any) -> None:
        self.ask("POST", "/update_weights", {"update_info": update_info}, wait_s=PREPARES_S)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.ask("POST", "/finish_weight_update", wait_s=PREPARES_S)

    def close(self) -> None:
        """Let go of it, as far as it can be reached."""
        try:
            if self.route is not None:
                self.route.close()
                self.ask("POST", "/shutdown_weight_transfer_engine")
            if self.leased:
                self.hold(None)
        except RlkitError:
            pass  # the lease runs out
        self.route = None
        self._client.close()

    async def complete(self, client: httpx.AsyncClient, request: Request, ends: tuple[int, ...]) -> Reply:
        """One completion. ServerError where another server may do better, RlkitError where none will."""
        params = request.params
        asked: dict[str, Any] = {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "seed": request.seed,
            "stop_token_ids": list(ends),
            "ignore_eos": True,  # as the server has it; `ends` are the model's, all of them
            "logprobs": 0,
            "detokenize": bool(params.stop),
        }
        if params.stop:
            asked |= {"stop": list(params.stop), "include_stop_str_in_output": True, "skip_special_tokens": False}
        path = "/inference/v1/generate"
        body = {"token_ids": list(request.prompt_tokens), "sampling_params": asked}
        try:
            status, _, content = await exchange(client, self.url + path, body)
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url} cannot be reached ({error or type(error).__name__})") from error
        if status != 200:
            raise self.refused(path, status, content)
        return Reply.read(self.url, content)


@dataclass(frozen=True)
class Reply:
    completion: Completion
    """Its version is for the caller to find, who knows the names of weights."""
    weights: str
    """The name of those that sampled it."""
    stopped_by_text: bool

    @staticmethod
    def read(url: str, content: bytes) -> Reply:
        try:
            choice = json.loads(content)["choices"][0]
            reason, tokens = choice["finish_reason"], choice["token_ids"]
            logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
            (span,) = choice["weight_versions"]
            weights = span["version"]
        except (ValueError, LookupError, TypeError) as error:
            raise ServerError(f"{url} answered with what is no completion: {excerpt_of(content)}") from error
        if reason not in ("stop", "length"):
            raise ServerError(f"{url} has ended a completion itself ({reason})")
        completion = Completion(tokens=tokens, logprobs=logprobs, truncated=reason == "length", version=-1)
        return Reply(completion, weights, isinstance(choice["stop_reason"], str))


def look(server: Server) -> None:
    """Find out what is behind a url. ConfigError where it is no server that `rlkit serve` started, or keeps silent."""
    url = server.url
    try:
        reply = server.reply("GET", "/rlkit/about")
        if reply.status_code == 200:
            server.about = reply.json()
            return
        version = server.reply("GET", "/version") if reply.status_code == 404 else None
    except ServerError as error:
        raise ConfigError(
            f"sampler.urls: {error}. Start a server there (rlkit serve), wait until it says that it is up, or mend the "
            "address"
        ) from error
    except ValueError as error:
        raise ConfigError(f"sampler.urls: {url} is not a vLLM server: it answers with what is no JSON") from error
    if reply.status_code == 401:
        said = "wants another key than" if server.headers else "wants a key:"
        raise ConfigError(f"sampler.urls: {url} {said} the one in the variable that sampler.api_key_env names")
    if version is not None and version.status_code == 200 and b'"version"' in version.content:
        raise ConfigError(
            f"sampler.urls: {url} is a vLLM server without what a run needs of it (new weights, log-probs of the "
            "distribution drawn from): start it with rlkit serve"
        )
    raise ConfigError(f"sampler.urls: {url} is not a vLLM server: it answers with status {reply.status_code}")
