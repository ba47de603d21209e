"""What the sampler of servers does with what servers do; the servers are stand-ins, those of
tests/promises/test_servers_sample_as_the_process_does.py are real."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from local_server import serving
from sampler_help import Talk
from server_help import Spoiled, Standing, free_port
from transformers import AutoConfig, AutoTokenizer

from rlkit import registry
from rlkit.cli import main
from rlkit.config import ModelConfig
from rlkit.embedded import resolve
from rlkit.errors import ConfigError, RlkitError
from rlkit.generation import server, vllm_server
from rlkit.generation.server_facts import fingerprint, shape
from rlkit.interfaces.generation import Completion, Request, SamplingParams

pytestmark = pytest.mark.filterwarnings("ignore:a server is left out")

MODEL = ModelConfig(path="embedded:xs", dtype="float32")
FOLDER = resolve("embedded:xs")
CONTEXT = 64
ABOUT = {
    "model": "embedded:xs",
    "shape": shape(AutoConfig.from_pretrained(FOLDER)),
    "dtype": "float32",
    "context": 128,
    "logprobs": "processed_logprobs",
    "transfer": "rlkit_gloo",
    "workers": 1,
    "files": fingerprint(FOLDER),
}


def answered(asked: dict[str, Any], **others: Any) -> dict[str, Any]:
    """A completion that follows from prompt and seed."""
    tokens = [asked["token_ids"][0], asked["sampling_params"]["seed"] % 19, 3]
    choice = {
        "token_ids": tokens,
        "finish_reason": "length",
        "stop_reason": None,
        "logprobs": {"content": [{"token_id": token, "logprob": -token / 8} for token in tokens]},
        "weight_versions": [{"version": "default", "start": 0, "end": 3}],
    }
    return {"choices": [choice | others]}


@contextlib.contextmanager
def standing(spoiled: Spoiled = lambda path, body: None, **about: Any) -> Iterator[Standing]:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)

    def answers(method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        match path:
            case "/rlkit/about":
                return 200, ABOUT | about
            case "/tokenize":
                return 200, {"tokens": tokenizer.encode(body["prompt"], add_special_tokens=False)}
            case "/weight_info":
                return 200, {"weight_version": "default"}
            case "/inference/v1/generate":
                return 200, answered(body)
            case "/health":
                return 200, {}
        return 404, {}

    with contextlib.closing(Standing(answers, spoiled)) as made:
        yield made


@contextlib.contextmanager
def sampling(*urls: str, **options: Any) -> Iterator[Any]:
    built = registry.build("samplers", "vllm_server", {"urls": list(urls), **options}, MODEL, CONTEXT, 0)
    with contextlib.closing(built):
        yield built


def requests(groups: int, each: int = 1, **params: Any) -> list[Request]:
    wanted = SamplingParams(**{"max_tokens": 3, **params})
    return [Request(prompt_tokens=[g], seed=g * 100 + i, params=wanted) for g in range(groups) for i in range(each)]


def assert_right(found: list[tuple[int, Completion]], asked: list[Request]) -> None:
    assert sorted(index for index, _ in found) == list(range(len(asked)))
    for index, completion in found:
        assert completion.tokens == [asked[index].prompt_tokens[0], asked[index].seed % 19, 3]
        assert completion.logprobs == [-token / 8 for token in completion.tokens]


def test_what_is_asked_and_what_is_made_of_it() -> None:
    asked = requests(1, temperature=0.5, top_p=0.9, top_k=7)
    with standing() as one, sampling(one.url) as built:
        [(index, completion)] = list(built.generate(asked))
    assert (index, completion.truncated, completion.version) == (0, True, 0)
    [sent] = one.generated()
    assert sent["token_ids"] == [0]
    assert sent["sampling_params"] == {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "seed": 0,
        "logprobs": 0,
        "stop_token_ids": list(built._ends),
        "ignore_eos": True,
        "detokenize": False,
    }


def test_a_prompt_s_samples_go_to_one_server_and_prompts_to_both() -> None:
    asked = requests(8, 4)
    with standing() as one, standing() as other, sampling(one.url, other.url) as built:
        assert_right(list(built.generate(asked)), asked)
    prompts = [sorted({body["token_ids"][0] for body in each.generated()}) for each in (one, other)]
    assert [len(each.generated()) for each in (one, other)] == [16, 16]
    assert prompts == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_the_quicker_server_gets_more() -> None:
    held = threading.Event()
    asked = requests(12)

    def slow(path: str, body: dict[str, Any]) -> Any:
        return held if path == "/inference/v1/generate" else None

    with standing(slow) as one, standing() as other, sampling(one.url, other.url, concurrency=2) as built:
        found = []
        for pair in built.generate(asked):
            found.append(pair)
            if len(found) == 10:
                held.set()
    assert_right(found, asked)
    assert [len(each.generated()) for each in (one, other)] == [2, 10]


@pytest.mark.parametrize("how", [500, "cut", b"no JSON", {"choices": []}, 429])
def test_what_one_server_loses_another_gets(how: Any) -> None:
    """And the one that lost it is asked again only when it is well; it is, by then, and answers."""
    bad = iter([how, how])

    def spoiled(path: str, body: dict[str, Any]) -> Any:
        return next(bad, None) if path == "/inference/v1/generate" else None

    asked = requests(6, 2)
    with (
        standing(spoiled) as one,
        standing() as other,
        sampling(one.url, other.url) as built,
        pytest.warns(UserWarning, match=f"a server is left out until it is back: {one.url}"),
    ):
        assert_right(list(built.generate(asked)), asked)
    seeds = [[body["sampling_params"]["seed"] for body in each.generated()] for each in (one, other)]
    assert len(seeds[0]) + len(seeds[1]) == 14, "two were sent twice, with the same seeds"
    assert {*seeds[0], *seeds[1]} == {request.seed for request in asked}


def test_a_server_that_vanishes_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection breaks; it is the question whether it is well that nobody answers."""
    monkeypatch.setattr(vllm_server, "HEALTH_S", 0.05)
    gone = threading.Event()

    def spoiled(path: str, body: dict[str, Any]) -> Any:
        return {"/inference/v1/generate": gone, "/health": "cut"}.get(path)

    asked = requests(4)
    with standing(spoiled) as one, standing() as other, sampling(one.url, other.url) as built:
        assert_right(list(built.generate(asked)), asked)
        gone.set()
    assert len(other.generated()) == 4


def test_a_request_that_hangs_is_sent_anew() -> None:
    hang = threading.Event()

    def spoiled(path: str, body: dict[str, Any]) -> Any:
        return hang if path == "/inference/v1/generate" and len(one.generated()) == 1 else None

    asked = requests(3)
    with standing(spoiled) as one, sampling(one.url, timeout_s=0.3) as built:
        assert_right(list(built.generate(asked)), asked)
        hang.set()
    assert len(one.generated()) == 4


def test_other_weights_are_not_taken() -> None:
    def spoiled(path: str, body: dict[str, Any]) -> Any:
        if path == "/inference/v1/generate":
            return answered(body, weight_versions=[{"version": "another's:1:0", "start": 0, "end": 3}])
        # A server is asked for its version before the first request, and then as often as it wants to come back.
        return {"weight_version": "another's:1:0"} if path == "/weight_info" and one.generated() else None

    with (
        standing(spoiled) as one,
        sampling(one.url, patience_s=1) as built,
        pytest.raises(RlkitError, match=r"of use for 1 s:\n  http\S+: http\S+ does not hold the newest weights"),
    ):
        list(built.generate(requests(1)))


def test_no_server_left() -> None:
    def spoiled(path: str, body: dict[str, Any]) -> Any:
        return "cut" if path in ("/inference/v1/generate", "/health") else None

    with (
        standing(spoiled) as one,
        sampling(one.url, patience_s=0.8) as built,
        pytest.raises(RlkitError, match=r"of use for 0.8 s:\n  http\S+: .* cannot be reached(.|\n)*--resume"),
    ):
        list(built.generate(requests(300)))


def test_a_request_that_no_server_takes_ends_the_run_with_its_words() -> None:
    def spoiled(path: str, body: dict[str, Any]) -> Any:
        return 400 if path == "/inference/v1/generate" else None

    with (
        standing(spoiled) as one,
        sampling(one.url) as built,
        pytest.raises(RlkitError, match=r"status 400: .*as asked"),
    ):
        list(built.generate(requests(1)))
    assert len(one.generated()) == 1


def test_a_request_that_breaks_every_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "ATTEMPTS", 2)

    def spoiled(path: str, body: dict[str, Any]) -> Any:
        if path != "/inference/v1/generate":
            return None
        return 500 if len(one.generated()) <= 2 else 400  # asked once too often, it ends the run in other words

    with (
        standing(spoiled) as one,
        sampling(one.url) as built,
        pytest.raises(RlkitError, match=r"request 0 has failed 2 times, the last time so: .* status 500"),
    ):
        list(built.generate(requests(1)))


def test_who_stops_listening_ends_what_is_under_way() -> None:
    before = threading.active_count()
    with standing() as one, sampling(one.url, concurrency=2) as built:
        for _ in built.generate(requests(100)):
            break
        assert len(one.generated()) < 20
        assert_right(list(built.generate(requests(3))), requests(3))
    assert not [t for t in threading.enumerate() if t.name == "vllm_server"]
    assert threading.active_count() <= before + 1


def conversations(*turns: int, **options: Any) -> Talk:
    params = SamplingParams(max_tokens=3)
    openings = [Request(prompt_tokens=[c], seed=100 * c, params=params) for c in range(len(turns))]
    return Talk(openings, turns, **options)


def turns_of(standing: Standing) -> list[tuple[int, int]]:
    """(conversation, turn) of each request to it: a turn is 5 tokens, with what the environment says."""
    return [(body["token_ids"][0], len(body["token_ids"]) // 5) for body in standing.generated()]


def test_requests_come_while_others_are_under_way() -> None:
    """One whole conversation goes on while another waits for its first answer; and the turns are those that follow."""
    held = threading.Event()

    def slow(path: str, body: dict[str, Any]) -> Any:
        return held if path == "/inference/v1/generate" and body["token_ids"][0] == 0 else None

    talk = conversations(3, 3, wait_s=0.02)
    with standing(slow) as one, sampling(one.url) as built:
        for number, completion in built.stream(talk):
            talk.hear(number, completion)
            if len(talk.answers) == 3:
                held.set()
    happened = [event for event in talk.events if event[0] != "nothing new"]
    meanwhile, after = [("asked", 1), ("answered", 1)] * 3, [("asked", 0), ("answered", 0)] * 2
    assert happened == [("asked", 0), *meanwhile, ("answered", 0), *after]
    assert_right(list(talk.answers.items()), [request for _, request in talk.asked])


def test_a_conversation_stays_with_its_server_while_that_has_room() -> None:
    """Though the other has nothing to do."""
    talk = conversations(1, 4, 1, 3, 1, 2, wait_s=0.005)
    with standing() as one, standing() as other, sampling(one.url, other.url) as built:
        talk.hold(built)
    assert sorted(turns_of(one)) == [(0, 0), (2, 0), (4, 0)]
    assert sorted(turns_of(other)) == [
        *((1, turn) for turn in range(4)),
        *((3, turn) for turn in range(3)),
        (5, 0),
        (5, 1),
    ]


def test_a_conversation_whose_server_is_busy_goes_on_at_another() -> None:
    """The third begins where the first that was answered had been, and holds that server."""
    held = threading.Event()

    def slow(path: str, body: dict[str, Any]) -> Any:
        return held if path == "/inference/v1/generate" and body["token_ids"][0] == 2 else None

    talk = conversations(2, 2, 2)
    with standing(slow) as one, standing(slow) as other, sampling(one.url, other.url, concurrency=1) as built:
        for number, completion in built.stream(talk):
            talk.hear(number, completion)
            if len(talk.answers) == 4:
                held.set()
    busy, free = sorted((turns_of(one), turns_of(other)), key=lambda turns: (2, 0) not in turns)
    assert set(free) >= {(0, 1), (1, 1)}
    assert busy[1] == (2, 0)


def test_a_server_that_dies_in_the_middle_of_conversations_costs_nothing() -> None:
    def spoiled(path: str, body: dict[str, Any]) -> Any:
        return "cut" if len(one.generated()) > 3 and path != "/rlkit/about" else None

    talk = conversations(3, 3, 3, 3, wait_s=0.01)
    with standing(spoiled) as one, standing() as other, sampling(one.url, other.url) as built:
        talk.hold(built)
    assert_right(list(talk.answers.items()), [request for _, request in talk.asked])
    assert set(turns_of(other)) >= {(c, 2) for c in range(4)}


def test_who_stops_listening_to_conversations_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one waits for its environment, for ever, and another for its server; and what fails meanwhile is raised."""
    held = threading.Event()

    def slow(path: str, body: dict[str, Any]) -> Any:
        return held if path == "/inference/v1/generate" and body["token_ids"][0] == 0 else None

    with standing(slow) as one, sampling(one.url) as built:
        talk = conversations(2, 2, wait_s=1e9)
        for number, completion in built.stream(talk):
            talk.hear(number, completion)
            break
        assert not [t for t in threading.enumerate() if t.name == "vllm_server"]
        talk = conversations(2, 2, wait_s=1e9)
        taken = talk.take

        def take(*, wait: bool) -> Any:
            if talk.answers:
                raise RlkitError("the environment is broken")
            return taken(wait=wait)

        monkeypatch.setattr(talk, "take", take)
        with pytest.raises(RlkitError, match="the environment is broken"):
            talk.hold(built)
        assert not [t for t in threading.enumerate() if t.name == "vllm_server"]
        held.set()


def test_a_key_is_sent_and_never_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_TEST", "sesame-1234")
    with standing() as one, sampling(one.url, api_key_env="KEY_OF_TEST") as built:
        list(built.generate(requests(2)))
        assert {headers.get("authorization") for headers in one.headers} == {"Bearer sesame-1234"}
        one.spoiled = lambda path, body: 400
        with pytest.raises(RlkitError) as told:
            list(built.generate(requests(1)))
    assert "sesame" not in str(told.value)
    assert "sesame" not in repr(built._config)
    monkeypatch.delenv("KEY_OF_TEST")
    with (
        pytest.raises(ConfigError, match="names the environment variable KEY_OF_TEST, which is not set"),
        sampling(one.url, api_key_env="KEY_OF_TEST"),
    ):
        pass


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (
            {"shape": ABOUT["shape"] | {"hidden_size": 1}},
            r"serves another model, .*hidden_size 1 there.*serve embedded",
        ),
        ({"dtype": "bfloat16"}, r"computes in bfloat16, this run in float32: start it with `-- --dtype float32`"),
        ({"context": 63}, r"has a context of 63 tokens.* takes 64: start it with `-- --max-model-len 64`"),
        ({"logprobs": "raw_logprobs"}, "gives raw_logprobs, not those of the distribution drawn from"),
        ({"transfer": None}, "was started without weight transfer"),
    ],
)
def test_a_server_that_is_not_right_for_the_run(about: dict[str, Any], said: str) -> None:
    with (
        standing(**about) as one,
        pytest.raises(ConfigError, match=f"sampler.urls: {one.url} {said}"),
        sampling(one.url),
    ):
        pass


def test_a_server_with_another_tokenizer() -> None:
    with (
        standing(lambda path, body: {"tokens": [1, 2, 3]} if path == "/tokenize" else None) as one,
        pytest.raises(ConfigError, match="has another tokenizer than embedded:xs"),
        sampling(one.url),
    ):
        pass


def test_a_server_with_other_weights_where_none_are_sent() -> None:
    """As in `rlkit eval --urls`: of another model, or what a run has left in it."""
    with standing(files="others") as one, sampling(one.url) as built:
        with pytest.raises(RlkitError, match="holds other weights than embedded:xs"):
            list(built.generate(requests(1)))
        one.spoiled = lambda path, body: {"weight_version": "run:3:7"} if path == "/weight_info" else None
        with pytest.raises(RlkitError, match="holds weights that a run has given it: start it anew"):
            list(built.generate(requests(1)))


def test_a_url_that_is_not_a_vllm_server() -> None:
    with serving(lambda number, body: 404) as web, pytest.raises(ConfigError, match="is not a vLLM server"):
        vllm_server.check_servers([server.Server(web.url, {}, "me")], MODEL, CONTEXT)
    with (
        standing(lambda path, body: b"<html>" if path == "/rlkit/about" else None) as page,
        pytest.raises(ConfigError, match="is not a vLLM server"),
        sampling(page.url),
    ):
        pass


def test_a_vllm_server_that_rlkit_did_not_start() -> None:
    def plain(path: str, body: dict[str, Any]) -> Any:
        return {"version": "0.32.0"} if path == "/version" else 404

    with (
        standing(plain) as one,
        pytest.raises(ConfigError, match=r"without what a run needs.*start it with rlkit serve"),
    ):
        vllm_server.check_servers([server.Server(one.url, {}, "me")], MODEL, CONTEXT)


def test_a_url_where_nobody_is() -> None:
    with pytest.raises(ConfigError, match=r"cannot be reached \(.*refused.*Start a server there"):
        vllm_server.check_servers([server.Server(f"http://127.0.0.1:{free_port()}", {}, "me")], MODEL, CONTEXT)


def test_a_server_that_keeps_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.Server.reply, "__kwdefaults__", {"wait_s": 0.2})
    wait = threading.Event()
    with standing(lambda path, body: wait) as one:
        with pytest.raises(ConfigError, match=r"has not answered /rlkit/about within 0.2 s"):
            vllm_server.check_servers([server.Server(one.url, {}, "me")], MODEL, CONTEXT)
        wait.set()


def test_an_evaluation_samples_with_the_servers_that_it_is_given(tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(f'{{"prompt": "{i}+1=", "answer": "{i + 1}"}}\n' for i in range(10, 16)))
    with standing() as one, standing() as other:
        words = ["eval", "--model", "embedded:xs", "--data", str(data), "--reward", "final_answer", "--max-tokens", "8"]
        done = CliRunner().invoke(main, [*words, "--urls", f"{one.url},{other.url}", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (len(one.generated()), len(other.generated())) == (3, 3)
    rows = [json.loads(line) for line in (tmp_path / "out" / "mine" / "responses.jsonl").read_text().splitlines()]
    assert [len(row["tokens"]) for row in rows] == [3] * 6


def test_a_server_is_sent_what_has_changed_since_it_was_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """And everything where that is not known: at first, after a failure, and where it was started anew."""
    sent: list[set[str]] = []
    renewed, broken = True, False

    class Path:
        def send(self, weights: dict[str, torch.Tensor], changed: set[str]) -> None:
            if broken:
                raise OSError("the cable")
            sent.append(set(changed))

        def close(self) -> None:
            pass

    weights = {"w": torch.zeros(2), "w.lora_A": torch.zeros(2), "w.lora_B": torch.zeros(2)}

    def synced(*changed: str, **to: float) -> set[str]:
        for name in changed:
            weights[name] = weights[name] + 1
        built.sync(iter(weights.items()), 1)
        return sent[-1]

    with standing() as one, sampling(one.url) as built:
        monkeypatch.setattr(server.Server, "hold", lambda self, who: renewed)
        monkeypatch.setattr(server.Server, "take", lambda self, who: None)
        monkeypatch.setattr(server.Server, "ask", lambda self, *words, **more: {"success": True})
        monkeypatch.setattr(server.Server, "_open", lambda self: Path())
        assert synced() == weights.keys()
        assert synced("w.lora_A", "w.lora_B") == {"w.lora_A", "w.lora_B"}
        assert synced("w.lora_B") == {"w.lora_B"}
        assert synced() == set()
        broken = True
        with pytest.warns(UserWarning, match="left out until it is back: .*the cable"):
            synced("w")  # the only one: a rollout waits for it as long as patience_s allows
        broken = False
        assert synced("w.lora_A") == weights.keys()
        renewed = False
        assert synced("w.lora_A") == weights.keys()
        renewed = True
        assert synced("w.lora_A") == {"w.lora_A"}


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        (["gpu7:8000"], "must begin with http://"),
        (["http://a:1", "http://a:1/v1"], "http://a:1 stands there twice"),
        ([], "at least 1"),
    ],
)
def test_urls_that_are_none(urls: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        registry.build("samplers", "vllm_server", {"urls": urls}, MODEL, CONTEXT, 0)
