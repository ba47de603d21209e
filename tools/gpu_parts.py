"""What the items of tools/gpu_check.py share: figures, models of a shape, rollouts, time and memory."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlkit.assembly.run import prepare_environment

prepare_environment()
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # else it looks, and says so

import deepspeed  # noqa: E402, F401  here, where many items can share it
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from rlkit.config import RunConfig  # noqa: E402
from rlkit.engine import distributed  # noqa: E402
from rlkit.engine.deepspeed import Engine  # noqa: E402
from rlkit.engine.modules import Policy  # noqa: E402
from rlkit.interfaces.learning import Batch, Metrics, Rollout, Targets, TokenStats  # noqa: E402
from rlkit.interfaces.rewards import SampleKey  # noqa: E402

T = TypeVar("T")

GB = 1e9


class Skipped(Exception):
    """The item cannot be done here; why."""


@dataclass(frozen=True)
class Item:
    """What an item is given."""

    small: bool
    folder: Path
    """For what it writes."""
    file: Path
    """Where its figures go, a line each, as they are found: what was found before a failure counts."""
    seconds: float
    """In which it must be done."""
    model: str | None = None
    data: str | None = None

    def say(self, what: str, figure: Any, expected: str = "", fits: bool = True) -> None:
        row = {"what": what, "figure": figure, "expected": expected, "verdict": "ok" if fits else "off"}
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")


TINY = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 1600, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.1,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
"""Its larger weights have more than the 1e5 numbers from which ZeRO-3 shares them out."""
MIDDLE = TINY | {
    "hidden_size": 256, "intermediate_size": 1536, "num_hidden_layers": 3, "head_dim": 64, "initializer_range": 0.02,
}  # fmt: skip
LARGE = MIDDLE | {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
"""Qwen3-1.7B's shape."""


def settings(path: Path, **sections: Any) -> RunConfig:
    """A run's config; `sections` are fields by section."""
    data: dict[str, Any] = {
        "algo": "vimpo",
        "model": {"path": str(path), "dtype": "bfloat16"},
        "data": {"path": "unused.jsonl"},
        "reward": "exact",
        "batch": {"tokens_per_microbatch": 60},
        "optimizer": {"lr": 1e-2, "eps": 1e-5, "weight_decay": 0.0, "warmup_updates": 0},
        "engine": {"zero_stage": 2},
    }
    for section, fields in sections.items():
        data[section] = data.get(section, {}) | fields
    return RunConfig.model_validate(data)


def shaped(item: Item, shape: dict[str, Any]) -> Path:
    """A folder with a model's config alone."""
    folder = item.folder / f"width-{shape['hidden_size']}"
    Qwen3Config(**shape).save_pretrained(folder)
    return folder


def random_policy(config: RunConfig) -> Policy:
    """Weights are made where they will be used. What a policy finds out of its model it finds out of a tiny one."""
    settings = AutoConfig.from_pretrained(config.model.path)
    dtype = getattr(torch, config.model.dtype)
    torch.manual_seed(0)
    like = Policy(Qwen3ForCausalLM(Qwen3Config(**TINY)).to(dtype).eval(), config.model.path)
    with torch.device(distributed.device()):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Policy(model.eval(), config.model.path, like)


def random_engine(config: RunConfig) -> Engine:
    distributed.init()
    return Engine(random_policy(config), config, optimizer=config.optimizer, total_updates=100)


def random_batch(responses: Sequence[int], prompt: int, vocabulary: int, shared: int = 1) -> tuple[Batch, Targets]:
    """Rows with responses of these lengths; `shared` rows in turn have one prompt."""
    g = torch.Generator().manual_seed(0)
    rows, longest = len(responses), max(responses)
    length = torch.tensor(responses)
    mask = torch.arange(longest) < length[:, None]
    prompts = torch.randint(vocabulary, (rows, prompt), generator=g)
    zeros = torch.zeros(rows)
    rollout = Rollout(
        keys=[SampleKey(f"p{row // shared}", 1, 0, row % shared) for row in range(rows)],
        prompt_tokens=[prompts[row - row % shared] for row in range(rows)],
        tokens=torch.randint(vocabulary, (rows, longest), generator=g) * mask,
        length=length,
        mask=mask,
        valid=torch.ones(rows, dtype=torch.bool),
        group=torch.arange(rows) // shared,
        reward=zeros,
        clean_reward=zeros.clone(),
        sampler_logprobs=torch.zeros(rows, longest),
        version=torch.zeros(rows, dtype=torch.long),
        truncated=torch.zeros(rows, dtype=torch.bool),
    )
    advantages = torch.randn(rows, longest, generator=g)
    return Batch(rollout=rollout, n_sequences=rows, n_tokens=int(mask.sum())), Targets(advantages=advantages)


def policy_gradient(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
    return -(targets.get("advantages") * new.get("logprobs") * batch.mask).sum() / batch.n_tokens, {}


def alone(lm: Any, rollout: Rollout) -> list[Tensor]:
    """Log-probs of each row's response, by a pass of its own, and by the plainest means."""
    device, found = next(lm.parameters()).device, []
    for prompt, tokens, length in zip(rollout.prompt_tokens, rollout.tokens, rollout.length.tolist(), strict=True):
        response = tokens[:length].to(device)
        logits = lm(input_ids=torch.cat([prompt.to(device), response])[None], use_cache=False).logits[0]
        found.append(logits[len(prompt) - 1 : -1].float().log_softmax(1).gather(1, response[:, None])[:, 0])
    return found


def at_rest() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], T]) -> tuple[float, T]:
    at_rest()
    started = time.perf_counter()
    found = work()
    at_rest()
    return time.perf_counter() - started, found


def taken() -> float:
    """Bytes: of the GPU by tensors, or of the process."""
    gc.collect()
    if torch.cuda.is_available():
        return float(torch.cuda.memory_allocated())
    return _of_process("VmRSS")


def peak_of(work: Callable[[], Any]) -> float:
    """Bytes taken at most meanwhile."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        return float(torch.cuda.max_memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    work()
    return _of_process("VmHWM")


def _of_process(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(what))
