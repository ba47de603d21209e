"""Worker processes that reward functions run in, each sample with a deadline.

A thread of the parent hands out the work, so scoring goes on while the sampler has the main thread. Samples go out
several a message, as one call. Where that call raises, hangs or takes the worker down, its samples are called one by
one, so that the culprit is known and its neighbours keep their rewards; a culprit that kills its worker twice, the
second time alone in a fresh one, is `refused`.
"""

from __future__ import annotations

import json
import math
import pickle
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.config import ScoringConfig
from rlkit.errors import RlkitError
from rlkit.interfaces.progress import alive
from rlkit.interfaces.rewards import Sample
from rlkit.scoring.process import WorkerProcess
from rlkit.scoring.worker import Killed, Outcome, Outcomes, Raised, Ready, Work

START_S = 120.0
"""Within which a worker must have imported the plugins and built the rewards."""
MOST_SAMPLES = 8
"""Of one message."""
_TICK_S = 0.05


@dataclass(slots=True)
class _Task:
    """One sample for one reward."""

    index: int
    part: int
    payload: bytes
    kills: int = 0


@dataclass(slots=True, eq=False)
class _Message:
    tasks: list[_Task]
    one_by_one: bool = False

    @property
    def suspect(self) -> bool:
        """It has killed a worker: the next must be fresh, so that nothing else can be the cause."""
        return self.tasks[0].kills > 0


class Pool:
    """Scores samples by the rewards named in `rewards` (kind and options), in `config.workers` processes.

    `submit` and `finish` are for one thread; `finish` gives the outcomes of all that was submitted since the last.
    """

    def __init__(
        self, rewards: Sequence[tuple[str, dict[str, Any]]], plugins: Sequence[str], config: ScoringConfig
    ) -> None:
        self._config = config
        self._names = [kind for kind, _ in rewards]
        self._setup = json.dumps(
            {
                "rewards": list(rewards),
                "plugins": list(plugins),
                "memory_gib": config.memory_gib,
                "timeout_s": config.timeout_s,
            }
        )
        self.log: Path | None = None
        """Where workers that start from now on put down what they print; None: nowhere."""
        self._size = MOST_SAMPLES
        self._lock = threading.Condition()
        self._queues: list[deque[_Task]] = [deque() for _ in rewards]
        self._again: deque[_Message] = deque()
        self._outcomes: dict[int, Outcome] = {}
        self._submitted = 0
        self._flush = False
        self._closing = False
        self._broken: BaseException | None = None
        self._workers: list[WorkerProcess] = []
        self._work: dict[WorkerProcess, _Message] = {}
        self._selector = selectors.DefaultSelector()
        self._bell, self._clapper = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="rlkit-scoring", daemon=True)

    def submit(self, part: int, sample: Sample) -> int:
        """Queue a sample for the reward of that place; returns the place of its outcome in `finish`'s list."""
        task = _Task(self._submitted, part, pickle.dumps(sample))
        self._submitted += 1
        with self._lock:
            self._queues[part].append(task)
        if self._thread.ident is None:
            self._thread.start()
        self._ring()
        return task.index

    def finish(self) -> list[Outcome]:
        """Outcomes in the order of submission.

        Raises RlkitError, now and from then on, where workers cannot start.
        """
        with self._lock:
            self._flush = True
            self._ring()
            # Bounded: every message on its way has a deadline, and none is sent more than a few times.
            while len(self._outcomes) < self._submitted and self._broken is None:
                self._lock.wait(1.0)
                if not self._thread.is_alive() and self._broken is None:
                    raise RlkitError("the thread that scores has ended: the scorer was closed")
            if self._broken is not None:
                raise self._broken
            outcomes = [self._outcomes[i] for i in range(self._submitted)]
            self._outcomes.clear()
            self._submitted = 0
            self._flush = False
        return outcomes

    def close(self) -> None:
        """End the workers and whatever they started. Calling it twice is harmless."""
        with self._lock:
            self._closing = True
        self._ring()
        if self._thread.ident is not None:
            self._thread.join(60.0)
        self._bell.close()
        self._clapper.close()

    def _ring(self) -> None:
        try:
            self._clapper.send(b"!", socket.MSG_DONTWAIT)
        except OSError:  # full, so it rings already; or closed
            return

    # What follows runs in the thread, which alone touches workers and messages.

    def _run(self) -> None:
        self._selector.register(self._bell, selectors.EVENT_READ)
        try:
            while not self._closing:
                self._hand_out()
                for key, _ in self._selector.select(_TICK_S if self._waiting() else 1.0):
                    if key.fileobj is self._bell:
                        self._bell.recv(4096)
                    else:
                        key.data()
                for worker in list(self._workers):
                    self._look_after(worker)
        except Exception as error:
            with self._lock:
                self._broken = error if isinstance(error, RlkitError) else RlkitError(f"scoring broke down: {error!r}")
                self._broken.__cause__ = error.__cause__ if error is self._broken else error
                self._lock.notify_all()
        finally:
            for worker in self._workers:
                worker.printed.drain()
                worker.kill()
            self._selector.close()

    def _waiting(self) -> bool:
        return bool(self._work) or any(not worker.ready for worker in self._workers)

    def _hand_out(self) -> None:
        while len(self._workers) < self._config.workers:
            self._workers.append(self._started())
        # The one that has rested longest comes first.
        for worker in sorted(self._idle(), key=lambda w: w.last_used):
            if worker.dead():
                self._replace(worker)
            elif message := self._next_message(worker.fresh):
                self._send(worker, message)
        if any(m.suspect for m in self._again) and not any(w.fresh for w in self._workers):
            for worker in self._idle()[:1]:
                self._replace(worker)

    def _idle(self) -> list[WorkerProcess]:
        return [w for w in self._workers if w.ready and w not in self._work]

    def _next_message(self, fresh: bool) -> _Message | None:
        for message in self._again:
            if fresh or not message.suspect:
                self._again.remove(message)
                return message
        with self._lock:
            for queue in self._queues:
                size = self._size
                if self._flush:
                    size = min(size, math.ceil(len(queue) / self._config.workers))
                if queue and len(queue) >= size:
                    return _Message([queue.popleft() for _ in range(size)], one_by_one=size == 1)
        return None

    def _send(self, worker: WorkerProcess, message: _Message) -> None:
        self._work[worker] = message
        worker.deadline = time.monotonic() + self._config.timeout_s
        part = message.tasks[0].part
        worker.send(Work(part, message.one_by_one, [task.payload for task in message.tasks]))

    def _look_after(self, worker: WorkerProcess) -> None:
        for said in worker.messages():
            self._heard(worker, said)
        if worker.dead():
            self._lost(worker, worker.cause(f"scoring.memory_gib is {self._config.memory_gib:g}"))
        elif time.monotonic() > worker.deadline:
            allowed = self._config.timeout_s if worker.ready else START_S
            self._lost(worker, f"no answer within {allowed:g} s")

    def _heard(self, worker: WorkerProcess, said: object) -> None:
        if isinstance(said, Ready):
            if said.failed:
                raise RlkitError(f"the rewards cannot be built in a worker process:\n{said.failed}")
            worker.ready = True
            worker.rest()
            return
        message = self._work.get(worker)
        if message is None:
            worker.hung_up = True
            return
        if isinstance(said, Raised):
            del self._work[worker]
            self._again.append(_Message(message.tasks, one_by_one=True))
            worker.fresh = False
            worker.rest()
            return
        if not isinstance(said, Outcomes) or len(said.outcomes) > len(message.tasks):
            worker.hung_up = True
            return
        took = time.monotonic() - (worker.deadline - self._config.timeout_s)
        for outcome in said.outcomes:
            self._settle(message.tasks.pop(0), outcome)
        worker.fresh = False
        worker.deadline = time.monotonic() + self._config.timeout_s
        if not message.tasks:
            del self._work[worker]
            worker.rest()
            if took < self._config.timeout_s / 4:
                self._size = min(MOST_SAMPLES, self._size + 1)

    def _lost(self, worker: WorkerProcess, cause: str) -> None:
        message = self._work.pop(worker, None)
        printed = worker.printed.last()
        if not worker.ready:
            raise RlkitError(
                f"a worker process for the rewards {', '.join(self._names)} did not start: {cause}. Its last output:\n"
                f"{printed}\nWhere memory is short, raise scoring.memory_gib."
            )
        self._replace(worker)
        if message is None:
            return
        if not message.one_by_one:
            # Fewer a message while messages are lost: a long one that is merely slow is lost whole.
            self._size = max(1, self._size // 2)
            self._again.append(_Message(message.tasks, one_by_one=True))
            return
        culprit, *others = message.tasks
        if others:
            self._again.append(_Message(others, one_by_one=True))
        culprit.kills += 1
        if culprit.kills < 2:
            self._again.appendleft(_Message([culprit], one_by_one=True))
        else:
            said = f"took two worker processes down, the second a fresh one: {cause}\n{printed}"
            self._settle(culprit, Killed(said.strip()))

    def _settle(self, task: _Task, outcome: Outcome) -> None:
        alive()
        with self._lock:
            self._outcomes[task.index] = outcome
            self._lock.notify_all()

    def _started(self) -> WorkerProcess:
        worker = WorkerProcess(self._setup, time.monotonic() + START_S, self.log)
        self._selector.register(worker.link, selectors.EVENT_READ, worker.read)
        self._selector.register(worker.printed.stream, selectors.EVENT_READ, worker.printed.drain)
        return worker

    def _replace(self, worker: WorkerProcess) -> None:
        for stream in (worker.link, worker.printed.stream):
            self._selector.unregister(stream)
        worker.printed.drain()
        worker.kill()
        self._workers[self._workers.index(worker)] = self._started()
