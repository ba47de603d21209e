"""my_plugin: an environment for rlkit. What stands here asks again until the gold is said: make it yours."""

from __future__ import annotations

from rlkit import Observation, Task, environment


@environment("my_plugin")
class MyPlugin:
    """The data's question, and then some more tries: 1 for the gold, less `cost` for each answer before it.

    tries: answers that the model may give.
    cost: of a wrong one.
    """

    def __init__(self, *, tries: int = 3, cost: float = 0.25) -> None:
        self.tries = tries
        self.cost = cost
        # The lowest and the highest sum of a trajectory's rewards, wherever it is cut.
        self.range = (-tries * cost, 1.0)

    def start(self, task: Task, seed: int) -> str:
        """Each trajectory has its own copy of this object, so what it remembers is its own. What is drawn is drawn
        from `random.Random(seed)`."""
        if not task.answer:
            raise ValueError("the row has no gold, so nothing could be right")
        self.gold = task.answer.strip()
        self.left = self.tries
        return ""  # nothing beside the question

    def step(self, action: str) -> Observation:
        """What the model said, which may be anything: what is no answer is answered too."""
        said = action.strip()
        # `info` is kept with the turn in the run's rollouts/, `counts` are logged as environment/NAME.
        info = {"said": said[-100:]}
        if said == self.gold or said.endswith(f" {self.gold}"):
            return Observation(reward=1.0, done=True, correct=True, info=info)
        self.left -= 1
        return Observation(
            text="That is not it. Again:",
            reward=-self.cost,
            done=self.left == 0,
            correct=False,
            counts={"wrong": 1},
            info=info,
        )
