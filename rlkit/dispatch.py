"""Many requests over several servers, for samplers and judges: each group of them goes to whichever server has least to
do; what a server loses is sent to another."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from rlkit.errors import RlkitError

T = TypeVar("T")


class ServerError(RlkitError):
    """A server that could not be reached, or did not do what it was asked: another may."""


class NoServerError(RlkitError):
    """None of them has been of use for too long."""


class Place(Protocol):
    """Of a server: hashed by what it is, not by what it says."""

    out: str | None
    """Why it gets no work; None: it does."""

    @property
    def url(self) -> str: ...


S = TypeVar("S", bound=Place)


async def dispatch(
    groups: Iterable[Sequence[int]],
    servers: Sequence[S],
    ask: Callable[[S, int], Awaitable[T]],
    watch: Callable[[S], Awaitable[str | None]],
    *,
    concurrency: int,
    patience_s: float,
    attempts: int,
    give_up: Callable[[int, ServerError], T],
) -> AsyncIterator[tuple[int, T]]:
    """(Number of a request, what `ask` made of it), as they end.

    groups: numbers of requests that go to one server together.
    ask: raises ServerError where another server may do better: then the server gets no more work.
    watch: of a server that has work, returns when it is gone, why; of one that is `out`, None when it has come back.
    concurrency: requests under way at once on one server. patience_s: how long no server may answer; NoServerError
    after that. attempts: at one request, each on a server that was answering; then it is what `give_up` makes of the
    last error.
    """
    waiting = deque(map(list, groups))
    load: Counter[S] = Counter()
    tried: Counter[int] = Counter()
    asking: dict[asyncio.Task[T], tuple[S, int]] = {}
    watching: dict[S, asyncio.Task[str | None]] = {}
    answered = time.monotonic()
    try:
        while waiting or asking:
            for server in servers:
                if server not in watching:
                    watching[server] = asyncio.ensure_future(watch(server))
            while waiting and (free := [s for s in servers if s.out is None and load[s] < concurrency]):
                server = min(free, key=lambda s: load[s])
                for index in waiting.popleft():
                    asking[asyncio.ensure_future(ask(server, index))] = server, index
                    load[server] += 1
            if any(server.out is None for server in servers):
                answered = time.monotonic()
            elif time.monotonic() - answered > patience_s:
                raise NoServerError(_all_out(servers, patience_s))
            done, _ = await asyncio.wait(
                {*asking, *watching.values()}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
            )
            for server in [s for s, task in watching.items() if task in done]:
                _put(server, watching.pop(server).result())
                if server.out is not None:
                    for task in [t for t, (theirs, _) in asking.items() if theirs is server and t not in done]:
                        task.cancel()
                        waiting.appendleft([asking.pop(task)[1]])
                        load[server] -= 1
            for task in [task for task in asking if task in done]:
                server, index = asking.pop(task)
                load[server] -= 1
                try:
                    yield index, task.result()
                except ServerError as error:
                    tried[index] += 1
                    if tried[index] == attempts:
                        yield index, give_up(index, error)
                    else:
                        waiting.appendleft([index])
                    if server.out is None:
                        _put(server, str(error))
                        watching.pop(server).cancel()
    finally:
        for each in (*asking, *watching.values()):
            each.cancel()
        await asyncio.gather(*asking, *watching.values(), return_exceptions=True)


def _put(server: Place, out: str | None) -> None:
    if out is not None and server.out is None:
        warnings.warn(f"a server is left out until it is back: {out}", stacklevel=2)
    server.out = out


def _all_out(servers: Sequence[Place], patience_s: float) -> str:
    reasons = "\n  ".join(f"{server.url}: {server.out}" for server in servers)
    return f"no server has been of use for {patience_s:g} s:\n  {reasons}"


def in_a_thread(stream: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
    """What an asynchronous stream gives, in a loop of its own in another thread. Who stops listening ends it."""
    found: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()

    async def pump() -> None:
        async with contextlib.aclosing(stream()) as items:  # type: ignore[type-var]
            async for item in items:
                found.put(("item", item))

    task = loop.create_task(pump())

    def run() -> None:
        try:
            loop.run_until_complete(task)
            found.put(("end", None))
        except BaseException as error:
            found.put(("error", error))
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=run, name="vllm_server", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = found.get()
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
