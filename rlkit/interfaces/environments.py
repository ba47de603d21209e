"""The contract of environments, in which a model acts over several turns: text in, text out.

Apart from the other contracts, since it needs no torch: an environment's process starts without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Said = str | Sequence[Mapping[str, Any]]
"""Text, which stands for one message of the user; or chat messages, each a dict with `role` and `content`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What an environment is told of a row of the data.

    Example: `Task(question="Guess my number, 0 to 99", answer="47", gold="47", columns={"level": 2})`.
    """

    question: Any = None
    """The prompt's cell as the data hold it: text or chat messages, without a template."""
    answer: str = ""
    """The gold answer as text, JSON where it is structured; "" where the data has none."""
    gold: Any = None
    """The gold's cell as the data hold it; None where there is none."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of the row."""


@dataclass(kw_only=True, slots=True)
class Observation:
    """What an environment answers.

    Example: `Observation(text="higher")`, and at the end `Observation(reward=1.0, done=True, correct=True)`.
    """

    text: Said = ""
    """What the model reads next. At the end it may be shown to people, and is read by no model."""
    reward: float | None = None
    """For the action that led here, on the last token of its turn; None: none. The trajectory's is their sum."""
    done: bool = False
    """The model acts no more."""
    correct: bool | None = None
    """At the end, the verdict on the whole; None: as for a `RewardResult`."""
    counts: dict[str, float] = field(default_factory=dict)
    """Numbers that are added up over a trajectory, such as {"tool_calls": 1}; logged as environment/NAME."""
    info: dict[str, Any] = field(default_factory=dict)
    """Anything worth keeping with the turn; plain data."""


class Environment(Protocol):
    """One for each trajectory, in a process of its own that is killed past its deadline.

    It is made once from its options, and copied with the process (fork): what is opened or connected belongs in
    `start`. Text stands for an `Observation` of that text. A class may carry `range`, the lowest and the highest sum of
    rewards that it gives, and an object `tools`, JSON schemas of functions for the chat template.

    One whose rewards come at the end may have a method more, `cut(unheard: str) -> Observation | str`: it is called
    once, in place of another `step`, where the trajectory ends before the environment has said so, which may be before
    its first `step`. `unheard` is what the model has said of a turn that it could not end, for want of tokens; "" where
    `step` has heard all. The reward is added to the last turn's, `correct` counts as at the end, and no model reads the
    text; `done` says nothing. Without it a trajectory that is cut keeps the rewards that it was given on the way.
    Example:

        @rlkit.environment("guess")
        class Guess:
            range = (0.0, 1.0)

            def start(self, task, seed):
                self.number, self.near = int(task.answer), False
                return ""

            def step(self, action):
                if not action.strip().isdecimal():
                    return "a number, please"
                if int(action) == self.number:
                    return rlkit.Observation(reward=1.0, done=True)
                self.near = abs(int(action) - self.number) < 5
                return "higher" if int(action) < self.number else "lower"

            def cut(self, unheard):
                return rlkit.Observation(reward=0.25 if self.near else 0.0, correct=False)
    """

    def start(self, task: Task, seed: int) -> Observation | str:
        """Begin. What it says goes behind the data's question, as the user's words; "" for nothing. `seed` is the same
        for all samples of a prompt in a step, so that they begin alike."""
        ...

    def step(self, action: str) -> Observation | str:
        """What the model has said in its turn, special tokens left out."""
        ...
