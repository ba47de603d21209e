"""Environments of verifiers' `vf.MultiTurnEnv` and what is derived from it, turned as that library's own loop does."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.errors import ConfigError, RlkitError
from rlkit.interfaces.environments import Observation, Task

from .adapting import chat_of, further, listed, number, numbers_of, row_of, settled
from .tool_calls import Call, Format, calls_in


class Verifiers:
    """After each turn the stop conditions, then `env_response`; at the end the rubric scores.

    form: how the model writes calls of tools, where the environment has some.
    """

    needs = ("env_response", "init_state")

    def __init__(self, env: Any, name: str, form: Format) -> None:
        self._env = env
        self._name = name
        self._form = form
        self._runner = asyncio.Runner()
        self._types = importlib.import_module("verifiers.types")
        if getattr(env.rubric, "has_group_rewards", False):
            raise ConfigError(
                f"environment {name}: its rubric has rewards of a whole group, and rlkit scores a trajectory alone: "
                "leave those out"
            )
        self.tools: list[dict[str, Any]] = [_schema(tool) for tool in env.tool_defs or ()]
        self._parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in self.tools}

    def start(self, task: Task, seed: int) -> Observation:
        return self._runner.run(self._start(task))

    def step(self, action: str) -> Observation:
        return self._runner.run(self._step(action))

    def cut(self, unheard: str) -> Observation:
        return self._runner.run(self._cut(unheard))

    async def _start(self, task: Task) -> Observation:
        row = row_of(task)
        row |= {"prompt": chat_of(task), "info": row.get("info") or {}, "example_id": row.get("example_id", 0)}
        client = self._types.ClientConfig()  # it is asked for nothing
        state = await self._env.init_state(row, client, "")
        asked = list(state["prompt"])
        self._state = await settled(self._env.setup_state(state)) or state
        if await self._env.is_completed(self._state):
            raise RlkitError(f"{self._name} ended before the model's first turn ({self._state.get('stop_condition')})")
        self._prompt = await self._next()
        return Observation(text=further(asked, self._prompt, f"{self._name}: the prompt"))

    async def _step(self, action: str) -> Observation:
        past = await self._heard(action)
        if await self._env.is_completed(self._state):
            return await self._scored([])
        self._prompt = await self._next()
        answer = further(past, self._prompt, f"{self._name}.env_response")
        self._state["completion"] = self._prompt[len(self._state["prompt"]) :]
        if self._state.get("final_env_response") is not None:
            await self._env.is_completed(self._state)  # it says why
            return await self._scored(answer)
        return Observation(text=answer)

    async def _cut(self, unheard: str) -> Observation:
        state = self._state
        if unheard or not state["trajectory"]:
            await self._heard(unheard, truncated=True)
            await self._env.is_completed(state)  # its conditions may put down what the rubric reads
            state["is_truncated"] = True
        else:  # no model has read what it has answered to the last turn
            turn = state["trajectory"][-1]
            state["completion"] = [*turn["prompt"], *turn["completion"]][len(state["prompt"]) :]
        state["is_completed"] = True
        return await self._scored([])

    async def _heard(self, action: str, *, truncated: bool = False) -> list[Any]:
        """The conversation with that turn, which is put down."""
        past = [*self._prompt, self._said(action)]
        turn = {
            "prompt": self._prompt,
            "completion": past[-1:],
            "response": None,
            "tokens": None,
            "reward": None,
            "advantage": None,
            "is_truncated": truncated,
            "trajectory_id": self._state["trajectory_id"],
            "extras": {},
        }
        await settled(self._env.add_trajectory_step(self._state, turn))
        self._state["completion"] = past[len(self._state["prompt"]) :]
        return past

    async def _next(self) -> list[Any]:
        """The conversation so far, with what the environment says to the last turn."""
        return listed(await settled(self._env.get_prompt_messages(self._state)), self._name)

    def _said(self, action: str) -> Any:
        """The turn as the library's clients give it: calls that cannot be read are none."""
        found = calls_in(action, self._form, self._parameters) if self.tools else []
        at = len(self._state["trajectory"])
        calls = [
            self._types.ToolCall(id=f"call_{at}_{place}", name=call.name, arguments=json.dumps(call.arguments))
            for place, call in enumerate(found)
            if isinstance(call, Call)
        ]
        return self._types.AssistantMessage(role="assistant", content=action, tool_calls=calls or None)

    async def _scored(self, answer: Sequence[Mapping[str, Any]]) -> Observation:
        state = self._state
        await settled(self._env.cleanup(state))
        await settled(self._env.rubric.score_rollout(state))
        return Observation(
            text=answer,
            reward=number(state.get("reward"), f"{self._name}: the rubric's reward"),
            done=True,
            counts=numbers_of(state.get("metrics") or {}, f"{self._name}: the rubric's metrics"),
            info={"stop_condition": str(state["stop_condition"])} if state.get("stop_condition") else {},
        )


def _schema(tool: Any) -> dict[str, Any]:
    """Of a tool as verifiers describes it, in the form of chat templates."""
    said = tool if isinstance(tool, dict) else tool.model_dump()
    return {"type": "function", "function": {key: said[key] for key in ("name", "description", "parameters")}}
