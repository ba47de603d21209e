"""Run by torchrun: vLLM beside a trainer's process group. Arguments: model folder, then sizes of tensor_parallel to try
one after the other."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from sampler_help import Talk, ask, largest_gap, naive_end, pieces_tokenizer, spanning_stops

from rlkit import registry
from rlkit.config import ModelConfig
from rlkit.engine.distributed import leave
from rlkit.errors import RlkitError
from rlkit.interfaces.generation import Request, SamplingParams


def check(folder: Path, tensor_parallel: int) -> None:
    from transformers import AutoModelForCausalLM

    rank = torch.distributed.get_rank()
    options = {"tensor_parallel": tensor_parallel}
    sampler = registry.build("samplers", "vllm", options, ModelConfig(path=str(folder), dtype="float32"), 64, 0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # Ranks ask for different numbers of completions, of other prompts, with other seeds.
    prompts = [[3 + rank, 5, 7 + i % 4] for i in range(10 + 3 * rank)]
    seeds = [1000 * rank + i for i in range(len(prompts))]

    before = ask(sampler, prompts, seeds)
    assert largest_gap(model, prompts, before, 1.0) <= 1e-4
    # Ranks that share a model end the others' responses as well.
    stop = tuple(spanning_stops(pieces_tokenizer(), before, 3, random.Random(rank)))
    ends = [naive_end(pieces_tokenizer(), completion.tokens, stop) for completion in before]
    assert any(ends)
    stopped = [completion.tokens for completion in ask(sampler, prompts, seeds, stop=stop)]
    assert stopped == [completion.tokens[:end] for completion, end in zip(before, ends, strict=True)]
    converse(sampler, rank, tensor_parallel, stop)
    assert [completion.tokens for completion in ask(sampler, prompts, seeds)] == [c.tokens for c in before]
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert largest_gap(model, prompts, before, 1.0) > 1e-2
    sampler.sync(model.named_parameters(), 4)
    after = ask(sampler, prompts, seeds)
    assert largest_gap(model, prompts, after, 1.0) <= 1e-4
    assert {completion.version for completion in after} == {4}

    sampler.close()
    total = torch.ones(1)
    torch.distributed.all_reduce(total)  # the trainer's group outlives the engine
    assert total.item() == torch.distributed.get_world_size()
    print(f"tensor_parallel {tensor_parallel}: rank {rank} ok\n", end="", flush=True)


def converse(sampler: Any, rank: int, tensor_parallel: int, stop: tuple[str, ...]) -> None:
    """Conversations, as many more on the second rank, of which some are longer, and none on the first at last; then one
    whose environment breaks on the second."""

    def talk(count: int) -> Talk:
        params = [SamplingParams(max_tokens=3 + i % 4, stop=stop if i % 2 else ()) for i in range(count)]
        openings = [
            Request(prompt_tokens=[3, 5 + rank, 7], seed=90 * rank + 9 * i, params=params[i]) for i in range(count)
        ]
        return Talk(openings, [1 + (i + rank) % 4 for i in range(count)], wait_s=0.02 * (1 + rank))

    for count in (3 + 2 * rank, 2 * rank):
        held = talk(count)
        found = held.hold(sampler)
        again = sorted(sampler.generate([request for _, request in held.asked]))
        assert [completion.tokens for _, completion in again] == [completion.tokens for completion in found]
        assert all(
            len(c.tokens) <= request.params.max_tokens for c, (_, request) in zip(found, held.asked, strict=True)
        )

    breaks = talk(2)
    taken = breaks.take

    def take(*, wait: bool) -> Sequence[Request] | None:
        if rank == 1 and len(breaks.asked) > 2:
            raise RlkitError("rank 1's environment is broken")
        return taken(wait=wait)

    breaks.take = take  # type: ignore[method-assign]
    told = rank == 1 or tensor_parallel > 1
    with pytest.raises(RlkitError, match="rank 1's environment is broken") if told else contextlib.nullcontext():
        breaks.hold(sampler)


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    for size in sys.argv[2:]:
        check(Path(sys.argv[1]), int(size))
    torch.distributed.destroy_process_group()
    leave(0)
