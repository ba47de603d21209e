"""What a step costs beside the model, by the number of ranks: seconds, CPU seconds, and bytes that a rank receives.

    python tools/bench/growth.py --ranks 1,2,4 --json growth.json

A rollout of random tokens, log-probs and texts passes from the sampler to the files through the code of a run; sampler,
reward and models give what was made before, so that no stage holds any of their time. Ranks are real, over gloo. Of
each stage the rank counts that has most, and of the rounds the median. Where ranks are more than cores, or others use
them, seconds say little and CPU seconds more: they leave out waiting.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist
from common import QUICK, make_model, run_settings, say
from torch import Tensor

from rlkit import config as configs
from rlkit import registry
from rlkit.data import Problem
from rlkit.engine import distributed
from rlkit.engine.deepspeed import Engine
from rlkit.engine.models import load_policy
from rlkit.generation.assemble import assemble
from rlkit.generation.collector import Collector
from rlkit.generation.sampled import draws
from rlkit.interfaces.generation import Completion, SamplingParams
from rlkit.interfaces.learning import Batch, Rollout, TokenStats
from rlkit.interfaces.rewards import RewardResult
from rlkit.records.folder import RunFolder

PROMPT = 200
"""Tokens of a prompt."""
VOCABULARY = 150_000
LETTERS = 4
"""Of a text, for each token."""
FOUND = "found.json"


@dataclass
class Ready:
    """Sampler, tokenizer and scorer in one: all they give was made before."""

    samples: int
    tokens: int
    completions: dict[int, Completion] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    waiting: list[Any] = field(default_factory=list)

    def generate(self, requests: Sequence[Any]) -> Iterator[tuple[int, Completion]]:
        for at, request in enumerate(requests):
            if request.seed not in self.completions:
                self._make(request.seed)
            yield at, self.completions[request.seed]

    def _make(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, VOCABULARY, self.tokens)
        tokens[0] = len(self.texts)
        logprobs = -rng.exponential(size=self.tokens)
        self.completions[seed] = Completion(
            tokens=tokens.tolist(), logprobs=logprobs.tolist(), truncated=False, version=0
        )
        self.texts[len(self.texts)] = rng.integers(97, 123, LETTERS * self.tokens, dtype=np.uint8).tobytes().decode()

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.texts[tokens[0]]

    def submit(self, sample: Any, _acted: Any = None) -> None:
        self.waiting.append(sample)

    def finish(self, **_: Any) -> list[RewardResult]:
        results = [RewardResult(value=float(s.key.index % 2), info={"answer": "42"}) for s in self.waiting]
        self.waiting = []
        return results


@dataclass
class Wire:
    """Bytes that this rank has received."""

    received: float = 0.0

    def watch(self) -> None:
        """Count what goes through torch's collectives, the way of a ring."""
        c10d: Any = dist.distributed_c10d
        received: dict[str, Callable[..., float]] = {
            "all_reduce": lambda t: 2 * (1 - 1 / dist.get_world_size()) * t.nbytes,
            "all_gather": lambda parts, t: sum(part.nbytes for part in parts) - t.nbytes,
            "all_gather_single": lambda whole, t: whole.nbytes - t.nbytes,
            "gather": lambda t, parts=None: sum(part.nbytes for part in parts) - t.nbytes if parts else 0.0,
        }
        for name, count in received.items():
            watched = self._watched(getattr(c10d, name), count)
            setattr(c10d, name, watched)
            setattr(dist, name, watched)

    def _watched(self, collective: Any, count: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            arrays = [arg for arg in args if isinstance(arg, list | Tensor)]
            self.received += count(*arrays, *(more[name] for name in ("gather_list",) if name in more))
            return collective(*args, **more)

        return call


class Stages:
    """Seconds, CPU seconds and bytes of each stage, of each round."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.wire.watch()
        self.found: dict[str, list[tuple[float, ...]]] = defaultdict(list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        distributed.barrier()
        before = self._now()
        yield
        mine = [now - then for now, then in zip(self._now(), before, strict=True)]
        self.found[name].append(tuple(map(max, zip(*distributed.gather_objects(mine), strict=True))))

    def _now(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), self.wire.received


def work(sizes: Sequence[int], place: Path) -> None:
    """All rounds on this rank; the first is not counted. What they took is left in a file of `place`."""
    prompts, samples, tokens, rounds = sizes
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    distributed.init()
    model, rank = place / "model", distributed.rank()
    if rank == 0:
        make_model(model, QUICK)
    distributed.barrier()
    config = configs.load("embedded_xs", run_settings(model, QUICK, place, "run"), "vimpo")
    resolved, _ = configs.resolve_with_algorithm(config)
    batch = resolved.batch.model_copy(update={"tokens_per_microbatch": 16_384})
    engine = Engine(load_policy(resolved.model), resolved.model_copy(update={"batch": batch}))
    folder = RunFolder.create(place / "run", resolved) if rank == 0 else None

    def ready_stats(rollout: Rollout, want: Any, *_: Any, **__: Any) -> dict[Any, Tensor]:
        return dict.fromkeys(want, rollout.sampler_logprobs[rollout.mask])

    engine._pass = ready_stats  # type: ignore[method-assign]
    rng = np.random.default_rng(0)
    problems = [
        Problem(id=f"{n:016x}", text="x" * LETTERS * PROMPT, answer="42", columns={"level": n},
                tokens=rng.integers(0, VOCABULARY, PROMPT).tolist())
        for n in range(prompts)
    ]  # fmt: skip
    ready: Any = Ready(samples, tokens)
    collector = Collector(ready, ready, ready, 0)
    advantages = {name: registry.build("algorithms", name, {}).advantage for name in ("grpo", "vimpo", "ppo")}
    stages, wanted = Stages(), draws(problems, samples, 1)
    for number in range(rounds + 1):
        if number == 1:
            stages.found.clear()
        with stages.stage("collect"):
            scored, _ = collector.collect(wanted, SamplingParams(max_tokens=tokens), "train")
        with stages.stage("assemble"):
            rollout = assemble(scored, compares_groups=True)
        with stages.stage("measure"):
            stats = engine.token_stats(rollout, frozenset({"logprobs", "entropy"}))
        old = TokenStats(
            logprobs=stats.logprobs, ref_logprobs=stats.logprobs, token_kl=stats.entropy, values=stats.logprobs
        )
        whole = Batch(
            rollout=rollout, old=old, now=old,
            n_sequences=int(rollout.valid.sum()), n_tokens=int(rollout.mask.sum()),
        )  # fmt: skip
        for name, advantage in advantages.items():
            with stages.stage(f"advantage, {name}"):
                targets = advantage(whole, {})
        with stages.stage("plan"):
            plan = engine._plan(rollout)[rank]
        with stages.stage("rows"):
            for rows in plan:
                if rows:
                    whole.rows(rows)
                    targets.rows(rows)
        with stages.stage("write"):
            if folder is not None:
                folder.log_rollout(
                    1,
                    rollout,
                    prompts=[s.problem.text for s in scored],
                    answers=[s.problem.answer for s in scored],
                    texts=[s.text for s in scored],
                    results=[s.result for s in scored],
                    stats=stats,
                )
    if rank == 0:
        (place / FOUND).write_text(json.dumps(stages.found))
    distributed.leave(0)


def measured(ranks: int, sizes: Sequence[int]) -> dict[str, list[float]]:
    """Stage -> seconds, CPU seconds and bytes, medians over the rounds."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += [__file__, *map(str, sizes), place]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise click.ClickException(made.stderr)
        found = json.loads((Path(place) / FOUND).read_text())
    return {stage: [statistics.median(each) for each in zip(*rounds, strict=True)] for stage, rounds in found.items()}


@click.command()
@click.option("--ranks", default="1,2,4")
@click.option("--prompts", default=96)
@click.option("--samples", default=8, help="Of each prompt.")
@click.option("--tokens", default=4096, help="Of each response.")
@click.option("--rounds", default=5)
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Smallest sizes, one round: that it works.")
def main(ranks: str, prompts: int, samples: int, tokens: int, rounds: int, file: Path | None, quick: bool) -> None:
    if quick:
        ranks, prompts, samples, tokens, rounds = "2", 3, 2, 8, 1
    rows: list[dict[str, Any]] = []
    for count in map(int, ranks.split(",")):
        for stage, (seconds, cpu, size) in measured(count, (prompts, samples, tokens, rounds)).items():
            rows.append({"ranks": count, "what": stage, "seconds": seconds, "CPU s": cpu, "MB received": size / 1e6})
    say(rows, file, responses=prompts * samples, tokens=tokens, rounds=rounds)


if __name__ == "__main__":
    if "RANK" in os.environ:
        *sizes, folder = sys.argv[1:]
        work([int(size) for size in sizes], Path(folder))
    else:
        main()
