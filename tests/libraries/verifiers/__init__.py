"""What an environment in verifiers' style takes from that library, which cannot be installed beside ours: the loop's
parts as its documentation (v0) tells of them, and no more."""

from __future__ import annotations

import inspect
import json
import uuid
from collections.abc import Callable
from typing import Any

from .types import ClientConfig, ToolMessage

Messages = list[dict[str, Any]]
State = dict


def stop(method: Callable[..., Any]) -> Callable[..., Any]:
    method.stop = True  # type: ignore[attr-defined]
    return method


class Rubric:
    def __init__(self, funcs: list[Callable[..., Any]] | None = None, weights: list[float] | None = None) -> None:
        self.funcs = list(funcs or [])
        self.weights = list(weights or [1.0] * len(self.funcs))

    def add_metric(self, function: Callable[..., Any]) -> None:
        self.funcs.append(function)
        self.weights.append(0.0)

    @property
    def has_group_rewards(self) -> bool:
        return any("completions" in inspect.signature(function).parameters for function in self.funcs)

    async def score_rollout(self, state: dict[str, Any]) -> None:
        scores = []
        for function in self.funcs:
            given = {name: state[name] for name in ("prompt", "completion", "answer", "info")} | {"state": state}
            assert state["cleaned"]
            score = function(**{name: given[name] for name in inspect.signature(function).parameters})
            scores.append(float(await score if inspect.isawaitable(score) else score))
        state["reward"] = sum(weight * score for weight, score in zip(self.weights, scores, strict=True))
        state["metrics"] = {f.__name__: score for f, score in zip(self.funcs, scores, strict=True)}


class MultiTurnEnv:
    def __init__(self, dataset: Any = None, rubric: Rubric | None = None, max_turns: int = -1) -> None:
        self.rubric = rubric or Rubric()
        self.max_turns = max_turns
        self.tool_defs: list[Any] | None = None

    async def init_state(self, row: dict[str, Any], client: ClientConfig, model: str) -> dict[str, Any]:
        assert isinstance(client, ClientConfig)
        begun = {"completion": None, "reward": None, "is_completed": False, "is_truncated": False}
        return {**row, "trajectory": [], "trajectory_id": uuid.uuid4().hex, **begun}

    async def setup_state(self, state: dict[str, Any]) -> None:
        pass

    @stop
    async def max_turns_reached(self, state: dict[str, Any]) -> bool:
        return 0 < self.max_turns <= len(state["trajectory"])

    @stop
    async def has_final_env_response(self, state: dict[str, Any]) -> bool:
        return state.get("final_env_response") is not None

    async def is_completed(self, state: dict[str, Any]) -> bool:
        for name, method in inspect.getmembers(self, inspect.ismethod):
            if getattr(method, "stop", False) and await method(state):
                state["stop_condition"] = name
                return True
        return False

    async def cleanup(self, state: dict[str, Any]) -> None:
        state["cleaned"] = True

    async def add_trajectory_step(self, state: dict[str, Any], step: dict[str, Any]) -> None:
        state["trajectory"].append(step)

    async def get_prompt_messages(self, state: dict[str, Any]) -> Messages:
        if not state["trajectory"]:
            return state["prompt"]  # type: ignore[no-any-return]
        past = [*state["trajectory"][-1]["prompt"], *state["trajectory"][-1]["completion"]]
        return [*past, *await self.env_response(past, state)]

    async def env_response(self, messages: Messages, state: dict[str, Any]) -> Messages:
        raise NotImplementedError


class SingleTurnEnv(MultiTurnEnv):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_turns=1, **kwargs)


class ToolEnv(MultiTurnEnv):
    def __init__(self, tools: list[Callable[..., Any]], max_turns: int = 10, **kwargs: Any) -> None:
        super().__init__(max_turns=max_turns, **kwargs)
        self.tools = {tool.__name__: tool for tool in tools}
        self.tool_defs = [_described(tool) for tool in tools]

    @stop
    async def no_tools_called(self, state: dict[str, Any]) -> bool:
        return bool(state["trajectory"]) and not state["trajectory"][-1]["completion"][-1].tool_calls

    async def env_response(self, messages: Messages, state: dict[str, Any]) -> Messages:
        results: Messages = []
        for call in messages[-1].tool_calls:  # type: ignore[attr-defined]
            try:
                result = str(self.tools[call.name](**json.loads(call.arguments)))
            except Exception as error:
                result = str(error)
            results.append(ToolMessage(role="tool", content=result, tool_call_id=call.id))
        return results


def _described(tool: Callable[..., Any]) -> dict[str, Any]:
    names = list(inspect.signature(tool).parameters)
    parameters = {"type": "object", "properties": {name: {"type": "integer"} for name in names}, "required": names}
    return {"name": tool.__name__, "description": inspect.getdoc(tool), "parameters": parameters, "strict": True}
