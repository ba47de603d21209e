"""Real servers, two of them: a run against one or both is the run with vLLM in its own process; what dies in the middle
of a rollout changes nothing; what does not hold the weights is found out."""

from __future__ import annotations

import contextlib
import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from random_batches import fresh_seed
from sampler_help import Talk, ask, largest_gap, naive_end, spanning_stops
from server_help import Served
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlkit
from rlkit import config as configs
from rlkit import registry
from rlkit.config import ModelConfig
from rlkit.embedded import resolve
from rlkit.errors import RlkitError
from rlkit.generation.server import Server
from rlkit.generation.weights.gloo import GlooRoute
from rlkit.interfaces.generation import Request, SamplingParams
from rlkit.loop.stalls import Watch
from rlkit.records.folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:a server is left out", "ignore:.* was held by another run"),
]

GAP = 1e-4
FOLDER = resolve("embedded:xs")
MODEL = ModelConfig(path="embedded:xs", dtype="float32")
PROMPTS = [[5, 9, 7, 11, 3, 8], [6], [4, 12, 13], [10, 10, 6, 5, 4, 3, 7, 8, 9]]
KEY = "RLKIT_KEY_OF_TEST"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """The second wants a key."""
    folder = tmp_path_factory.mktemp("servers")
    key = {KEY: "sesame-1234"}
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY, key[KEY])
        pair = [
            Served(folder / "1.log", "embedded:xs"),
            Served(folder / "2.log", "embedded:xs", "--api-key-env", KEY),
        ]
        for each in pair:
            stack.callback(each.close)
        for each in pair:
            each.wait()
        yield pair
        assert not any("sesame" in each.said() for each in pair)


@contextlib.contextmanager
def sampling(*servers: Served, **options: Any) -> Iterator[Any]:
    options |= {"urls": [each.url for each in servers], "api_key_env": KEY}
    with contextlib.closing(registry.build("samplers", "vllm_server", options, MODEL, 200, 0)) as built:
        yield built


def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@torch.no_grad()
def changed(model: Any) -> Any:
    for number, parameter in enumerate(model.parameters()):
        parameter.mul_(1.2 if number % 2 else 0.8)
    return model


def trained(tmp_path: Path, name: str, sampler: dict[str, Any] | str, *more: str) -> RunFolder:
    settings = ["steps=2", "batch.prompts_per_step=8", "eval.problems=8", f"out={tmp_path}", f"name={name}", *more]
    config = configs.load("embedded_xs", settings)
    sampler = {"kind": sampler} if isinstance(sampler, str) else sampler
    return RunFolder.open(
        rlkit.train(
            configs.resolve(config.model_copy(update={"sampler": configs.PluginRef(**sampler)})), quiet=True
        ).folder
    )


def test_the_engine_of_a_cpu_has_no_worker_beside_it(servers: list[Served]) -> None:
    assert len(servers[0].processes(b"VLLM::EngineCore")) == 1
    assert servers[0].processes(b"VLLM::Worker") == []


def test_a_run_is_the_same_with_servers_as_in_process(servers: list[Served], tmp_path: Path) -> None:
    def of(*which: Served) -> dict[str, Any]:
        return {"kind": "vllm_server", "urls": [each.url for each in which], "api_key_env": KEY}

    own = trained(tmp_path, "own", "vllm")
    for name, which in (("one", servers[:1]), ("two", servers)):
        run = trained(tmp_path, name, of(*which))
        for step in (1, 2):
            here, there = (
                pq.read_table(next(each.rollouts.glob(f"*{step}.parquet"))).to_pydict() for each in (own, run)
            )
            assert here["tokens"] == there["tokens"], (name, step)
            gaps = [
                abs(a - b)
                for x, y in zip(here["sampler_logprobs"], there["sampler_logprobs"], strict=True)
                for a, b in zip(x, y, strict=True)
            ]
            assert max(gaps) <= GAP
        assert max(row["sampler/gap_max"] for row in run.read_metrics() if row["step"]) <= GAP
        assert "sesame" not in run.config_file.read_text()


def test_adapters_travel_alone_and_are_merged_to_the_same_bits(
    servers: list[Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is the one in process: same tokens, and log-probs that differ by no more than those of all weights."""
    sent: list[dict[str, int]] = []
    send = GlooRoute.send

    def noted(self: GlooRoute, weights: dict[str, torch.Tensor], changed: set[str]) -> None:
        sent.append({name: weights[name].nbytes for name in changed})
        send(self, weights, changed)

    monkeypatch.setattr(GlooRoute, "send", noted)
    adapters = ("model.lora={rank: 8}", "optimizer.lr=3e-3", "steps=3")
    own = trained(tmp_path, "own", "vllm", *adapters)
    run = trained(tmp_path, "server", {"kind": "vllm_server", "urls": [servers[0].url]}, *adapters)
    for step in (1, 2, 3):
        here, there = (pq.read_table(next(each.rollouts.glob(f"*{step}.parquet"))).to_pydict() for each in (own, run))
        assert here["tokens"] == there["tokens"], step
    assert max(row["sampler/gap_max"] for row in run.read_metrics() if row["step"]) <= GAP
    first, *_, last = sent
    assert len(sent) == 5  # changed on purpose, the true ones, and after each update
    assert len(first) > len(last) > 0
    assert all(name.endswith((".lora_A", ".lora_B")) for name in last)
    assert sum(last.values()) < sum(first.values()) / 2


def test_new_weights_arrive_and_samples_say_which_drew_them(servers: list[Served]) -> None:
    prompts, seeds = [PROMPTS[i % 4] for i in range(64)], list(range(64))
    with sampling(*servers) as built:
        for version, now in ((3, changed(model())), (4, model())):
            built.sync(now.named_parameters(), version)
            found = ask(built, prompts, seeds)
            assert {completion.version for completion in found} == {version}
            assert largest_gap(now, prompts, found, 1.0) <= GAP
        assert [c.tokens for c in ask(built, prompts[::-1], seeds[::-1])] == [c.tokens for c in found[::-1]]
    with sampling(servers[1]) as built:
        built.sync(model().named_parameters(), 0)
        assert [c.tokens for c in ask(built, prompts, seeds)] == [c.tokens for c in found]


def test_stop_texts_end_a_sample_where_they_do_elsewhere(servers: list[Served]) -> None:
    rng = random.Random(fresh_seed())
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    prompts, seeds = [PROMPTS[i % 4] for i in range(60)], list(range(60))
    with sampling(*servers) as built:
        built.sync(model().named_parameters(), 0)
        plain = ask(built, prompts, seeds)
        stop = tuple(spanning_stops(tokenizer, plain, 3, rng))
        for completion, whole in zip(ask(built, prompts, seeds, stop=stop), plain, strict=True):
            end = naive_end(tokenizer, whole.tokens, stop)
            assert completion.tokens == whole.tokens[:end], stop
            assert completion.truncated == (end is None and whole.truncated)


def test_a_server_that_has_forgotten_the_weights_gets_them_before_work(servers: list[Served]) -> None:
    """As one that was started anew: in the middle of a rollout it answers with another name for its weights."""
    with sampling(servers[0], concurrency=4) as built:
        built.sync(changed(model()).named_parameters(), 5)
        [one] = built._servers
        requests = [
            Request(prompt_tokens=PROMPTS[i % 4], seed=i, params=SamplingParams(max_tokens=24)) for i in range(40)
        ]
        found = []
        for pair in built.generate(requests):
            if not found:
                one.give(dict(model().named_parameters()), "default", "test")
            found.append(pair)
        assert (
            largest_gap(
                changed(model()),
                [r.prompt_tokens for r in requests],
                [c for _, c in sorted(found, key=lambda pair: pair[0])],
                1.0,
            )
            <= GAP
        )


def test_a_sync_that_leaves_a_weight_old_is_found_out(
    servers: list[Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = Server.give

    def partly(self: Server, weights: dict[str, torch.Tensor], *named: str) -> None:
        give(
            self,
            weights | {"model.norm.weight": dict(model().named_parameters())["model.norm.weight"].detach()},
            *named,
        )

    monkeypatch.setattr(Server, "give", partly)
    with pytest.raises(RlkitError, match="does not hold the trainer's weights"):
        trained(tmp_path, "stale", {"kind": "vllm_server", "urls": [servers[0].url]})


def test_weights_that_were_not_sent_are_named(servers: list[Served]) -> None:
    partial = [(name, p) for name, p in model().named_parameters() if "layers.1.mlp.down_proj" not in name]
    with sampling(servers[0]) as built:
        with pytest.raises(RlkitError, match="the new weights did not get to the servers"):
            built.sync(partial, 1)
        built.sync(model().named_parameters(), 1)
        assert largest_gap(model(), PROMPTS, ask(built, PROMPTS, [1, 2, 3, 4]), 1.0) <= GAP


def test_two_runs_on_one_server(servers: list[Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkit.generation.vllm_server.LEASE_S", 3.0)  # by which it is renewed each half second
    with sampling(servers[0]) as first, sampling(servers[0]) as second:
        first.sync(model().named_parameters(), 1)
        with pytest.raises(RlkitError, match=r"is held by another run \(process \d+ on .*start another server"):
            second.sync(model().named_parameters(), 1)
    with sampling(servers[0]) as third:
        third.sync(model().named_parameters(), 1)


def test_a_server_that_is_killed_in_the_middle_of_a_rollout(servers: list[Served]) -> None:
    """And of conversations: a turn is asked elsewhere. The last but one of this file: the second server is gone."""
    requests = [Request(prompt_tokens=PROMPTS[i % 4], seed=i, params=SamplingParams(max_tokens=60)) for i in range(80)]
    with sampling(*servers, concurrency=8) as built:
        built.sync(changed(model()).named_parameters(), 1)
        talk = Talk(requests, [1 + i % 3 for i in range(80)])
        for number, completion in built.stream(talk):
            if len(talk.answers) == 20:
                servers[1].kill()
            talk.hear(number, completion)
        assert len(talk.answers) == len(talk.asked) == 159
        whole = dict(built.generate([request for _, request in talk.asked]))
        assert {i: c.tokens for i, c in talk.answers.items()} == {i: c.tokens for i, c in whole.items()}
        assert "cannot be reached" in built._servers[1].out
        built.sync(model().named_parameters(), 2)
        assert largest_gap(model(), PROMPTS, ask(built, PROMPTS, [1, 2, 3, 4]), 1.0) <= GAP


def test_a_run_whose_last_engine_dies_in_the_middle_of_a_rollout_says_so_and_keeps_what_is_done(
    servers: list[Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of this file: the first server is gone too."""
    told, sampled = Watch.__call__, []

    def killing(self: Watch, phase: str, done: int = 0, total: int = 0) -> None:
        if (phase, done) == ("sampling", 1):
            sampled.append(total)
            if len(sampled) == 2:
                servers[0].kill_engine()
        told(self, phase, done, total)

    monkeypatch.setattr(Watch, "__call__", killing)
    sampler = {"kind": "vllm_server", "urls": [servers[0].url], "api_key_env": KEY, "patience_s": 5, "concurrency": 4}
    with pytest.raises(RlkitError) as ended:
        trained(tmp_path, "r", sampler)
    assert ended.value.exit_code == 1
    assert str(ended.value).startswith(f"no server has been of use for 5 s:\n  {servers[0].url}: ")
    assert "\nWhen one is there again, the run goes on with " in str(ended.value)
    run = RunFolder.open(tmp_path / "r")
    assert [each.name for each in run.checkpoints.iterdir()] == ["step-00000001"]
