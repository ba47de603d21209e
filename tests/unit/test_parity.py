"""`rlkit doctor --parity`: samplers and trainer are held against each other, and one that lies is found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from click.testing import CliRunner
from torch import Tensor

from rlkit import generation
from rlkit.assembly import parity
from rlkit.cli import main
from rlkit.interfaces.generation import Completion, Request, Sampler

ALLOWED = 1e-3


@dataclass
class Liar:
    """Another sampler's completions, with something wrong about them."""

    inner: Sampler
    shift: float = 0.0
    """Nats that are added to its log-probs."""
    syncs: float = math.inf
    """Weights that it takes; later ones pass it by."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for at, completion in self.inner.generate(requests):
            yield at, replace(completion, logprobs=[each + self.shift for each in completion.logprobs])

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        given = list(weights)
        if self.syncs > 0:
            self.inner.sync(given, version)
        self.syncs -= 1

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def lies(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    real = generation.build_sampler

    def build(**how: Any) -> None:
        monkeypatch.setattr(generation, "build_sampler", lambda *arguments: Liar(real(*arguments), **how))

    return build


def findings() -> list[parity.Parity]:
    config = parity.settings("embedded:xs")
    found = list(parity.examine(config, parity.samplers()[:1]))
    assert [each.when for each in found[:3]] == ["other weights", "the model's weights", "after an update at rate 0"]
    return found


def test_what_agrees_is_told_by_its_figures() -> None:
    found = findings()
    assert [each.what for each in found] == ["transformers : trainer"] * 3 + ["trainer : transformers"]
    assert all(each.ok and each.tokens > 0 for each in found)
    assert max(each.mean for each in found) < 1e-5
    assert found[0].mean != found[1].mean
    assert "They agree" in parity.verdict(found)


def test_log_probs_that_are_a_little_off_are_found(lies: Callable[..., None]) -> None:
    lies(shift=2 * ALLOWED)
    found = findings()
    assert [each.ok for each in found] == [False, False, False, True]
    assert all(each.mean == pytest.approx(2 * ALLOWED, rel=0.01) for each in found[:3])
    assert parity.verdict(found).startswith("\ntransformers : trainer: no run should learn")


def test_a_sampler_that_takes_no_weights_is_found(lies: Callable[..., None]) -> None:
    lies(syncs=0)
    assert [each.ok for each in findings()] == [False, True, True, True]


def test_a_sampler_that_keeps_the_first_weights_is_found(lies: Callable[..., None]) -> None:
    lies(syncs=1)
    assert [each.ok for each in findings()] == [True, False, False, True]


def test_what_cannot_be_examined_fails_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    refs = parity.samplers(["http://127.0.0.1:9"])
    assert refs[-1].kind == "vllm_server"
    monkeypatch.setattr(parity, "samplers", lambda urls: [refs[-1], refs[0]])
    done = CliRunner().invoke(main, ["doctor", "--parity", "embedded:xs", "--urls", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "FAIL  vllm_server : trainer      sampler.urls: http://127.0.0.1:9 cannot be reached" in done.output
    assert done.output.count("ok    transformers : trainer") == 3
    assert done.output.endswith("vllm_server : trainer: could not be examined\n")


def test_options_of_parity_alone_are_refused_without_it() -> None:
    done = CliRunner().invoke(main, ["doctor", "-s", "model.dtype=bfloat16"])
    assert done.exit_code == 2
    assert "are for --parity" in str(done.output) + str(done.exception)


def test_vllm_is_among_the_samplers_where_it_is_installed() -> None:
    pytest.importorskip("vllm")
    assert [ref.kind for ref in parity.samplers()] == ["transformers", "vllm"]
