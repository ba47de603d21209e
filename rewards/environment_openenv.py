"""Environments that an OpenEnv server holds: a session for each trajectory, over its WebSocket.

Its POST /reset and /step make an environment anew for each request, so that a conversation needs the session.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from rlkit.blame import shown
from rlkit.distribution import check_extra
from rlkit.errors import RlkitError
from rlkit.http import authorisation, checked_url, excerpt_of
from rlkit.interfaces.environments import Observation, Task

from .adapting import SEEDS, flag, number, row_of

_LARGEST_REPLY = 16 * 2**20


class OpenEnv:
    """Resets with the row's columns and the seed, steps with the model's turn in one field of the action.

    action: that field; None: the turn itself is the action, a JSON object. shows: the field of observations that the
    model reads, with dots into what it holds; None: all of it, as JSON.
    """

    def __init__(self, url: str, api_key_env: str | None, action: str | None, shows: str | None) -> None:
        check_extra("environment 'class' with style openenv needs websockets", "websockets")
        self._url = session_url(url)
        self._headers = authorisation(api_key_env, "environment")
        self._action = action
        self._shows = shows
        self._opened = contextlib.ExitStack()
        self.tools: list[dict[str, Any]] = []

    def start(self, task: Task, seed: int) -> Observation:
        from websockets.exceptions import InvalidHandshake, InvalidStatus
        from websockets.sync.client import connect

        try:
            session = connect(self._url, additional_headers=self._headers, max_size=_LARGEST_REPLY)
            self._session = self._opened.enter_context(session)
        except InvalidStatus as error:
            said = f"status {error.response.status_code} ({excerpt_of(bytes(error.response.body or b''))})"
            raise RlkitError(f"{self._url}: {said} in place of a session. Is it an OpenEnv server's url?") from None
        except (OSError, InvalidHandshake) as error:
            raise RlkitError(
                f"{self._url}: no session ({type(error).__name__}: {error}). Is the OpenEnv server there?"
            ) from None
        begun = self._observed(self._ask("reset", {**row_of(task), "seed": seed % SEEDS}))
        begun.reward = None  # servers say 0 of a reset, which no action led to
        return begun

    def step(self, action: str) -> Observation:
        if self._action is not None:
            return self._observed(self._ask("step", {self._action: action}))
        try:
            asked = json.loads(action)
        except (ValueError, RecursionError) as error:
            return Observation(text=f"error: that is no JSON ({error}): write the action as one JSON object")
        if not isinstance(asked, dict):
            return Observation(text="error: write the action as one JSON object")
        try:
            return self._observed(self._ask("step", asked))
        except _InvalidActionError as error:
            return Observation(text=f"error: {error.said}")

    def _ask(self, what: str, data: Mapping[str, Any]) -> Any:
        from websockets.exceptions import ConnectionClosed

        self._send({"type": what, "data": data})
        try:
            content = self._session.recv()
        except ConnectionClosed as error:
            raise RlkitError(f"{self._url}: the server ended the session at {what} ({error})") from None
        excerpt = excerpt_of(content if isinstance(content, bytes) else content.encode())
        try:
            reply = json.loads(content)
        except ValueError:
            raise RlkitError(f"{self._url}: the answer to {what} is no JSON: {excerpt}") from None
        kind = reply.get("type") if isinstance(reply, dict) else None
        found = reply.get("data") if kind else None
        if kind == "error" and isinstance(found, dict):
            raise self._refused(what, found)
        if kind != "observation" or not isinstance(found, dict) or not isinstance(found.get("observation"), dict):
            raise RlkitError(f"{self._url}: the answer to {what} holds no observation of OpenEnv's: {excerpt}")
        return found

    def _send(self, message: Mapping[str, Any]) -> None:
        from websockets.exceptions import ConnectionClosed

        # A session that the server has ended may still hold its reason, to be read.
        with contextlib.suppress(ConnectionClosed):
            self._session.send(json.dumps(message, default=str))

    def _refused(self, what: str, error: Mapping[str, Any]) -> RlkitError:
        said = str(error.get("message")).rstrip(".")
        for each in error.get("errors") or ():
            if isinstance(each, dict) and isinstance(each.get("loc"), list):  # pydantic's
                said += f"; {'.'.join(map(str, each['loc']))}: {each.get('msg')}"
        where = f"{self._url}: at {what} the server said: {said}"
        if error.get("code") == "CAPACITY_REACHED":
            return RlkitError(
                f"{where}. Start it with max_concurrent_envs of at least conversation.at_once (for each rank), or "
                "lower that"
            )
        if error.get("code") == "VALIDATION_ERROR" and what == "step":
            hint = f". The model's turn is sent as {self._action!r}: set action to the field of the server's actions"
            return _InvalidActionError(where + hint * (self._action is not None), said)
        return RlkitError(where)

    def _observed(self, found: Mapping[str, Any]) -> Observation:
        done = flag(found.get("done", False), f"{self._url}: done")
        if done:
            self._send({"type": "close"})
        return Observation(
            text=self._shown(found["observation"]),
            reward=number(found.get("reward"), f"{self._url}: the reward"),
            done=done,
        )

    def _shown(self, observation: Any) -> str:
        if self._shows is None:
            return json.dumps(observation, ensure_ascii=False)
        at = observation
        for key in self._shows.split("."):
            try:
                at = at[int(key)] if isinstance(at, list) else at[key]
            except (LookupError, TypeError, ValueError):
                there = ", ".join(map(str, at)) if isinstance(at, dict) else shown(at)
                raise RlkitError(
                    f"{self._url}: the observation has no {self._shows!r}, which `observation` names: there is {there}"
                ) from None
        return at if isinstance(at, str) else json.dumps(at, ensure_ascii=False)


class _InvalidActionError(RlkitError):
    """The server did not take an action; `said`, why."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


def session_url(url: str) -> str:
    """Of a server's sessions, from its own; ValueError where that is none."""
    secure = url.replace("ws://", "http://", 1).replace("wss://", "https://", 1)
    return checked_url(secure).replace("http", "ws", 1) + "/ws"
