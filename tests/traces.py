"""What an algorithm makes of a fixed rollout, in numbers: a trace. `test_the_same_numbers.py` holds it against the one
that is kept; after a change that is meant to change numbers, `python tests/traces.py` keeps it anew.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlkit import config as configs
from rlkit import registry
from rlkit.assembly.inputs import read_inputs
from rlkit.data import Problem
from rlkit.engine import distributed
from rlkit.engine.loading import load_engines
from rlkit.generation.assemble import assemble
from rlkit.generation.sampled import Scored, draws
from rlkit.interfaces.generation import Completion
from rlkit.interfaces.rewards import RewardResult
from rlkit.loop.learner import Learner
from rlkit.loop.state import RunState

KEPT = Path(__file__).with_name("traces.json")
STEPS, GROUPS, SAMPLES = 3, 6, 4
SETTINGS = ["batch.minibatches=2", "batch.epochs=2", "optimizer.lr=3e-4", "optimizer.clip_norm=0.5", "seed=3"]
# Each term shall count: its default may be 0.
TERMS = {
    "ppo": ["algo.lam=0.9", "algo.gamma=0.97", "algo.entropy_coef=0.01", "algo.reward_kl_coef=0.02"],
    "grpo": ["algo.kl_coef=0.05"],
}

Trace = list[dict[str, float]]


def trace(algo: str, *changes: str) -> Trace:
    """Metrics of each step; and in the last how far each of the policy's tensors has moved from where it was: how long
    the way is, and how much of it goes along a fixed direction."""
    config = configs.load("embedded_xs", [*SETTINGS, *TERMS.get(algo, []), *changes], algo)
    config, algorithm = configs.resolve_with_algorithm(config)
    tokenizer = read_inputs(config, None).tokenizer
    distributed.init()
    policy, reference, critic = load_engines(config, algorithm, tokenizer)
    learner = Learner(config, algorithm, policy, reference, critic, RunState())
    rng = np.random.default_rng(11)
    before = {name: weight.clone() for name, weight in policy.weights()}
    directions = {name: torch.from_numpy(rng.standard_normal(weight.shape)) for name, weight in before.items()}
    found: Trace = []
    for step in range(1, STEPS + 1):
        scored = _scored(rng, step, tokenizer)
        rollout = assemble(
            scored,
            [one.result.value for one in scored],
            compares_groups=algorithm.compares_groups,
            leaves_out_truncated=algorithm.leaves_out_truncated,
        )
        own = policy.own_logprobs(rollout)
        # Off the policy's by a little, as a sampler's are.
        off = torch.from_numpy(rng.uniform(-0.05, 0.05, own.shape)).float()
        rollout = replace(rollout, sampler_logprobs=(own + off) * rollout.mask)
        metrics, _ = learner.learn(rollout, learner.measure(rollout, step), step)
        learner.state.step = step
        for name, weight in policy.weights() if step == STEPS else ():
            moved = weight.double() - before[name].double()
            metrics[f"moved/{name}"] = float(moved.norm())
            metrics[f"along/{name}"] = float((moved * directions[name]).sum())
        found.append({name: float(f"{value:.7g}") for name, value in sorted(metrics.items())})
    return found


def _scored(rng: np.random.Generator, step: int, tokenizer: Any) -> list[Scored]:
    """Answers to additions as the model gives them: some right, some with a digit that is not, one cut off."""
    problems, sums = [], []
    for at in range(GROUPS):
        first, second = rng.integers(1, 100, 2).tolist()
        text = f"{first}+{second}="
        problems.append(Problem(f"p{at}", text, tokenizer.encode(text), "", {}))
        sums += [first + second] * SAMPLES
    found = []
    for draw, right in zip(draws(problems, SAMPLES, step), sums, strict=True):
        off = int(rng.choice([0, 0, 1, -1, 10, 20]))
        cut = bool(rng.random() < 0.1)
        tokens = tokenizer.encode(f"#### {right + off}") + ([] if cut else [tokenizer.eos_token_id])
        value = None if rng.random() < 0.08 else float(off == 0)
        completion = Completion(tokens=tokens, logprobs=[0.0] * len(tokens), truncated=cut, version=step - 1)
        result = RewardResult(value=value, status="ok" if value is not None else "abstain")
        found.append(Scored(draw.key, draw.problem, completion, "", result=result))
    return found


def keep() -> None:
    kept: dict[str, Any] = {algo: trace(algo) for algo in registry.names("algorithms")}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    keep()
