"""Whether the hub can be reached is decided once, and said once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest

from rlkit import hub


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "RANK"):
        monkeypatch.delenv(name, raising=False)
    hub.settle.cache_clear()
    yield
    hub.settle.cache_clear()


def closed() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_hub_that_cannot_be_reached_is_said_once_and_not_tried_again() -> None:
    code = (
        "from rlkit.config import ModelConfig\nfrom rlkit.data.reading import read_rows\n"
        "from rlkit.engine.models import load_tokenizer, model_shape\nfrom rlkit.errors import ConfigError\n"
        "for ask in (lambda: load_tokenizer(ModelConfig(path='who/knows')), lambda: read_rows('who/knows-it')):\n"
        "    try:\n        ask()\n    except ConfigError as error:\n        print('refused', error)\n"
        "print(model_shape(ModelConfig(path='who/knows')))\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": closed()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("refused") == 2
    assert done.stdout.splitlines()[-1] == "None"
    assert done.stderr.count("cannot be reached") == 1
    assert "Retry" not in done.stderr


@pytest.mark.filterwarnings("error")
def test_a_hub_that_answers_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        hub.settle()
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize(("name", "value"), [("HF_HUB_OFFLINE", "1"), ("http_proxy", "http://10.0.0.1:3128")])
def test_who_says_so_or_has_a_proxy_is_not_asked(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", closed().replace("127.0.0.1", "hub.invalid"))
    monkeypatch.setenv(name, value)
    monkeypatch.delenv("no_proxy", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hub.settle()


@pytest.mark.parametrize(
    ("weights", "left"),
    [("model-00001-of-00001.safetensors", "pytorch_model.bin"), ("pytorch_model.bin", "onnx/model.safetensors")],
)
def test_what_is_fetched_of_a_model_is_what_is_loaded_of_it(
    weights: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = ["config.json", "tokenizer.json", "chat_template.jinja", "tokenizer.model", "modeling_own.py", weights]
    others = [left, "original/params.json", "picture.png", "model.gguf"]
    with hub_server.hub(offers={name: name.encode() for name in [*loaded, *others]}) as server:
        hub_server.used(server, tmp_path, monkeypatch)
        hub.fetch_model("org/there")
        assert sorted(server.taken) == sorted(loaded)
        hub.fetch_model("org/there")
        assert len(server.taken) == len(loaded), "what is in the cache is not taken again"
