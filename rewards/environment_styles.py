"""How other projects write an environment, and what they take from it.

Each style is a class that starts and steps a user's object as its project does, and turns what that returns into
observations. The projects need not be installed: an object is known by its methods.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rlkit.blame import shown
from rlkit.errors import RlkitError
from rlkit.interfaces.environments import Observation, Task

from .adapting import (
    SEEDS,
    Record,
    chat_of,
    flag,
    further,
    info_of,
    messages_of,
    number,
    numbers_of,
    row_of,
    taken,
    text_of,
)
from .environment_verifiers import Verifiers
from .tool_calls import Format
from .tool_schema import schema_of
from .toolbox import Toolbox

_CALLS_OF_A_TURN = 256
"""More are not run: an environment may not say any amount at once."""


class Style(Protocol):
    """One whose project goes on where a trajectory is cut has a method `cut` besides, as rlkit's own."""

    tools: list[dict[str, Any]]
    """Schemas of functions that the model may call."""

    def start(self, task: Task, seed: int) -> Observation: ...

    def step(self, action: str) -> Observation: ...


class Gym:
    """Gymnasium's `reset` and `step`, on text."""

    needs = ("reset", "step")

    def __init__(self, env: Any, name: str) -> None:
        self._env = env
        self._name = name
        self.tools: list[dict[str, Any]] = []

    def start(self, task: Task, seed: int) -> Observation:
        returned = self._env.reset(**taken(self._env.reset, {"seed": seed % SEEDS, "options": row_of(task)}))
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise self._fault("reset", returned, "(observation, info)")
        observation, info = returned
        return Observation(text=text_of(observation, f"{self._name}.reset"), info=info_of(info, f"{self._name}.reset"))

    def step(self, action: str) -> Observation:
        returned = self._env.step(action)
        if not isinstance(returned, tuple) or len(returned) != 5:
            raise self._fault("step", returned, "(observation, reward, terminated, truncated, info)")
        observation, reward, terminated, truncated, info = returned
        where = f"{self._name}.step"
        ended, cut = flag(terminated, f"{where}: terminated"), flag(truncated, f"{where}: truncated")
        return Observation(
            text="" if (ended or cut) and observation is None else text_of(observation, where),
            reward=number(reward, f"{where}: the reward"),
            done=ended or cut,
            info=info_of(info, where) | ({"truncated": True} if cut else {}),
        )

    def _fault(self, method: str, returned: object, wanted: str) -> RlkitError:
        what = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else shown(returned)
        return RlkitError(f"{self._name}.{method} returned {what}: in style 'gym' it must return {wanted}")


class TextArena:
    """TextArena's games for one player."""

    needs = ("reset", "step", "get_observation", "close")

    def __init__(self, env: Any, name: str) -> None:
        self._env = env
        self._name = name
        self.tools: list[dict[str, Any]] = []

    def start(self, task: Task, seed: int) -> Observation:
        self._env.reset(num_players=1, seed=seed % SEEDS)
        self._seen = ""
        return Observation(text=self._news())

    def step(self, action: str) -> Observation:
        where = f"{self._name}.step"
        returned = self._env.step(action=action)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise RlkitError(f"{where} returned {shown(returned)}: in style 'textarena' it must return (done, info)")
        done, info = returned
        if not flag(done, f"{where}: done"):
            return Observation(text=self._news(), info=info_of(info, where))
        closed = self._env.close()
        rewards = closed[0] if isinstance(closed, tuple) and len(closed) == 2 else None
        if not isinstance(rewards, Mapping) or 0 not in rewards:
            raise RlkitError(
                f"{self._name}.close returned {shown(closed)}: in style 'textarena' it must return (rewards, info), "
                "with a reward for player 0"
            )
        kept = info_of(closed[1], f"{self._name}.close").get("0")
        reward = number(rewards[0], f"{self._name}.close: the reward")
        return Observation(reward=reward, done=True, info=kept if isinstance(kept, dict) else {})

    def _news(self) -> str:
        """What the game has said since it was last asked: its wrappers for models tell all from the beginning."""
        returned = self._env.get_observation()
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise RlkitError(
                f"{self._name}.get_observation returned {shown(returned)}: in style 'textarena' it must return "
                "(player, observation)"
            )
        said = returned[1]
        if isinstance(said, list):  # without a wrapper: (sender, message, kind)
            return "\n".join(str(message[1]) for message in said)
        whole = text_of(said, f"{self._name}.get_observation")
        news, self._seen = whole.removeprefix(self._seen), whole
        return news.strip("\n")


class SkyRL:
    """SkyRL-gym's text environments, made anew for each trajectory from the row."""

    needs = ("init", "step")

    def __init__(self, make: Callable[..., Any], name: str, kwargs: Mapping[str, Any]) -> None:
        self._make = make
        self._name = name
        self._kwargs = kwargs
        self.tools: list[dict[str, Any]] = []

    def start(self, task: Task, seed: int) -> Observation:
        row = row_of(task)
        extras = {
            "reward_spec": {"method": "rule", "ground_truth": row["answer"]},
            "extra_info": {},
            **task.columns,
            **self._kwargs.get("extras", {}),
        }
        given = {"env_config": {}, **self._kwargs, "extras": extras}
        given["env_config"] = Record(given["env_config"])
        self._env = self._make(**taken(self._make, given, self._kwargs))
        prompt = chat_of(task)
        returned = self._env.init([dict(message) for message in prompt])
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise RlkitError(f"{self._name}.init returned {shown(returned)}: it must return (prompt, info)")
        told = messages_of(returned[0], f"{self._name}.init")
        return Observation(
            text=further(prompt, told, f"{self._name}.init"), info=info_of(returned[1], f"{self._name}.init")
        )

    def step(self, action: str) -> Observation:
        where = f"{self._name}.step"
        output = self._env.step(action)
        if not isinstance(output, Mapping) or (lacks := {"observations", "reward", "done"} - output.keys()):
            what = f"a dict without {sorted(lacks)[0]!r}" if isinstance(output, Mapping) else shown(output)
            raise RlkitError(
                f"{where} returned {what}: it must return a BaseTextEnvStepOutput, a dict of observations, reward, "
                "done and metadata"
            )
        if output.get("postprocessed_action") not in (None, action):
            raise RlkitError(
                f"{where} returned a postprocessed_action, to stand for what the model said: rlkit trains on tokens as "
                "they were sampled. End turns with sampling.stop in its place, and let step read what lies before"
            )
        done = flag(output["done"], f"{where}: done")
        return Observation(
            text=messages_of(output["observations"], where),
            reward=number(output["reward"], f"{where}: the reward"),
            done=done,
            counts=self._closed() if done else {},
            info=info_of(output.get("metadata"), where),
        )

    def cut(self, unheard: str) -> Observation:
        return Observation(counts=self._closed())

    def _closed(self) -> dict[str, float]:
        """Its metrics, which are read at the end of any trajectory."""
        metrics = self._env.get_metrics() if hasattr(self._env, "get_metrics") else {}
        if hasattr(self._env, "close"):
            self._env.close()
        return numbers_of(metrics, f"{self._name}.get_metrics")


class TRL:
    """TRL's environments: public methods are tools, and a turn without a call is the end.

    form: how the model writes calls.
    """

    needs = ("reset",)

    def __init__(self, env: Any, name: str, form: Format) -> None:
        self._env = env
        self._name = name
        self._runner = asyncio.Runner()
        schemas = {method: schema_of(getattr(env, method), method) for method in tools_of(type(env))}
        self.tools: list[dict[str, Any]] = list(schemas.values())
        self.range = None if callable(getattr(env, "get_reward", None)) else (0.0, 0.0)
        self._box = Toolbox({method: self._waited(getattr(env, method)) for method in schemas}, schemas, form=form)

    def start(self, task: Task, seed: int) -> Observation:
        row = taken(self._env.reset, row_of(task))
        signature = inspect.signature(self._env.reset)
        try:
            signature.bind(**row)
        except TypeError as error:
            raise RlkitError(
                f"{self._name}.reset{signature} cannot be called: {error}. Given are {', '.join(row_of(task))}; "
                "give the parameter a default, or the data a column of that name"
            ) from error
        said = self._waited(self._env.reset)(**row)
        return Observation(text="" if said is None else text_of(said, f"{self._name}.reset"))

    def step(self, action: str) -> Observation:
        answers = self._box.answer(action, _CALLS_OF_A_TURN)
        if answers is not None:
            return Observation(text=answers.messages, counts=answers.counts)
        return self._rewarded()

    def cut(self, unheard: str) -> Observation:
        self._box.answer(unheard, _CALLS_OF_A_TURN)  # as in TRL: the calls are made, the answers are dropped
        return self._rewarded()

    def _rewarded(self) -> Observation:
        if not callable(getattr(self._env, "get_reward", None)):
            return Observation(done=True)
        reward = self._waited(self._env.get_reward)()
        return Observation(reward=number(reward, f"{self._name}.get_reward: the reward"), done=True)

    def _waited(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method; an async one runs in one loop, so that a client that the environment keeps stays usable."""
        if not inspect.iscoroutinefunction(method):
            return method

        @functools.wraps(method)
        def call(**arguments: Any) -> Any:
            return self._runner.run(method(**arguments))

        return call


def tools_of(thing: object) -> list[str]:
    """The methods of a class, or of an object's class, that TRL takes as tools."""
    kind = thing if inspect.isclass(thing) else type(thing)
    public = [name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")]
    return [name for name in public if name not in ("reset", "get_reward")]


STYLES: dict[str, Any] = {"verifiers": Verifiers, "skyrl": SkyRL, "textarena": TextArena, "gym": Gym, "trl": TRL}
"""By name; the first whose methods a class has is the one that it is written in."""


def guess(thing: object) -> str | None:
    """The style whose methods a class, or an object, has; None: it has none of theirs."""
    return next((style for style in STYLES if not _lacks(thing, style)), None)


def misfit(thing: object, style: str) -> str | None:
    """Why it cannot be an environment in that style; None: as far as can be seen, it can."""
    lacks = _lacks(thing, style)
    if not lacks:
        return None
    fits = guess(thing)
    return f"style {style!r} calls {calls(style)}, and it has no {lacks[0]}" + (
        f"; it has the methods of style {fits!r}: set style: {fits}" if fits else ""
    )


def calls(style: str) -> str:
    """What a style calls, for messages."""
    return " and ".join(STYLES[style].needs) + (" and methods that are tools" if style == "trl" else "")


def _lacks(thing: object, style: str) -> list[str]:
    lacking = [method for method in STYLES[style].needs if not callable(getattr(thing, method, None))]
    return lacking or (["method that is a tool"] if style == "trl" and not tools_of(thing) else [])
