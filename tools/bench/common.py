"""What the benchmarks of steps share: random models, a run's loop step by step, rounds that alternate, tables."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rlkit import config as configs
from rlkit.assembly.build import build_loop
from rlkit.assembly.run import prepare_environment
from rlkit.embedded import resolve
from rlkit.loop.learner import Learner

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@dataclass(frozen=True)
class Shape:
    """Of a random Qwen3, and of what it is trained on."""

    hidden: int = 128
    layers: int = 4
    vocabulary: int = 1024
    prompts: int = 16
    samples: int = 8
    tokens: int = 64
    """At most, of a response."""
    mean: int = 0
    """Length of the responses, which end by chance; 0: all are as long as can be."""


QUICK = Shape(hidden=32, layers=1, vocabulary=64, prompts=2, samples=2, tokens=8)


def make_model(folder: Path, shape: Shape) -> Path:
    """A random model with the tokenizer of those that ship; its end token is as likely as `mean` asks for."""
    from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded:xs"))
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    model: Any = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=3 * shape.hidden,
            num_hidden_layers=shape.layers, num_attention_heads=max(2, shape.hidden // 64), num_key_value_heads=1,
            head_dim=32, max_position_embeddings=8192, tie_word_embeddings=False, eos_token_id=end,
        )
    )  # fmt: skip
    with torch.no_grad():
        # One dimension of the hidden states is about sqrt(hidden) everywhere: a bias for the end token.
        model.model.embed_tokens.weight[:, 0] = 8.0
        model.lm_head.weight[:, 0] = 0.0
        odds = math.log((shape.vocabulary - 1) / (shape.mean - 1)) if shape.mean else -40.0
        model.lm_head.weight[end, 0] = odds / math.sqrt(shape.hidden)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_settings(model: Path, shape: Shape, runs: Path, name: str, *more: str) -> list[str]:
    """Of a run that trains this model on the embedded task's prompts."""
    return [
        f"model.path={model}", f"out={runs}", f"name={name}", "eval.every=0", "eval.problems=4", "sampler=transformers",
        f"batch.prompts_per_step={shape.prompts}", f"batch.samples_per_prompt={shape.samples}",
        f"sampling.max_tokens={shape.tokens}", "optimizer.lr=1e-6", *more,
    ]  # fmt: skip


class Steps:
    """A run's training, step by step."""

    def __init__(self, algo: str, model: Path, shape: Shape, runs: Path, *settings: str) -> None:
        prepare_environment()
        from rlkit.engine import distributed

        settings = (*run_settings(model, shape, runs, f"{algo}-{time.time_ns()}", "steps=100000"), *settings)
        config = configs.load("embedded_xs", list(settings), algo)
        resolved, algorithm = configs.resolve_with_algorithm(config)
        distributed.init()
        self._stack = ExitStack()
        self._loop = build_loop(resolved, algorithm, self._stack, resume=False)
        self.metrics: dict[str, float] = {}

    def __call__(self) -> None:
        _, _, self.metrics = self._loop._one_step()

    @property
    def learner(self) -> Learner:
        return self._loop.learner

    def close(self) -> None:
        self._stack.close()


@dataclass(frozen=True)
class Measured:
    seconds: float
    """The median of the rounds."""
    lowest: float
    highest: float
    peak_mib: float
    """What it took beyond what was there, at most."""


def alternate(work: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, Measured]:
    """Do each in turn, so that what else the machine does meets all alike. The first `warm` rounds are not counted."""
    found: dict[str, list[Measured]] = {name: [] for name in work}
    for number in range(warm + rounds):
        for name, each in work.items():
            measured = once(each)
            if number >= warm:
                found[name].append(measured)
    return {
        name: Measured(
            statistics.median(m.seconds for m in each),
            min(m.seconds for m in each),
            max(m.seconds for m in each),
            max(m.peak_mib for m in each),
        )
        for name, each in found.items()
    }


def once(work: Callable[[], object]) -> Measured:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident("VmRSS")
    started = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else _resident("VmHWM")
    return Measured(seconds, seconds, seconds, peak - before)


def _resident(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def say(rows: Sequence[Mapping[str, Any]], file: Path | None, **about: Any) -> None:
    """The rows as a Markdown table on the terminal, and with what they are about as JSON in the file."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    machine = {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    about = {**machine, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), **about}
    print(", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    print("| " + " | ".join(rows[0]) + " |")
    print("|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    if file is not None:
        file.write_text(json.dumps({"about": about, "rows": list(rows)}, indent=2, default=asdict) + "\n")
