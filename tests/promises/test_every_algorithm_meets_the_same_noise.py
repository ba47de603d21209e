"""Noise follows from a run's seed and the samples' names alone: nothing that two runs may do differently moves it."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import rlkit
from rlkit import config as configs
from rlkit import registry
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.records.folder import RunFolder
from rlkit.scoring.noise import apply_noise, parse_noise

STACK = ["group_flip:0.25", "flip:0.1", "asymmetric:0.1,0.3", "gaussian:0.2", "drop:0.1"]
PROMPTS = ["a7", "03", "ff", "5c", "03", "9e", "a7", "a7"]
SAMPLES, STEPS, SEED = 4, 6, 17


def keys(step: int) -> list[SampleKey]:
    """Of one step; some prompts come more than once in it."""
    seen: Counter[str] = Counter()
    made = []
    for prompt in PROMPTS:
        made += [SampleKey(prompt, step, seen[prompt], index) for index in range(SAMPLES)]
        seen[prompt] += 1
    return made


EVERY = [key for step in range(1, STEPS + 1) for key in keys(step)]


def noisy(some: list[SampleKey], seed: int = SEED, stack: list[str] = STACK) -> dict[SampleKey, float | None]:
    """What a reward of 1 becomes for each key, from a stack that is built anew."""
    kinds = [parse_noise(text) for text in stack]
    noises = [registry.build("noise", kind.pop("kind"), kind) for kind in kinds]
    results = [RewardResult(value=1.0) for _ in some]
    return dict(zip(some, apply_noise(noises, seed, some, results, (0.0, 1.0)), strict=True))


EXPECTED = noisy(EVERY)


def test_it_does_something_and_depends_on_the_seed() -> None:
    assert 0.03 < sum(v is None for v in EXPECTED.values()) / len(EVERY) < 0.2
    assert len({v for v in EXPECTED.values() if v is not None}) > 100
    assert noisy(EVERY, seed=SEED + 1) != EXPECTED


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_any_number_of_ranks(ranks: int) -> None:
    together: dict[SampleKey, float | None] = {}
    for rank in range(ranks):
        for step in range(1, STEPS + 1):
            together |= noisy([key for i, key in enumerate(keys(step)) if i // SAMPLES % ranks == rank])
    assert together == EXPECTED


def test_any_order_of_scoring() -> None:
    order = EVERY.copy()
    for seed in range(3):
        random.Random(seed).shuffle(order)
        assert noisy(order) == EXPECTED
    one_by_one: dict[SampleKey, float | None] = {}
    for key in order:
        one_by_one |= noisy([key])
    assert one_by_one == EXPECTED


def test_whatever_was_drawn_before() -> None:
    """An algorithm that draws random numbers of its own, and one whose samples get no reward, change nothing."""
    random.seed(1)
    first = noisy(EVERY)
    random.seed(2)
    random.random()
    assert noisy(EVERY) == first == EXPECTED


def test_after_a_resume_in_a_fresh_process() -> None:
    """Steps 4 to 6, by an interpreter that has not seen 1 to 3 and whose hashes are salted otherwise."""
    late = [key for key in EVERY if key.rollout_step > 3]
    code = (
        "import json, sys\n"
        "from rlkit import registry\n"
        "from rlkit.scoring.noise import apply_noise, parse_noise\n"
        "from rlkit.interfaces.rewards import RewardResult, SampleKey\n"
        "stack, seed, keys = json.load(sys.stdin)\n"
        "kinds = [parse_noise(text) for text in stack]\n"
        "noises = [registry.build('noise', kind.pop('kind'), kind) for kind in kinds]\n"
        "keys = [SampleKey(*key) for key in keys]\n"
        "results = [RewardResult(value=1.0)] * len(keys)\n"
        "print(json.dumps(apply_noise(noises, seed, keys, results, (0.0, 1.0))))\n"
        "assert 'torch' not in sys.modules\n"
    )
    plain = [(key.prompt_id, key.rollout_step, key.occurrence, key.index) for key in late]
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([STACK, SEED, plain]), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [EXPECTED[key] for key in late]


def test_the_same_prompt_twice_in_a_step_gets_its_own_coins() -> None:
    flips = noisy(EVERY, stack=["group_flip:0.5"])
    groups = {(k.prompt_id, k.rollout_step, k.occurrence): v for k, v in flips.items() if k.index == 0}
    pairs = [(groups["a7", s, a], groups["a7", s, b]) for s in range(1, STEPS + 1) for a, b in ((0, 1), (1, 2), (0, 2))]
    assert 0 < sum(a == b for a, b in pairs) < len(pairs)


def test_the_coins_are_the_same_for_ever() -> None:
    """Written down: a release that changed them would change every experiment."""
    key = SampleKey("9f2c", 12, 0, 2)
    assert noisy([key], seed=1, stack=["gaussian:1"]) == {key: pytest.approx(GOLDEN, abs=1e-12)}


GOLDEN = 1.4770748088987706


ACTS = [
    f"plugins=[{Path(__file__).parents[1] / 'acting.py'}]", "environment={kind: sums, turns: 2}", "reward=[]",
    "sampling.max_tokens=48",
]  # fmt: skip
"""A reward of 0 to 3, given by turns."""


def test_the_algorithms_themselves_and_what_they_act_in(tmp_path: Path) -> None:
    """Whoever gives the reward and whenever, the same groups are disturbed."""
    disturbed: dict[str, set[tuple[str, int]]] = {}
    for algo, acts in (("vimpo", []), ("grpo", []), ("ppo", []), ("vimpo", ACTS), ("grpo", ACTS)):
        named = [f"out={tmp_path}", f"name={algo}{len(acts)}", "noise=[{kind: group_flip, prob: 0.4}]"]
        small = ["steps=2", "eval.problems=2", "batch.samples_per_prompt=2"]
        config = configs.load("embedded_xs", [*named, *small, *acts], algo)
        folder = RunFolder.open(rlkit.train(config, quiet=True))
        rows = [pq.read_table(folder.rollout_file(step)).to_pylist() for step in (1, 2)]
        disturbed[folder.path.name] = {
            (row["prompt_id"], step)
            for step, some in enumerate(rows)
            for row in some
            if row["reward"] != row["clean_reward"]
        }
        assert len(disturbed[folder.path.name]) < 2 * 16
        for row in itertools.chain.from_iterable(rows) if acts else ():
            assert row["reward"] in (row["clean_reward"], 3 - row["clean_reward"])
            assert sum(row["token_reward"]) == row["reward"]
    first, *others = disturbed.values()
    assert first
    assert all(other == first for other in others)
