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
U = TypeVar("U")

POLL_S = 0.01
"""Between two looks whether more has come, while something is under way."""


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
    groups: AsyncIterator[Iterable[Sequence[int]]],
    servers: Sequence[S],
    ask: Callable[[S, int], Awaitable[T]],
    watch: Callable[[S], Awaitable[str | None]],
    *,
    concurrency: int,
    patience_s: float,
    attempts: int,
    give_up: Callable[[int, ServerError], T],
    choose: Callable[[int, Sequence[S]], S] = lambda index, free: free[0],
) -> AsyncIterator[tuple[int, T]]:
    """(Number of a request, what `ask` made of it), as they end.

    groups: numbers of requests that go to one server together, some groups each time, as they come.
    ask: raises ServerError where another server may do better: then the server gets no more work.
    watch: of a server that has work, returns when it is gone, why; of one that is `out`, None when it has come back.
    concurrency: requests under way at once on one server. patience_s: how long no server may answer; NoServerError
    after that. attempts: at one request, each on a server that was answering; then it is what `give_up` makes of the
    last error. choose: of the servers that have room, the one with the least to do first, that of a group which begins
    with this number.
    """
    waiting: deque[list[int]] = deque()
    coming = {asyncio.ensure_future(anext(groups, None))}
    load: Counter[S] = Counter()
    tried: Counter[int] = Counter()
    asking: dict[asyncio.Task[T], tuple[S, int]] = {}
    watching: dict[S, asyncio.Task[str | None]] = {}
    answered = time.monotonic()
    try:
        while waiting or asking or coming:
            for server in servers:
                if server not in watching:
                    watching[server] = asyncio.ensure_future(watch(server))
            while waiting and (free := [s for s in servers if s.out is None and load[s] < concurrency]):
                group = waiting.popleft()
                server = choose(group[0], sorted(free, key=lambda s: load[s]))
                for index in group:
                    asking[asyncio.ensure_future(ask(server, index))] = server, index
                    load[server] += 1
            if not waiting or any(server.out is None for server in servers):
                answered = time.monotonic()
            elif time.monotonic() - answered > patience_s:
                raise NoServerError(_all_out(servers, patience_s))
            done, _ = await asyncio.wait(
                {*coming, *asking, *watching.values()}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
            )
            for come in [each for each in coming if each in done]:
                coming.remove(come)
                if (new := come.result()) is not None:
                    waiting += map(list, new)
                    coming.add(asyncio.ensure_future(anext(groups, None)))
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
        left: list[asyncio.Future[Any]] = [*coming, *asking, *watching.values()]
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _put(server: Place, out: str | None) -> None:
    if out is not None and server.out is None:
        warnings.warn(f"a server is left out until it is back: {out}", stacklevel=2)
    server.out = out


def _all_out(servers: Sequence[Place], patience_s: float) -> str:
    reasons = "\n  ".join(f"{server.url}: {server.out}" for server in servers)
    return f"no server has been of use for {patience_s:g} s:\n  {reasons}"


async def at_once(items: T) -> AsyncIterator[T]:
    """As `dispatch` takes groups: these, and no more."""
    yield items


def in_a_thread(
    stream: Callable[[AsyncIterator[Sequence[U]]], AsyncIterator[T]], take: Callable[[bool], Sequence[U] | None]
) -> Iterator[T]:
    """What an asynchronous stream makes of what comes, one thing of each, in a loop of its own in another thread. Who
    stops listening ends it.

    take: called in this thread for what has come; None: no more will. True: nothing is under way, so it may wait.
    """
    found: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    given: asyncio.Queue[Sequence[U] | None] = asyncio.Queue()
    loop = asyncio.new_event_loop()

    async def come() -> AsyncIterator[Sequence[U]]:
        while (new := await given.get()) is not None:
            yield new

    async def pump() -> None:
        async with contextlib.aclosing(stream(come())) as items:  # type: ignore[type-var]
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
    new: Sequence[U] | None = ()
    under_way = 0
    try:
        while True:
            if new is not None and ((new := take(not under_way)) is None or new):
                under_way += len(new or ())
                with contextlib.suppress(RuntimeError):  # the loop has ended by itself, and has said why
                    loop.call_soon_threadsafe(given.put_nowait, new)
            try:
                kind, item = found.get(timeout=None if new is None else POLL_S)
            except queue.Empty:
                continue
            if kind == "end":
                return
            if kind == "error":
                raise item
            under_way -= 1
            yield item
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
