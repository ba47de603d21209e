"""A package that rlkit has never heard of brings an algorithm and a reward, and both run by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "stranger"
version = "1.2.3"
[project.entry-points."rlkit.algorithms"]
reinforce = "stranger:reinforce"
[project.entry-points."rlkit.rewards"]
short = "stranger:short"
broken = "stranger_broken:nothing"
[tool.setuptools]
py-modules = ["stranger", "stranger_broken"]
"""

STRANGER = '''
from pydantic import BaseModel

from rlkit import Algorithm, Targets, algorithm, reward


class Config(BaseModel):
    scale: float = 1.0


@algorithm("reinforce")
def reinforce(config: Config) -> Algorithm:
    """REINFORCE with the batch's mean as baseline."""

    def advantage(batch, state):
        state["seen"] = state.get("seen", 0) + batch.n_sequences
        centred = batch.rollout.reward - batch.rollout.reward[batch.rollout.valid].mean()
        advantages = centred[:, None] * batch.mask * config.scale
        return Targets(advantages=advantages, scalars={"reinforce/seen": state["seen"]})

    def loss(new, batch, targets):
        return -(new.get("logprobs") * targets.get("advantages"))[batch.mask].sum() / batch.n_tokens, {}

    return Algorithm(advantage=advantage, policy_loss=loss)


@reward("short")
def short(samples, *, limit: int = 20):
    """1 for an answer within the limit."""
    return [float(len(s.tokens) <= limit) for s in samples]
'''


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which the package is installed, in a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "stranger.py").write_text(STRANGER)
    (source / "stranger_broken.py").write_text("raise ImportError('needs a thing that is not there')\n")
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, str(source)], check=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def rlkit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlkit.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_its_algorithm_and_reward_train_by_name(stranger: dict[str, str], tmp_path: Path) -> None:
    done = rlkit(
        stranger, "run", "embedded_xs", "--algo", "reinforce", "-s", "algo.scale=0.5", "-s", "reward.kind=short",
        "-s", "reward.limit=15", "-s", "steps=2", "-s", "eval.problems=4", "--out", str(tmp_path), "--name", "mine",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reinforce/seen" in (tmp_path / "mine" / "metrics.jsonl").read_text()
    assert "stranger" in (tmp_path / "mine" / "provenance.json").read_text()


def test_its_options_are_checked(stranger: dict[str, str]) -> None:
    done = rlkit(stranger, "run", "--dry-run", "-s", "reward.kind=short", "-s", "reward.limt=15")
    assert done.returncode == 2
    assert "did you mean 'limit'?" in done.stderr


def test_list_shows_where_each_comes_from_and_survives_a_broken_one(stranger: dict[str, str]) -> None:
    done = rlkit(stranger, "list")
    assert "REINFORCE with the batch's mean as baseline." in done.stdout
    assert "[stranger 1.2.3]" in done.stdout
    assert "vimpo" in done.stdout
    assert "needs a thing that is not there" in done.stderr
    assert done.returncode == 1
