"""How other projects write an environment, and what they take from it.

Each style is a class that starts and steps a user's object as its project does, and turns what that returns into
observations. The projects need not be installed: an object is known by its methods.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import numbers
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rlkit.blame import shown
from rlkit.errors import ConfigError, RlkitError
from rlkit.interfaces.environments import Observation, Task
from rlkit.scoring.checks import plain

SEEDS = 2**31
"""Seeds are given below this: numpy's older generator, which many environments have, takes none above 2**32."""


class Style(Protocol):
    tools: list[dict[str, Any]]
    """Schemas of functions that the model may call."""

    def start(self, task: Task, seed: int) -> Observation: ...

    def step(self, action: str) -> Observation: ...


class Record(dict[str, Any]):
    """A dict whose keys are attributes too, as in the projects' own configs and messages."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Gym:
    """Gymnasium's `reset` and `step`, on text."""

    needs = ("reset", "step")

    def __init__(self, env: Any, name: str) -> None:
        self._env = env
        self._name = name
        self.tools: list[dict[str, Any]] = []

    def start(self, task: Task, seed: int) -> Observation:
        returned = self._env.reset(**_taken(self._env.reset, {"seed": seed % SEEDS, "options": row_of(task)}))
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise self._fault("reset", returned, "(observation, info)")
        observation, info = returned
        return Observation(text=_text(observation, f"{self._name}.reset"), info=_info(info, f"{self._name}.reset"))

    def step(self, action: str) -> Observation:
        returned = self._env.step(action)
        if not isinstance(returned, tuple) or len(returned) != 5:
            raise self._fault("step", returned, "(observation, reward, terminated, truncated, info)")
        observation, reward, terminated, truncated, info = returned
        where = f"{self._name}.step"
        ended, cut = flag(terminated, f"{where}: terminated"), flag(truncated, f"{where}: truncated")
        return Observation(
            text="" if (ended or cut) and observation is None else _text(observation, where),
            reward=number(reward, f"{where}: the reward"),
            done=ended or cut,
            info=_info(info, where) | ({"truncated": True} if cut else {}),
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
            return Observation(text=self._news(), info=_info(info, where))
        closed = self._env.close()
        rewards = closed[0] if isinstance(closed, tuple) and len(closed) == 2 else None
        if not isinstance(rewards, Mapping) or 0 not in rewards:
            raise RlkitError(
                f"{self._name}.close returned {shown(closed)}: in style 'textarena' it must return (rewards, info), "
                "with a reward for player 0"
            )
        kept = _info(closed[1], f"{self._name}.close").get("0")
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
        whole = _text(said, f"{self._name}.get_observation")
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
        self._env = self._make(**_taken(self._make, given, self._kwargs.keys()))
        prompt = chat_of(task)
        returned = self._env.init([dict(message) for message in prompt])
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise RlkitError(f"{self._name}.init returned {shown(returned)}: it must return (prompt, info)")
        told = _messages(returned[0], f"{self._name}.init")
        return Observation(
            text=_further(prompt, told, f"{self._name}.init"), info=_info(returned[1], f"{self._name}.init")
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
        counts: dict[str, float] = {}
        if done:
            metrics = self._env.get_metrics() if hasattr(self._env, "get_metrics") else {}
            counts = _numbers(metrics, f"{self._name}.get_metrics")
            if hasattr(self._env, "close"):
                self._env.close()
        return Observation(
            text=_messages(output["observations"], where),
            reward=number(output["reward"], f"{where}: the reward"),
            done=done,
            counts=counts,
            info=_info(output.get("metadata"), where),
        )


class Verifiers:
    """Environments of verifiers' `vf.MultiTurnEnv` and what is made of it; the rubric scores at the end."""

    needs = ("env_response",)

    def __init__(self, env: Any, name: str) -> None:
        self._env = env
        self._name = name
        self._runner = asyncio.Runner()
        self.tools: list[dict[str, Any]] = []
        rubric = getattr(self._env, "rubric", None)
        if getattr(rubric, "has_group_rewards", False):
            raise ConfigError(
                f"environment {name}: its rubric has rewards of a whole group, and rlkit scores a trajectory alone: "
                "leave those out"
            )
        if getattr(self._env, "tool_defs", None):
            raise ConfigError(
                f"environment {name}: it calls tools, which style 'verifiers' does not: give the functions themselves, "
                "environment: {kind: tools, tools: [FILE.py:FUNCTION]}"
            )

    def start(self, task: Task, seed: int) -> Observation:
        return self._runner.run(self._start(task))

    def step(self, action: str) -> Observation:
        return self._runner.run(self._step(action))

    async def _start(self, task: Task) -> Observation:
        row = row_of(task)
        row |= {"prompt": chat_of(task), "info": row.get("info") or {}}
        row.setdefault("example_id", 0)
        if hasattr(self._env, "init_state"):
            nobody = importlib.import_module("verifiers.types").ClientConfig()  # it is asked for nothing
            self._state = await self._env.init_state(row, nobody, "")
        else:
            self._state = Record(row, completion=[], trajectory=[], trajectory_id=uuid.uuid4().hex, reward=None)
        asked = list(self._state["prompt"])
        if hasattr(self._env, "setup_state"):
            self._state = await _settled(self._env.setup_state(self._state)) or self._state
        if await self._completed():
            raise RlkitError(f"{self._name} ended before the model's first turn ({self._state.get('stop_condition')})")
        self._prompt = list(await self._next()) if hasattr(self._env, "get_prompt_messages") else asked
        return Observation(text=_further(asked, self._prompt, f"{self._name}: the prompt"))

    async def _step(self, action: str) -> Observation:
        said = Record(role="assistant", content=action)
        turn = Record(
            prompt=self._prompt,
            completion=[said],
            response=None,
            tokens=None,
            reward=None,
            advantage=None,
            is_truncated=False,
            trajectory_id=self._state["trajectory_id"],
            extras={},
        )
        if hasattr(self._env, "add_trajectory_step"):
            await _settled(self._env.add_trajectory_step(self._state, turn))
        else:
            self._state["trajectory"].append(turn)
        past = [*self._prompt, said]
        self._state["completion"] = past[len(self._state["prompt"]) :]
        if await self._completed():
            return await self._scored([])
        self._prompt = (
            list(await self._next())
            if hasattr(self._env, "get_prompt_messages")
            else [
                *past,
                *_listed(await _settled(self._env.env_response(past, self._state)), self._name),
            ]
        )
        answer = _further(past, self._prompt, f"{self._name}.env_response")
        self._state["completion"] = self._prompt[len(self._state["prompt"]) :]
        if self._state.get("final_env_response") is not None:
            await self._completed()  # it says why
            return await self._scored(answer)
        return Observation(text=answer)

    async def _next(self) -> Sequence[Any]:
        return _listed(await _settled(self._env.get_prompt_messages(self._state)), self._name)

    async def _completed(self) -> bool:
        if not hasattr(self._env, "is_completed"):
            return False
        return bool(await _settled(self._env.is_completed(self._state)))

    async def _scored(self, answer: Sequence[Mapping[str, Any]]) -> Observation:
        state, rubric = self._state, getattr(self._env, "rubric", None)
        if hasattr(self._env, "cleanup"):
            await _settled(self._env.cleanup(state))
        if rubric is not None:
            await _settled(rubric.score_rollout(state))
        return Observation(
            text=answer,
            reward=number(state.get("reward"), f"{self._name}: the rubric's reward"),
            done=True,
            counts=_numbers(state.get("metrics") or {}, f"{self._name}: the rubric's metrics"),
            info={"stop_condition": str(state["stop_condition"])} if state.get("stop_condition") else {},
        )


STYLES: dict[str, Any] = {"verifiers": Verifiers, "skyrl": SkyRL, "textarena": TextArena, "gym": Gym}
"""By name; the first whose methods a class has is the one that it is written in."""


def guess(thing: object) -> str | None:
    """The style whose methods a class, or an object, has; None: it has none of theirs."""
    return next((name for name, style in STYLES.items() if not _lacking(thing, style.needs)), None)


def misfit(thing: object, style: str) -> str | None:
    """Why it cannot be an environment in that style; None: as far as can be seen, it can."""
    lacking = _lacking(thing, STYLES[style].needs)
    if not lacking:
        return None
    needs = " and ".join(STYLES[style].needs)
    fits = guess(thing)
    return f"style {style!r} calls {needs}, and it has no {lacking[0]}" + (
        f"; it has the methods of style {fits!r}: set style: {fits}" if fits else ""
    )


def _lacking(thing: object, methods: Sequence[str]) -> list[str]:
    return [method for method in methods if not callable(getattr(thing, method, None))]


def row_of(task: Task) -> dict[str, Any]:
    """The row as other projects have it: its columns, with the question as `prompt` and the gold as `answer`."""
    return {"prompt": task.question, "answer": task.answer if task.gold is None else task.gold, **task.columns}


def chat_of(task: Task) -> list[dict[str, Any]]:
    """The row's own chat messages, copies; a question as the user's."""
    if isinstance(task.question, list):
        return [dict(message) for message in task.question]
    return [{"role": "user", "content": "" if task.question is None else str(task.question)}]


def _taken(function: Callable[..., Any], given: Mapping[str, Any], always: Any = ()) -> dict[str, Any]:
    """Of what is given, the keywords that the function names, or all where it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return dict(given)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(given)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in given.items() if name in named or name in always}


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RlkitError(f"{where} gave the observation {shown(value)}: it must be text, which the model reads")
    return str(value)


def flag(value: object, what: str) -> bool:
    value = plain(value)
    if not isinstance(value, bool):
        raise RlkitError(f"{what} is {shown(value)}: it must be True or False")
    return value


def number(value: object, what: str) -> float | None:
    value = plain(value)
    if value is None:
        return None
    if not isinstance(value, numbers.Real):
        raise RlkitError(f"{what} is {shown(value)}: it must be a number")
    return float(value)


def _numbers(values: object, where: str) -> dict[str, float]:
    """The numbers among them."""
    if not isinstance(values, Mapping):
        raise RlkitError(f"{where} are {shown(values)}: they must be a dict")
    return {str(name): float(v) for name, value in values.items() if isinstance(v := plain(value), numbers.Real)}


def _info(value: object, where: str) -> dict[str, Any]:
    """As plain data, whatever it holds."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RlkitError(f"{where} gave the info {shown(value)}: it must be a dict")
    return {str(key): _kept(each) for key, each in value.items()}


def _kept(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, Mapping):
        return {str(key): _kept(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_kept(each) for each in value]
    return value if value is None or isinstance(value, str | bool | int | float) else shown(value)


def _listed(value: Any, where: str) -> list[Any]:
    """Messages as they came; text as one of the user."""
    if isinstance(value, str):
        return [Record(role="user", content=value)]
    if not isinstance(value, list):
        raise RlkitError(f"{where} returned {shown(value)}: it must return a list of chat messages")
    return [Record(each) if isinstance(each, dict) else each for each in value]


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    """Chat messages as plain dicts."""
    return [_message(each, where) for each in _listed(value, where)]


def _message(value: Any, where: str) -> dict[str, Any]:
    found = value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value
    if not isinstance(found, dict) or not {"role", "content"} <= found.keys():
        raise RlkitError(f"{where} gave the message {shown(value)}: it must have a role and content")
    return {str(key): _kept(each) for key, each in found.items()}


def _further(before: Sequence[Any], after: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """What comes behind `before`; RlkitError where that is not how `after` begins."""
    asked, told = _messages(list(before), where), _messages(list(after), where)
    if told[: len(asked)] != asked:
        raise RlkitError(
            f"{where} has changed what was said before: in rlkit a conversation only grows, and begins with the data's "
            "prompt (data.prompt, data.system)"
        )
    return told[len(asked) :]
