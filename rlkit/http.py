"""JSON over HTTP: what all who ask a server share, and many requests that wait for nothing else, each with a deadline
and bounded retries: to one server (`Endpoint`), or spread over several (`post_all`)."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import httpx

from rlkit.dispatch import NoServerError, ServerError, at_once, dispatch
from rlkit.errors import ConfigError
from rlkit.secrets import hide

T = TypeVar("T")

_LARGEST_REPLY = 16 * 2**20
_LONGEST_EXCERPT = 300
BUSY = frozenset({408, 409, 425, 429})
"""Statuses below 500 that another attempt may mend."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without a usable reply."""

    status: Literal["error", "timeout"]
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    concurrency: int
    """Requests under way at once."""
    timeout_s: float
    """For one request, its retries and the waits between them included."""
    retries: int
    """After the first attempt: where the server cannot be reached, is busy, breaks (5xx), or answers nonsense."""
    backoff_s: float
    """Wait before the first retry (less a random part); it doubles with each. A server's Retry-After goes first."""

    def post_all(self, bodies: Sequence[Mapping[str, Any]], read: Callable[[Any], T]) -> list[T | Failure]:
        """What `read` makes of each reply's JSON, in order. `read` raises ValueError for nonsense.

        Where more requests in a row fail than could be chance, the rest are not sent: a dead server costs one
        deadline, not one for each.
        """
        return _run(self._post_all(bodies, read)) if bodies else []

    async def _post_all(self, bodies: Sequence[Mapping[str, Any]], read: Callable[[Any], T]) -> list[T | Failure]:
        slots = asyncio.Semaphore(self.concurrency)
        failed_in_a_row, enough = 0, max(self.concurrency, 8)

        async def one(body: Mapping[str, Any]) -> T | Failure:
            nonlocal failed_in_a_row
            async with slots:
                if failed_in_a_row >= enough:
                    return Failure("error", f"not sent: the last {failed_in_a_row} requests to {self.url} failed")
                result = await self._post(client, body, read)
                failed_in_a_row = failed_in_a_row + 1 if isinstance(result, Failure) else 0
                return result

        limits = httpx.Limits(max_connections=self.concurrency)
        async with httpx.AsyncClient(headers=dict(self.headers), timeout=None, limits=limits) as client:
            return await asyncio.gather(*map(one, bodies))

    async def _post(
        self,
        client: httpx.AsyncClient,
        body: Mapping[str, Any],
        read: Callable[[Any], T],
        deadline: float | None = None,
        *,
        others: bool = False,
    ) -> T | Failure:
        """`deadline`: of the loop's clock; None: it begins now. `others`: where this server is what fails, it is not
        tried again, but a ServerError says so."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self.timeout_s if deadline is None else deadline
        for attempt in range(self.retries + 1):
            wait = self.backoff_s * 2**attempt * random.uniform(0.5, 1)
            try:
                async with asyncio.timeout_at(deadline):
                    status, headers, content = await exchange(client, self.url, body)
            except TimeoutError:
                reason = f"{self.url}: no answer within {self.timeout_s:g} s"
                if others:
                    raise ServerError(reason) from None
                return Failure("timeout", reason)
            except httpx.HTTPError as error:
                reason = f"{self.url}: {type(error).__name__}: {error}"
                if others:
                    raise ServerError(reason) from error
            else:
                excerpt = excerpt_of(content)
                if 200 <= status < 300:
                    try:
                        return read(json.loads(content))
                    except ValueError as error:
                        reason = f"{self.url}: unusable reply ({error}): {excerpt}"
                else:
                    reason = f"{self.url}: status {status}: {excerpt}"
                    if status < 500 and status not in BUSY:
                        return Failure("error", hide(reason))
                    if others:
                        raise ServerError(hide(reason))
                    if (asked := headers.get("retry-after", "")).isdecimal():
                        wait = max(wait, float(asked))
            if attempt == self.retries or clock() + wait >= deadline:
                break
            await asyncio.sleep(wait)
        return Failure("error", hide(f"{reason} (attempt {attempt + 1} of {self.retries + 1})"))


@dataclass(eq=False)
class _Place:
    endpoint: Endpoint
    out: str | None = None
    failures: int = 0
    """In a row."""

    @property
    def url(self) -> str:
        return self.endpoint.url


def post_all(
    endpoints: Sequence[Endpoint], bodies: Sequence[Mapping[str, Any]], read: Callable[[Any], T]
) -> list[T | Failure]:
    """`Endpoint.post_all` over several servers, which differ in their urls alone. What one cannot answer is sent to
    another, and the one gets no more until it has rested, longer each time; `concurrency` is of each."""
    if len(endpoints) == 1:
        return endpoints[0].post_all(bodies, read)
    return _run(_spread(endpoints, bodies, read)) if bodies else []


async def _spread(
    endpoints: Sequence[Endpoint], bodies: Sequence[Mapping[str, Any]], read: Callable[[Any], T]
) -> list[T | Failure]:
    one, clock = endpoints[0], asyncio.get_running_loop().time
    deadlines: dict[int, float] = {}
    found: dict[int, T | Failure] = {}

    async def ask(place: _Place, index: int) -> T | Failure:
        deadline = deadlines.setdefault(index, clock() + one.timeout_s)
        if clock() >= deadline:
            return Failure("timeout", f"{place.url} and others: no answer within {one.timeout_s:g} s")
        answer = await place.endpoint._post(client, bodies[index], read, deadline, others=True)
        place.failures = 0
        return answer

    async def watch(place: _Place) -> None:
        if place.out is None:
            await asyncio.Event().wait()  # it is a request that finds out
        place.failures += 1
        await asyncio.sleep(min(one.backoff_s * 2**place.failures, one.timeout_s))

    def give_up(index: int, error: ServerError) -> T | Failure:
        return Failure("error", f"{error} (attempt {one.retries + 1} of {one.retries + 1})")

    async with httpx.AsyncClient(headers=dict(one.headers), timeout=None, limits=httpx.Limits()) as client:
        try:
            async for index, answer in dispatch(
                at_once([[index] for index in range(len(bodies))]),
                [_Place(endpoint) for endpoint in endpoints],
                ask,
                watch,
                concurrency=one.concurrency,
                patience_s=one.timeout_s,
                attempts=one.retries + 1,
                give_up=give_up,
            ):
                found[index] = answer
        except NoServerError as error:
            nobody = Failure("error", str(error))
            return [found.get(index, nobody) for index in range(len(bodies))]
    return [found[index] for index in range(len(bodies))]


def excerpt_of(content: bytes) -> str:
    """What is shown of a reply that is not what it should be."""
    return hide(content[:_LONGEST_EXCERPT].decode(errors="replace"))


async def exchange(
    client: httpx.AsyncClient, url: str, body: Mapping[str, Any]
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and content of the reply to a POST of JSON. httpx.HTTPError where there is none."""
    content = bytearray()
    async with client.stream("POST", url, json=body) as reply:
        async for chunk in reply.aiter_bytes():
            content += chunk
            if len(content) > _LARGEST_REPLY:
                raise httpx.ReadError(f"the reply is larger than {_LARGEST_REPLY} bytes")
    return reply.status_code, reply.headers, bytes(content)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # A notebook's thread has a loop of its own that is running.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def checked_url(url: str) -> str:
    """The URL without a slash at its end; ValueError where it is none."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is not a URL: it must begin with http:// or https:// and name a host")
    return url.rstrip("/")


def authorisation(variable: str | None, what: str) -> dict[str, str]:
    """Headers with the key that an environment variable holds; none for None. ConfigError where it is not set.

    what: whose option names the variable, for the message.
    """
    if variable is None:
        return {}
    if not os.environ.get(variable):
        raise ConfigError(f"{what}: api_key_env names the environment variable {variable}, which is not set")
    return {"Authorization": f"Bearer {os.environ[variable]}"}
