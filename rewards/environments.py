"""Small environments that need nothing from outside: a guessing game, a calculator, and keys, where the first choice
decides the last reward. Each is a function of the task, the seed and the model's turns alone."""

from __future__ import annotations

import hashlib
import re

from rlkit import Observation, Task, environment
from rlkit.errors import ConfigError

_NUMBER = re.compile(r"(?<![0-9])-?[0-9]{1,18}(?![0-9])")
_CALL = re.compile(r"[\[(]\s*(-?[0-9]{1,18})\s*([-+*])\s*(-?[0-9]{1,18})\s*[\])]")


@environment("guessing")
class Guessing:
    """Guess a whole number; each wrong guess is answered by the side on which the number lies.

    The number is the gold, and its bounds stand in the question. A turn's guess is the last number in it; a turn
    without one ends the game. The k-th of n guesses that hits gives 1 - (k - 1) / n at the end, none 0: the range is
    0 to 1. It is right where it hits.

    guesses: how many there are (n).
    higher: what is said where the number is higher than the guess.
    lower: what is said where it is lower.
    """

    range = (0.0, 1.0)

    def __init__(self, *, guesses: int = 7, higher: str = "higher", lower: str = "lower") -> None:
        if guesses < 1:
            raise ConfigError(f"environment guessing: guesses must be 1 or more, but is {guesses}")
        self.guesses, self.higher, self.lower = guesses, higher, lower

    def start(self, task: Task, seed: int) -> str:
        self.number, self.misses = _gold(task), 0
        return ""

    def step(self, action: str) -> Observation:
        found = _NUMBER.findall(action)
        if not found:
            return Observation(text="that holds no number", reward=0.0, done=True, correct=False)
        guess = int(found[-1])
        if guess == self.number:
            return Observation(text="hit", reward=1 - self.misses / self.guesses, done=True, correct=True)
        self.misses += 1
        if self.misses == self.guesses:
            return Observation(text=f"it was {self.number}", reward=0.0, done=True, correct=False)
        return Observation(text=self.higher if guess < self.number else self.lower, reward=0.0)


@environment("calculator")
class Calculator:
    """A question with a whole number for its answer, and a calculator whose calls cost.

    A turn that holds the marker answers, by the first number behind the last one: 1 where it is the gold, else 0, and
    the end. Any other turn calls the calculator by its last bracket of the form [12+34] or (12+34), with + - or *; it
    is answered by the result alone, and paid for at once. A turn with neither, and a call too many, end it with 0. The
    range is -calls * cost to 1.

    calls: how many there may be.
    cost: what each costs.
    marker: the text before an answer.
    """

    def __init__(self, *, calls: int = 2, cost: float = 0.2, marker: str = "####") -> None:
        if calls < 0 or not 0 <= cost < float("inf") or not marker:
            raise ConfigError(
                f"environment calculator: calls ({calls}) and cost ({cost}) must be 0 or more, and the marker not empty"
            )
        self.calls, self.cost, self.marker = calls, cost, marker
        self.range = (-calls * cost, 1.0)

    def start(self, task: Task, seed: int) -> str:
        self.answer, self.called = _gold(task), 0
        return ""

    def step(self, action: str) -> Observation:
        _, answers, given = action.rpartition(self.marker)
        if answers:
            number = _NUMBER.search(given)
            right = number is not None and int(number[0]) == self.answer
            text = "right" if right else f"it is {self.answer}"
            return Observation(text=text, reward=float(right), done=True, correct=right)
        calls = _CALL.findall(action)
        if not calls:
            return Observation(text="neither a call nor an answer", reward=0.0, done=True, correct=False)
        if self.called == self.calls:
            return Observation(text="no calls are left", reward=0.0, done=True, correct=False)
        self.called += 1
        a, operation, b = int(calls[-1][0]), calls[-1][1], int(calls[-1][2])
        result = a + b if operation == "+" else a - b if operation == "-" else a * b
        return Observation(text=str(result), reward=-self.cost, counts={"calls": 1.0})


@environment("keys")
class Keys:
    """The first turn picks a key, then comes work, and only when that is done the key is tried: credit over turns.

    The first turn's last number is the key; it is right where it is the gold, and nothing tells before the end. Each
    turn of work asks for a digit above the one that is shown: such a digit is paid in one case of two, by luck that
    follows from the seed and all turns so far, any other is not. With the last turn of work comes 1 where the key is
    right, else 0. The range is 0 to 1 + work * pay.

    work: turns between the choice and the end.
    pay: what a turn of work gives where it is paid.
    """

    def __init__(self, *, work: int = 3, pay: float = 0.5) -> None:
        if work < 1 or not 0 <= pay < float("inf"):
            raise ConfigError(
                f"environment keys: work must be 1 or more, and pay 0 or more, but they are {work} and {pay}"
            )
        self.work, self.pay = work, pay
        self.range = (0.0, 1.0 + work * pay)

    def start(self, task: Task, seed: int) -> str:
        self.key, self.seed, self.turns = _gold(task), seed, list[str]()
        return ""

    def step(self, action: str) -> Observation:
        self.turns.append(action)
        done = len(self.turns) - 1
        if done == 0:
            self.fits, self.shown = _NUMBER.findall(action)[-1:] == [str(self.key)], self._shown(0)
            return Observation(text=f"{self.shown};", reward=0.0)
        said = action.strip()
        good = len(said) == 1 and said in "0123456789" and int(said) > self.shown
        reward = self.pay if good and _drawn(self.seed, *self.turns) % 2 else 0.0
        info = {"paid": reward, "worked": good}
        if done == self.work:
            text = "the key fits" if self.fits else f"it was key {self.key}"
            return Observation(text=text, reward=reward + self.fits, done=True, correct=self.fits, info=info)
        self.shown = self._shown(done)
        return Observation(text=f"{self.shown};", reward=reward, info=info)

    def _shown(self, turn: int) -> int:
        """The same for all samples of a prompt, whatever they do."""
        return _drawn(self.seed, f"shown {turn}") % 9


def _gold(task: Task) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", task.answer.strip()):
        raise ValueError(f"the gold must be a whole number, but is {task.answer[:100]!r}: see data.answer")
    return int(task.answer)


def _drawn(seed: int, *said: str) -> int:
    """A number that only looks random."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *said)).encode(), digest_size=8).digest(), "big")
