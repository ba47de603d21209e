"""Environments for the tests: a plugin file."""

from __future__ import annotations

import random
import time
from typing import Any

import rlkit


@rlkit.environment("sums")
class Sums:
    """Asks for one sum after the other, and says how each was."""

    range = (0.0, 3.0)

    def __init__(self, *, turns: int = 3, opens: str = "", pause: float = 0.0, at_the_end: bool = False) -> None:
        self.turns, self.opens, self.pause, self.at_the_end = turns, opens, pause, at_the_end

    def start(self, task: rlkit.Task, seed: int) -> str:
        self.random = random.Random(seed)
        self.asked = str(task.question)
        self.turn = self.right = 0
        return self.opens

    def step(self, action: str) -> rlkit.Observation:
        first, _, second = self.asked.removesuffix("=").partition("+")
        right = action.endswith(f"#### {int(first) + int(second)}")
        self.turn += 1
        self.right += right
        self.asked = f"{self.random.randint(1, 9)}+{self.random.randint(1, 9)}="
        done = self.turn == self.turns
        reward = (float(self.right) if done else None) if self.at_the_end else float(right)
        return rlkit.Observation(
            text="" if done else self.asked,
            reward=reward,
            done=done,
            counts={"right": float(right)},
            info={"at": self.turn},
        )


@rlkit.environment("odd")
class Odd:
    """Does as it is told by the row's column `odd`."""

    def start(self, task: rlkit.Task, seed: int) -> Any:
        self.odd = task.columns["odd"]
        if self.odd == "over at once":
            return rlkit.Observation(done=True)
        return "2+2=" if self.odd == "asks" else ""

    def step(self, action: str) -> Any:
        match self.odd:
            case "raises":
                raise KeyError("no such room")
            case "nan":
                return rlkit.Observation(reward=float("nan"), done=True)
            case "hangs":
                time.sleep(600)
            case "number":
                return 3
            case "never ends":
                return rlkit.Observation(text="again ", counts={"errors": 0})
        return rlkit.Observation(reward=1.0, done=True)


@rlkit.environment("hears")
class Hears:
    """Ends nothing of itself unless it is told to, and hears where it is cut; does then as the column `odd` says."""

    range = (0.0, 3.0)

    def start(self, task: rlkit.Task, seed: int) -> str:
        self.odd = task.columns["odd"]
        return ""

    def step(self, action: str) -> rlkit.Observation:
        return rlkit.Observation(text="again ", reward=0.25, done=self.odd == "done", info={"stepped": action})

    def cut(self, unheard: str) -> Any:
        match self.odd:
            case "raises":
                raise KeyError("no such room")
            case "nan":
                return rlkit.Observation(reward=float("nan"))
            case "number":
                return 3
            case "too much":
                return rlkit.Observation(reward=4.0)
        return rlkit.Observation(
            text=f"cut in {unheard!r}", reward=1.0, correct=True, counts={"heard": 1}, info={"unheard": unheard}
        )
