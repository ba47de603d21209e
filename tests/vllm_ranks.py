"""Run by torchrun: vLLM beside a trainer's process group. Arguments: model folder, then sizes of tensor_parallel to try
one after the other."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
import torch.distributed
from sampler_help import ask, largest_gap, naive_end, pieces_tokenizer, spanning_stops

from rlkit import registry
from rlkit.config import ModelConfig
from rlkit.engine.distributed import leave


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


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    for size in sys.argv[2:]:
        check(Path(sys.argv[1]), int(size))
    torch.distributed.destroy_process_group()
    leave(0)
