"""STAND-IN until the processes are there: environments in this process."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rlkit import registry
from rlkit.config import ConversationConfig, PluginRef
from rlkit.interfaces.environments import Environment, Observation, Task
from rlkit.interfaces.rewards import Status


@dataclass(frozen=True)
class Answered:
    observation: Observation
    seconds: float


@dataclass(frozen=True)
class Lost:
    status: Status
    said: str
    broken: bool = False


Answer = Answered | Lost


class Environments:
    def __init__(self, ref: PluginRef, plugins: Sequence[str], config: ConversationConfig) -> None:
        self.name = ref.kind
        self._ref = ref
        self._made: dict[int, Environment] = {}
        self._answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self.log: Path | None = None

    def start(self, number: int, task: Task, seed: int) -> None:
        self._made[number] = registry.build("environments", self._ref.kind, self._ref.options)
        self._call(number, self._made[number].start, task, seed)

    def step(self, number: int, action: str) -> None:
        self._call(number, self._made[number].step, action)

    def _call(self, number: int, method: Any, *arguments: Any) -> None:
        began = time.monotonic()
        try:
            said = method(*arguments)
            answer: Answer = Answered(
                Observation(text=said) if isinstance(said, str) else said, time.monotonic() - began
            )
        except Exception as error:
            answer = Lost("error", str(error))
        self._answers.put((number, answer))

    def answered(self, *, wait: bool) -> list[tuple[int, Answer]]:
        found = []
        while not self._answers.empty():
            found.append(self._answers.get())
        return found

    def end(self, number: int) -> None:
        self._made.pop(number, None)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
