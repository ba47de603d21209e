"""Every plugin that ships keeps the contract of its kind: the checks of `rlkit check`, as anybody's plugin meets them.

Algorithms, advantages and losses: test_laws.py.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from rlkit import registry
from rlkit.conformance import check_environment, check_noise, check_reward, check_sampler, check_tracker
from rlkit.conformance.environments import read_tasks
from rlkit.conformance.examining import examine
from rlkit.embedded import PLAYED
from rlkit.interfaces.rewards import Sample, SampleKey

OPTIONS: dict[str, dict[str, Any]] = {
    "regex": {"pattern": r"#### (.*)"},
    "length": {"max_tokens": 24, "buffer": 8},
    "json_schema": {"definition": {"type": "object"}},
    "group_flip": {"prob": 0.3},
    "flip": {"prob": 0.3},
    "asymmetric": {"false_positive": 0.1, "false_negative": 0.4},
    "gaussian": {"std": 0.5},
    "drop": {"prob": 0.3},
}
ELSEWHERE = ("judge", "reward_model")
"""They ask a server or a model; tests of their own do that."""
QUICK = ("countdown", "final_answer")
PROGRAMS = ["```python\nprint(int(input()) + 1)\n```", "print(0)"]


def sample(index: int, response: str, answer: str) -> Sample:
    return Sample(
        key=SampleKey("made", 1, 0, index),
        prompt="made",
        response=response,
        tokens=[1] * 5,
        answer=answer,
        truncated=False,
        gold=answer,
    )


SAMPLES = {
    "choice": [
        sample(i, text, "B") for i, text in enumerate([r"\boxed{B}", "The answer is (B)", r"\boxed{A}", "none"])
    ],
    "code": [
        sample(i, text, json.dumps({"inputs": ["1\n", "5\n"], "outputs": ["2", "6"]}))
        for i, text in enumerate(PROGRAMS)
    ],
}


@pytest.mark.parametrize("name", registry.names("noise"))
def test_noise(name: str) -> None:
    check_noise(name, **OPTIONS[name])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in registry.names("rewards")
        if name not in (*ELSEWHERE, "function")
    ],
)
def test_a_reward(name: str) -> None:
    if name == "code" and not shutil.which("bwrap"):
        pytest.skip("needs bubblewrap")
    check_reward(name, samples=SAMPLES.get(name), **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_reward_that_asks_others_is_left_out_in_a_sentence(name: str) -> None:
    (finding,) = examine(registry.find("rewards", name), {})
    assert "model" in finding.left_out
    assert not finding.wrong


@pytest.mark.parametrize("name", sorted(PLAYED))
def test_an_environment(name: str) -> None:
    check_environment(name, tasks=read_tasks(f"embedded:{name}"), **OPTIONS.get(name, {}))


def test_an_environment_of_tools() -> None:
    check_environment("tools", tools=["calculator"])


def test_a_sampler() -> None:
    check_sampler("transformers")


@pytest.mark.slow
def test_the_other_sampler() -> None:
    pytest.importorskip("vllm")
    check_sampler("vllm")


@pytest.mark.parametrize("name", ["tensorboard", pytest.param("wandb", marks=pytest.mark.slow)])
def test_a_tracker(name: str) -> None:
    pytest.importorskip(name)
    check_tracker(name)
