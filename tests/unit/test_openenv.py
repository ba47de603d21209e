"""Environments on servers that speak as OpenEnv's do, over sessions that are real."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest
from local_server import serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from rlkit import registry
from rlkit.errors import ConfigError, RlkitError
from rlkit.interfaces.environments import Observation, Task


def played(env: Any, *turns: str) -> list[Observation]:
    return [env.start(task(), 0), *(env.step(turn) for turn in turns)]


def task(**columns: Any) -> Task:
    return Task(question="3+4=", answer="7", gold="7", columns=columns)


def talk(answer: Callable[[dict[str, Any]], Any]) -> Callable[[ServerConnection], None]:
    """A session of an OpenEnv server: `answer` makes of each message what is sent back."""

    def session(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for content in connection:
                said = answer(json.loads(content))
                if said is None:
                    return
                connection.send(said if isinstance(said, str) else json.dumps(said))

    return session


@contextlib.contextmanager
def openenv(session: Callable[[ServerConnection], None]) -> Iterator[str]:
    with serve(session, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}/"
        server.shutdown()


def observed(reward: float | None = None, done: bool = False, **fields: Any) -> dict[str, Any]:
    return {"type": "observation", "data": {"observation": fields, "reward": reward, "done": done}}


def refused(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "data": {"code": code, "message": message, **more}}


def remote(url: str, **options: Any) -> Any:
    return registry.build("environments", "class", {"style": "openenv", "url": url, **options})


def test_openenv(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []
    keys: list[str | None] = []

    def echo(connection: ServerConnection) -> None:
        assert connection.request is not None
        keys.append(connection.request.headers.get("authorization"))

        def answer(message: dict[str, Any]) -> Any:
            heard.append(message)
            if message["type"] == "reset":
                return observed(reward=0.0, echoed_message="ready", message_length=5)
            text = message["data"]["message"]
            return observed(reward=len(text) / 10, done=text == "bye", echoed_message=text, message_length=len(text))

        talk(answer)(connection)

    monkeypatch.setenv("ECHO_KEY", "abc")
    with openenv(echo) as url:
        env = remote(url, observation="echoed_message", api_key_env="ECHO_KEY")
        assert env.start(task(level=2), 2**31 + 5) == Observation(text="ready")
        assert env.step("hello") == Observation(text="hello", reward=0.5)
        assert env.step("bye") == Observation(text="bye", reward=0.3, done=True)
        whole = remote(url.replace("http", "ws"))
        assert json.loads(played(whole)[0].text) == {"echoed_message": "ready", "message_length": 5}
    assert heard[0] == {"type": "reset", "data": {"prompt": "3+4=", "answer": "7", "level": 2, "seed": 5}}
    assert heard[1]["data"] == {"message": "hello"}
    assert keys == ["Bearer abc", None]


def test_openenv_s_action_may_be_the_turn_itself() -> None:
    def answer(message: dict[str, Any]) -> Any:
        if message["type"] == "reset":
            return observed(rows=[{"cell": "x"}, {"cell": ["y"]}])
        wrong = [{"loc": ["move"], "msg": "Field required"}]
        if "move" not in message["data"]:
            return refused("VALIDATION_ERROR", "Invalid message", errors=wrong)
        return observed(rows=[{"cell": message["data"]["move"]}, {"cell": 0}])

    with openenv(talk(answer)) as url:
        env = remote(url, action=None, observation="rows.0.cell")
        texts = [each.text for each in played(env, "e4", "[" * 10**5, "[1]", '{"to": "e4"}', '{"move": "e4"}')]
        assert [text.partition(" (")[0] for text in texts] == [  # type: ignore[union-attr]
            "x",
            "error: that is no JSON",
            "error: that is no JSON",
            "error: write the action as one JSON object",
            "error: Invalid message; move: Field required",
            "e4",
        ]
        assert played(remote(url, action=None, observation="rows.1.cell"))[0].text == '["y"]'
        with pytest.raises(RlkitError, match=r"at step the server said: .*; move: Field required\. The model's turn"):
            played(remote(url), "e4")
        with pytest.raises(RlkitError, match=r"has no 'columns.0', which `observation` names: there is rows"):
            played(remote(url, observation="columns.0"))
        with pytest.raises(RlkitError, match=r"has no 'rows.x'"):
            played(remote(url, observation="rows.x"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            refused("CAPACITY_REACHED", "No room"),
            "No room. Start it with max_concurrent_envs of at least conversation",
        ),
        (refused("EXECUTION_ERROR", "boom"), "at reset the server said: boom"),
        (None, "the server ended the session at reset"),
        ("<html>", "the answer to reset is no JSON: <html>"),
        ([1], "holds no observation of OpenEnv's: [1]"),
        ({"type": "state", "data": {}}, "holds no observation of OpenEnv's"),
        ({"type": "observation", "data": {"observation": "x"}}, "holds no observation of OpenEnv's"),
        (observed(done="no"), "done is str (no): it must be True or False"),
        (observed(reward="high"), "the reward is str (high): it must be a number"),
    ],
)
def test_an_openenv_server_s_nonsense_is_named(said: Any, message: str) -> None:
    with openenv(talk(lambda _: said)) as url, pytest.raises(RlkitError) as error:
        played(remote(url))
    assert message in str(error.value)
    assert "ws://127.0.0.1:" in str(error.value)


def test_a_full_server_says_so_though_it_hangs_up_first() -> None:
    def full(connection: ServerConnection) -> None:
        connection.send(json.dumps(refused("CAPACITY_REACHED", "2 of 2 sessions")))

    with openenv(full) as url, pytest.raises(RlkitError, match=r"2 of 2 sessions"):
        played(remote(url))


def test_a_server_that_is_not_there_or_none_of_openenv_s_is_named() -> None:
    with serving(lambda n, body: {}) as server:
        with pytest.raises(RlkitError, match=r"no session \(.*Is the OpenEnv server there"):
            played(remote(server.url))
        url = server.url
    with pytest.raises(RlkitError, match=r"ConnectionRefusedError.*Is the OpenEnv server there"):
        played(remote(url))

    def broken(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(HTTPStatus.INTERNAL_SERVER_ERROR, "out of memory")

    with serve(lambda _: None, "127.0.0.1", 0, process_request=broken) as down:
        threading.Thread(target=down.serve_forever, daemon=True).start()
        with pytest.raises(
            RlkitError, match=r"status 500 \(out of memory\) in place of a session\. Is it an OpenEnv server's"
        ):
            played(remote(f"http://127.0.0.1:{down.socket.getsockname()[1]}"))
        down.shutdown()


def test_openenv_without_websockets_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = r"style openenv needs websockets: the package is not installed. Run: pip install .rlkit-rlvr\[websockets\]"
    with pytest.raises(ConfigError, match=said):
        remote("http://127.0.0.1:1")
