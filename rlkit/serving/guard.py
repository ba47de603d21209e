"""What vLLM's server runs around its routes: a key for all of them, and a lease for those that change the server.

vLLM's own key leaves its development routes open, by which anyone could replace the weights or call into the workers.
A run holds the lease of each of its servers, and renews it for as long as it lives: two runs would train each other's.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from rlkit.generation.server_facts import LEASE_S, OWNER, facts

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "VLLM_API_KEY"
"""Environment variable of the server's key. vLLM reads it too, for some of its routes."""
UP = "RLKIT_SERVER_UP"
"""Environment variable of what is printed when the server is up."""

_OPEN = {"/health", "/ping"}
"""For whoever keeps servers alive: they say nothing but that it is."""
_READS = {"/version", "/metrics", "/load", "/tokenize", "/detokenize", "/weight_info", "/is_paused", "/get_world_size"}
"""Besides what lies below `/v1` and `/inference`; all other routes need the lease."""
_NEVER = {"/collective_rpc"}
"""It calls any method of the workers, and nobody needs it here."""


@dataclass
class _Lease:
    owner: str
    who: str
    renewed: float
    renewals: int = 0

    @property
    def left(self) -> float:
        return self.renewed + LEASE_S - time.monotonic()


class Guard:
    """ASGI middleware, for vLLM's `--middleware`."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = os.environ.get(KEY, "")
        self._lease: _Lease | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _announcing(send))
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
        if path in _OPEN and scope["type"] == "http":
            await self._app(scope, receive, send)
        elif not self._key and "origin" in headers:
            await _answer(send, 403, {"error": "pages in a browser may not use a server without a key"})
        elif not self._knows_the_key(headers):
            await _answer(send, 401, {"error": "the key is missing or wrong"})
        elif path == "/rlkit/about":
            await _answer(send, 200, facts(scope["app"].state.vllm_config))
        elif path == "/rlkit/lease":
            await _answer(send, *self._leased(json.loads(await _body(receive))))
        elif path in _NEVER:
            await _answer(send, 403, {"error": f"{path} is closed here"})
        elif path in _READS or path.startswith(("/v1/", "/inference/")):
            await self._app(scope, receive, send)
        elif self._lease is None or headers.get(OWNER) != self._lease.owner:
            await _answer(send, 403, {"error": f"{path} is for the run that holds this server's lease"})
        else:
            await self._app(scope, receive, send)

    def _knows_the_key(self, headers: dict[str, str]) -> bool:
        given = headers.get("authorization", "")
        return not self._key or secrets.compare_digest(given.encode(), f"Bearer {self._key}".encode())

    def _leased(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Grant, renew or, where `who` is None, end a lease."""
        held, owner, who = self._lease, asked["owner"], asked["who"]
        if held is not None and held.owner != owner and held.left > 0:
            return 409, {"who": held.who, "renewals": held.renewals, "left_s": held.left}
        renewed = held is not None and held.owner == owner
        if who is None:
            self._lease = None
        elif held is not None and renewed:
            held.renewed, held.renewals = time.monotonic(), held.renewals + 1
        else:
            self._lease = _Lease(owner, who, time.monotonic())
        return 200, {"renewed": renewed}


def _announcing(send: Send) -> Send:
    async def announced(message: MutableMapping[str, Any]) -> None:
        await send(message)
        if message["type"] == "lifespan.startup.complete" and (said := os.environ.get(UP)):
            print(said, flush=True)

    return announced


async def _body(receive: Receive) -> bytes:
    content, more = b"", True
    while more:
        message = await receive()
        content, more = content + message.get("body", b""), message.get("more_body", False)
    return content


async def _answer(send: Send, status: int, said: Any) -> None:
    content = json.dumps(said).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
