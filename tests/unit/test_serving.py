"""What stands around vLLM's server: its command, the guard before its routes, and how weights travel."""

from __future__ import annotations

import asyncio
import datetime
import json
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from click.testing import CliRunner
from local_server import serving
from server_help import free_port
from torch.distributed import DistNetworkError

from rlkit.cli import main
from rlkit.config import ModelConfig
from rlkit.generation.weights import gloo
from rlkit.serving import command, guard


@pytest.fixture
def passed() -> list[str]:
    return []


@pytest.fixture
def ask(passed: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A guarded server that notes what gets through; `ask(method, path, body, headers)` gives status and JSON."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])
        await guard._answer(send, 200, {})

    monkeypatch.setenv(guard.KEY, "sesame")
    guarded = guard.Guard(app)

    def call(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        async def exchange() -> httpx.Response:
            transport = httpx.ASGITransport(app=guarded)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                key = {"authorization": "Bearer sesame"} | {k.replace("_", "-"): v for k, v in headers.items()}
                return await client.request(method, path, json=body, headers=key)

        reply = asyncio.run(exchange())
        return reply.status_code, reply.json()

    return call


@pytest.mark.parametrize("path", ["/v1/completions", "/inference/v1/generate", "/update_weights", "/rlkit/lease"])
@pytest.mark.parametrize("key", ["", "sesame", "Bearer open", "Bearer sesame2"])
def test_nothing_is_done_without_the_key(ask: Any, passed: list[str], path: str, key: str) -> None:
    assert ask("POST", path, {}, authorization=key)[0] == 401
    assert not passed


def test_whether_it_lives_may_be_asked_by_anyone(ask: Any, passed: list[str]) -> None:
    assert ask("GET", "/health", authorization="")[0] == 200
    assert passed == ["/health"]


@pytest.mark.parametrize("path", ["/update_weights", "/pause", "/reset_prefix_cache", "/sleep", "/v2/anything", "/new"])
def test_what_changes_the_server_is_for_who_holds_the_lease(ask: Any, passed: list[str], path: str) -> None:
    assert ask("POST", path, {})[0] == 403
    assert ask("POST", "/rlkit/lease", {"owner": "me", "who": "test"}) == (200, {"renewed": False})
    assert ask("POST", path, {}, x_rlkit_owner="you")[0] == 403
    assert not passed
    assert ask("POST", path, {}, x_rlkit_owner="me")[0] == 200
    assert ask("POST", "/collective_rpc", {"method": "exec"}, x_rlkit_owner="me")[0] == 403
    assert passed == [path]


def test_a_lease_is_one_run_s_until_it_ends_or_is_given_back(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    mine, yours = ({"owner": name, "who": f"run of {name}"} for name in ("me", "you"))
    assert ask("POST", "/rlkit/lease", mine) == (200, {"renewed": False})
    now[0] += guard.LEASE_S - 1
    assert ask("POST", "/rlkit/lease", mine) == (200, {"renewed": True})
    now[0] += guard.LEASE_S - 1
    assert ask("POST", "/rlkit/lease", yours) == (409, {"who": "run of me", "renewals": 1, "left_s": 1.0})
    now[0] += 2
    assert ask("POST", "/rlkit/lease", yours) == (200, {"renewed": False})
    assert ask("POST", "/rlkit/lease", yours | {"who": None})[0] == 200
    assert ask("POST", "/rlkit/lease", mine)[0] == 200


def test_a_dead_run_s_lease_is_waited_for_and_a_living_one_s_is_not() -> None:
    from rlkit.generation.server import Server, ServerError

    def dead(number: int, body: dict[str, Any]) -> Any:
        return {"renewed": False} if number == 2 else (409, {}, {"who": "x", "renewals": 7, "left_s": 0.01})

    def living(number: int, body: dict[str, Any]) -> Any:
        return 409, {}, {"who": "process 3 on gpu7", "renewals": number, "left_s": 0.01}

    with serving(dead) as one, pytest.warns(UserWarning, match=r"it is this one's in 0 s, unless that still lives"):
        Server(one.url, {}, "me").take("test")
    assert len(one.requests) == 3
    with (
        serving(living) as one,
        pytest.warns(UserWarning, match="was held by another run"),
        pytest.raises(ServerError, match=r"held by another run .process 3 on gpu7."),
    ):
        Server(one.url, {}, "me").take("test")


def test_a_server_by_two_of_its_names_is_one() -> None:
    """Its weights would be sent by both at once."""
    from rlkit.generation.server import Server, ServerError

    with serving(lambda number, body: {"renewed": number == 1}) as one:
        Server(one.url, {}, "me").take("test")
        with pytest.raises(ServerError, match=f"{one.url} is a server that stands in sampler.urls by another name too"):
            Server(one.url, {}, "me").take("test")


def test_a_run_whose_first_weights_do_not_arrive_may_try_again_and_leaves_no_lease() -> None:
    from rlkit.generation.server import Server

    leases: list[str | None] = []

    def answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
        leases.append(body["who"])
        return {"renewed": number > 0}

    with serving(answer) as one:
        server = Server(one.url, {}, "me")
        server.take("test")
        server.take("test")
        server.close()
    assert leases == ["test", "test", None]


@pytest.mark.parametrize("buffer", [1, 64, 2**26])
def test_weights_over_gloo_arrive_as_they_were(buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gloo, "BUFFER", buffer)
    sent = {
        "a": torch.randn(3, 5),
        "odd": torch.randn(7).bfloat16(),
        "turned": torch.randn(4, 6).t(),
        "one": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "half": torch.randn(2, 2, 2).half(),
    }
    store = gloo.listen()
    groups: dict[int, Any] = {}

    def worker(rank: int, found: list[Any]) -> None:
        groups[rank] = gloo.join(gloo.call("127.0.0.1", store.port), rank, 3, "127.0.0.1")
        dtypes, shapes = [t.dtype for t in sent.values()], [list(t.shape) for t in sent.values()]
        found += [(name, t.clone()) for name, t in gloo.receive(groups[rank], list(sent), dtypes, shapes)]

    taken: list[list[Any]] = [[], []]
    workers = [threading.Thread(target=worker, args=(rank, taken[rank - 1]), daemon=True) for rank in (1, 2)]
    for each in workers:
        each.start()
    groups[0] = gloo.join(store, 0, 3, "127.0.0.1")
    gloo.send(groups[0], sent.values())
    for each in workers:
        each.join(60)
    for found in taken:
        assert [name for name, _ in found] == list(sent)
        for name, tensor in found:
            assert tensor.dtype == sent[name].dtype
            assert torch.equal(tensor, sent[name])


def test_a_trainer_that_is_gone_is_not_called_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that waits for a dead run is of no use to the one that goes on with it."""
    monkeypatch.setattr(gloo, "CALL", datetime.timedelta(seconds=1))
    with pytest.raises(DistNetworkError):
        gloo.call("127.0.0.1", free_port())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Which servers this process would have become: a test must not end as one, with code 0."""
    found: list[Any] = []
    monkeypatch.setattr(command.os, "execve", lambda *given: found.append(given))
    return found


def options(**changed: Any) -> dict[str, Any]:
    given = {"host": "127.0.0.1", "port": 8000, "tensor_parallel": 1, "data_parallel": 1} | changed
    words = command.arguments(ModelConfig(path="embedded:xs", dtype="float32"), **given)
    return {name: value for name, value in zip(words, [*words[1:], ""], strict=True) if name.startswith("--")}


def test_what_vllm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = options(tensor_parallel=2, data_parallel=3)
    assert found["--served-model-name"] == "embedded:xs"
    assert (found["--tensor-parallel-size"], found["--data-parallel-size"]) == ("2", "3")
    assert found["--logprobs-mode"] == "processed_logprobs"
    assert json.loads(found["--weight-transfer-config"]) == {"backend": gloo.BACKEND}
    assert "--no-enable-chunked-prefill" in found
    monkeypatch.setattr(command, "on_cpu", lambda: False)
    found = options()
    assert json.loads(found["--weight-transfer-config"]) == {"backend": "nccl"}
    assert not {"--worker-extension-cls", "--enforce-eager", "--no-enable-chunked-prefill"} & found.keys()
    found = options(adapters=True)
    assert json.loads(found["--weight-transfer-config"]) == {"backend": gloo.BACKEND}
    assert found["--worker-extension-cls"] == "rlkit.serving.worker.Extension"
    assert not {"--enforce-eager", "--no-enable-chunked-prefill"} & found.keys()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "gpu7"])
def test_an_address_that_others_reach_wants_a_key(
    host: str, monkeypatch: pytest.MonkeyPatch, started: list[Any]
) -> None:
    done = CliRunner().invoke(main, ["serve", "embedded:xs", "--host", host])
    assert done.exit_code == 2
    assert f"--host {host} can be reached from other machines" in done.output
    assert "--api-key-env RLKIT_KEY" in done.output
    monkeypatch.delenv("NO_KEY_HERE", raising=False)
    done = CliRunner().invoke(main, ["serve", "embedded:xs", "--host", host, "--api-key-env", "NO_KEY_HERE"])
    assert done.exit_code == 2
    assert "NO_KEY_HERE, which is not set" in done.output
    assert started == []


def test_a_model_that_is_not_there_is_said_before_vllm_is_started(tmp_path: Path, started: list[Any]) -> None:
    empty = tmp_path / "models" / "empty"
    empty.mkdir(parents=True)
    for model, said in (
        ("./not-here", "'./not-here' does not exist"),
        (str(empty), "is a folder without a model: no config.json"),
        ("no-org/no-model", "'no-org/no-model' cannot be loaded"),
    ):
        done = CliRunner().invoke(main, ["serve", model, "--port", str(free_port())])
        assert done.exit_code == 2, done.output
        assert said in done.output
    assert started == []


@pytest.mark.parametrize("option", ["--host", "--host=0.0.0.0", "--hos", "--api_key", "--trust-remote-code"])
def test_options_of_vllms_own_go_round_no_check(option: str, started: list[Any]) -> None:
    done = CliRunner().invoke(main, ["serve", "embedded:xs", "--", option, "0.0.0.0"])
    assert done.exit_code == 2
    assert f"{option} behind `--`: leave it out there" in done.output
    assert started == []


@pytest.mark.parametrize("path", ["/rlkit/lease", "/v1/completions", "/update_weights"])
def test_a_page_in_a_browser_may_not_use_a_server_without_a_key(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(guard.KEY, raising=False)
    passed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])

    async def sent(message: Any) -> None:
        statuses.append(message.get("status"))

    for origin, expected in ((b"http://evil.example", 403), (b"null", 403)):
        statuses: list[Any] = []
        scope = {"type": "http", "path": path, "headers": [(b"origin", origin)]}
        asyncio.run(guard.Guard(app)(scope, None, sent))  # type: ignore[arg-type]
        assert statuses[0] == expected
    assert passed == []


def test_the_store_for_weights_listens_on_one_address() -> None:
    """It has no key."""
    store = gloo.listen()
    with pytest.raises(ConnectionRefusedError), socket.create_connection((own_address(), store.port), timeout=2):
        pass
    with socket.create_connection(("127.0.0.1", store.port), timeout=2):
        pass


def own_address() -> str:
    """One that other machines have for this one; skipped where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no address but its own")
        return str(probe.getsockname()[0])


def test_a_port_that_is_taken(started: list[Any]) -> None:
    with serving(lambda number, body: 200) as there:
        port = there.url.rpartition(":")[2]
        done = CliRunner().invoke(main, ["serve", "embedded:xs", "--port", port])
    assert done.exit_code == 2
    assert f"127.0.0.1:{port} cannot be listened on (Address already in use): take another --port" in done.output
    assert started == []


def test_the_key_goes_by_the_environment_and_not_by_the_command_line(
    monkeypatch: pytest.MonkeyPatch, started: list[Any]
) -> None:
    monkeypatch.setenv("MINE", "sesame-1234")
    port = free_port()
    words = ["serve", "embedded:xs", "--host", "0.0.0.0", "--api-key-env", "MINE", "--port", str(port)]
    CliRunner().invoke(main, [*words, "--", "--max-model-len", "99"])
    [(_, argv, environment)] = started
    assert argv[-2:] == ["--max-model-len", "99"]
    assert not any("sesame" in word for word in argv)
    assert environment[guard.KEY] == "sesame-1234"
    assert f":{port}], api_key_env: MINE}}" in environment[guard.UP]
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
