"""The reward model: a tiny random classifier in a folder, and a server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from local_server import serving
from rlkit_rewards import reward_model as reward_model_module
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlkit import embedded, registry
from rlkit.errors import ConfigError
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey
from rlkit.scoring import score

assert reward_model_module

TEXTS = [("3+4=", "7"), ("1=", "2;3;4;5;6;7;8"), ("9", ""), ("12+34=", "46<eos>"), ("5", "<eos>"), ("7+8=", "15")]


def samples(texts: Sequence[tuple[str, str]] = TEXTS) -> list[Sample]:
    return [
        Sample(key=SampleKey("p", 0, 0, i), prompt=p, response=r, tokens=[], answer="", truncated=False)
        for i, (p, r) in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward-model")
    torch.manual_seed(0)
    source = embedded.resolve("embedded:xs")
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.normal_()
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(source).save_pretrained(path)
    return path


def build(**options: Any) -> Any:
    return registry.build("rewards", "reward_model", options)


def scored(reward: Any, given: Sequence[Sample]) -> list[RewardResult]:
    return score(reward, "reward_model", given)


def by_hand(folder: Path, texts: Sequence[str]) -> list[float]:
    """One text at a time, the head on the last token's hidden state."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    values = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = model.base_model(input_ids=ids).last_hidden_state
            values.append(model.score(hidden[0, -1]).item())
    return values


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_scores_are_those_of_the_last_token_however_batched(folder: Path, batch_size: int) -> None:
    reward = build(path=str(folder), dtype="float32", device="cpu", batch_size=batch_size)
    results = scored(reward, samples())
    assert [r.value for r in results] == pytest.approx(by_hand(folder, [p + r for p, r in TEXTS]), abs=1e-5)
    assert reward.in_process
    assert len({r.value for r in results}) == len(TEXTS)


def test_an_end_token_that_pads_too_does_not_move_the_place_it_reads(folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(folder, tmp_path / "model")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": settings["eos_token"]}))
    results = scored(build(path=str(path), dtype="float32", device="cpu"), samples())
    assert [r.value for r in results] == pytest.approx(by_hand(folder, [p + r for p, r in TEXTS]), abs=1e-5)


def test_chat_shows_two_messages_in_the_reward_model_s_template(folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "{% for m in messages %}{{ '=' if m.role == 'user' else '+' }}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(path)
    (result,) = scored(build(path=str(path), dtype="float32", device="cpu", chat=True), samples([("12", "34")]))
    assert result.value == pytest.approx(by_hand(folder, ["=12+34"])[0], abs=1e-5)


def test_a_text_that_is_too_long_is_not_cut(folder: Path) -> None:
    results = scored(build(path=str(folder), device="cpu", max_tokens=5), samples([("1", "2"), ("1", "2" * 20)]))
    assert [r.status for r in results] == ["ok", "error"]
    assert "tokens" in results[1].info["error"]


def test_a_score_that_is_no_number_has_no_value(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    path = shutil.copytree(folder, tmp_path / "model")
    model.save_pretrained(path)
    assert [r.status for r in scored(build(path=str(path), device="cpu"), samples())] == ["error"] * len(TEXTS)


def test_a_model_without_a_trained_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lacks the weights score\.weight"):
        build(path=embedded.resolve("embedded:xs"))


def test_a_classifier_of_several_outputs_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "two"
    AutoModelForSequenceClassification.from_pretrained(embedded.resolve("embedded:xs"), num_labels=2).save_pretrained(
        path
    )
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    with pytest.raises(ConfigError, match="has 2 outputs"):
        build(path=str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either path"),
        ({"path": "a", "url": "http://b"}, "either path"),
        ({"url": "b"}, "http://"),
        ({"url": "http://b", "device": "cpu"}, "device"),
        ({"path": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(**options)
    assert message in str(error.value)


def test_a_model_without_a_chat_template_cannot_chat(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        build(path=str(folder), chat=True)


def test_a_server_scores_in_batches() -> None:
    with serving(lambda n, body: {"scores": [len(t) for t in body["texts"]]}) as server:
        results = scored(build(url=server.url, batch_size=4), samples())
    assert [r.value for r in results] == [len(p + r) for p, r in TEXTS]
    assert sorted(len(r["texts"]) for r in server.requests) == [2, 4]


@pytest.mark.parametrize(
    "bad", [404, {"scores": [1.0]}, {"scores": ["a"] * 6}, {}, {"scores": [float("nan")] * 6}, b"x"]
)
def test_a_server_s_nonsense_gives_no_value(bad: Any) -> None:
    with serving(lambda n, body: bad) as server:
        results = scored(build(url=server.url, timeout_s=5), samples())
    assert {r.status for r in results} == {"error"}
    assert all(r.info["error"] for r in results)
