"""What tools/gpu_check.py checks: each function is an item, which says figures one by one.

An item runs in a process of its own, so that it may fail, hang or fill the GPU. Where there is no GPU the same code
runs at small sizes.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpu_parts import (
    GB,
    LARGE,
    MIDDLE,
    TINY,
    Item,
    Skipped,
    alone,
    peak_of,
    policy_gradient,
    random_batch,
    random_engine,
    random_policy,
    settings,
    shaped,
    taken,
    timed,
)
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlkit import config as configs
from rlkit.assembly.build import build_loop
from rlkit.closing import closing
from rlkit.config import RunConfig
from rlkit.engine import distributed, flops, memory
from rlkit.engine.activations import bytes_of_a_token
from rlkit.engine.deepspeed import Engine
from rlkit.engine.models import load_policy, model_shape
from rlkit.engine.passes import LOGPROBS
from rlkit.errors import NotFiniteError, RlkitError
from rlkit.generation import make_room
from rlkit.interfaces.learning import Batch, Metrics, Targets, TokenStats
from rlkit.loop.base import Loop
from rlkit.loop.sync import GAP_ALLOWED
from rlkit.ops.head import peak_bytes
from rlkit.ops.packing import place_rows
from rlkit.records.folder import RunFolder

AFTER_INIT = {1: 10, 2: 6, 3: 10}
"""ZeRO stage -> bytes a parameter on one rank, bfloat16, before the first update; stage 3 has a bucket besides."""
MFU = {"measure": 0.30, "update": 0.22}
"""Of the GPU's peak, on paper, for 4B with activations computed again."""


def init(item: Item) -> None:
    """One rank joins its process group and speaks through it."""

    def speak() -> bool:
        numbers, heard = torch.ones(2**20, device=distributed.device()), [None]
        dist.all_reduce(numbers)
        dist.all_gather_object(heard, "here")
        dist.barrier()
        return float(numbers.sum()) == 2**20 and heard == ["here"]

    try:
        joining, _ = timed(distributed.init)
        speaking, right = timed(speak)
    except RuntimeError as error:
        item.say("group over a HashStore", str(error).splitlines()[-1], "joined", fits=False)
        if dist.is_initialized():
            dist.destroy_process_group()
        store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        joining, _ = timed(lambda: dist.init_process_group(backend, store=store, rank=0, world_size=1))
        speaking, right = timed(speak)
        item.say("group over a TCPStore", f"{joining:.1f} s", "joined")
    else:
        item.say("joining the group", f"{joining:.1f} s")
    item.say("all_reduce, gather, barrier", f"{speaking:.1f} s", "right sums", fits=right)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        item.say("GPU memory, free of all", f"{free / GB:.1f} of {total / GB:.1f} GB", "90 %", fits=free > 0.9 * total)


def runs(item: Item) -> None:
    """Whole runs of the embedded model, and their resumes."""
    small = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "eval.problems=4", "sampling.max_tokens=12"]
    preset, steps = ("embedded_xs", 1) if item.small else ("embedded", 3)

    def config(algo: str, dtype: str, steps: int) -> RunConfig:
        stage = 0 if dtype == "float32" else 2  # the first alone has a stage 0
        own = [f"model.dtype={dtype}", f"engine.zero_stage={stage}", f"steps={steps}", f"name={algo}-{dtype}"]
        others = [f"out={item.folder}", "sampler=transformers", "eval.every=0", *(small if item.small else ())]
        return configs.load(preset, [*own, *others], algo)

    for dtype in ("float32", "bfloat16"):
        for algo in ("vimpo", "grpo", "ppo"):
            seconds, folder = timed(lambda: _trained(config(algo, dtype, steps)))  # noqa: B023
            _say_run(item, f"{algo}, {dtype}", folder, steps, seconds, dtype)
        seconds, folder = timed(lambda: _trained(config("vimpo", dtype, steps + 1), resume=True))  # noqa: B023
        _say_run(item, f"vimpo, {dtype}, resumed", folder, steps + 1, seconds, dtype)


def _trained(config: RunConfig, resume: bool = False) -> Path:
    """As `rlkit run` trains, but for the pictures."""
    with closing() as stack:
        _loop(config, stack, resume).train()
    return config.folder


def _say_run(item: Item, what: str, folder: Path, steps: int, seconds: float, dtype: str) -> None:
    rows = [row for row in RunFolder.open(folder).read_metrics() if "policy/loss" in row or "critic/loss" in row]
    gap = max((row["sampler/gap_mean"] for row in rows if "sampler/gap_mean" in row), default=float("nan"))
    allowed = GAP_ALLOWED[dtype]
    item.say(
        what,
        f"{len(rows)} of {steps} steps, {seconds:.1f} s, gap {gap:.1e}",
        f"all, gap under {allowed:g}",
        fits=len(rows) == steps and gap < allowed,
    )


VARIANTS: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
    **{f"ZeRO {stage}, float32": ("float32", stage, {}, {}) for stage in range(4)},
    **{f"ZeRO {stage}, bfloat16": ("bfloat16", stage, {}, {}) for stage in (1, 2, 3)},
    "ZeRO 2, LoRA, float32": ("float32", 2, {}, {"lora": {"rank": 4, "alpha": 8}}),
    "ZeRO 3, LoRA, bfloat16": ("bfloat16", 3, {}, {"lora": {"rank": 4, "alpha": 8}}),
    "ZeRO 3, activations again, float32": ("float32", 3, {}, {"gradient_checkpointing": True}),
    "ZeRO 1, optimizer offloaded, float32": ("float32", 1, {"offload_optimizer": True}, {}),
    "ZeRO 2, optimizer offloaded, bfloat16": ("bfloat16", 2, {"offload_optimizer": True}, {}),
    "ZeRO 3, all offloaded, float32": ("float32", 3, {"offload_optimizer": True, "offload_parameters": True}, {}),
    "ZeRO 2, states leave, bfloat16": ("bfloat16", 2, {"offload_states": True}, {}),
    "ZeRO 3, states leave, bfloat16": ("bfloat16", 3, {"offload_states": True}, {}),
}
"""What is tried -> dtype, ZeRO stage, settings of the engine, settings of the model."""
OFF_BY = {"float32": 1e-2, "bfloat16": 0.05}
"""Of how far updates move log-probs, at most."""


def engine(item: Item) -> None:
    """Three updates by the engine move log-probs as plain PyTorch on the CPU, in float32, does."""
    distributed.init()
    path = item.folder / "model"
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**TINY)).save_pretrained(path)
    batch, targets = random_batch([3, 12, 7, 12, 5, 9], 4, TINY["vocab_size"])
    plain: dict[str, Tensor] = {}
    for name, (dtype, stage, more, model) in VARIANTS.items():
        config = settings(path, model={"dtype": dtype, **model}, engine={"zero_stage": stage, **more})
        kind = str(model.get("lora"))
        if kind not in plain:
            plain[kind] = _plain_move(config, batch, targets)
        policy = _loaded(config)
        before = policy.own_logprobs(batch.rollout)
        for _ in range(3):
            policy.make_room()
            policy.update(batch, targets, policy_gradient)
        moved = (policy.own_logprobs(batch.rollout) - before)[batch.mask]
        off = float((moved - plain[kind]).norm() / plain[kind].norm())
        item.say(name, f"{off:.1e}", f"under {OFF_BY[dtype]:g} of the move", fits=off < OFF_BY[dtype])
    for dtype, stage in (("float32", 0), ("bfloat16", 2), ("bfloat16", 3)):
        config = settings(path, model={"dtype": dtype}, engine={"zero_stage": stage})
        _say_recovery(item, f"ZeRO {stage}, {dtype}", config, batch, targets)


def _loaded(config: RunConfig) -> Engine:
    return Engine(load_policy(config.model), config, optimizer=config.optimizer, total_updates=100)


def _plain_move(config: RunConfig, batch: Batch, targets: Targets) -> Tensor:
    """How far log-probs move in three updates, [N], by PyTorch alone."""
    changes = {"dtype": "float32", "gradient_checkpointing": False}
    lm = load_policy(config.model.model_copy(update=changes)).lm
    trained, wanted = [p for p in lm.parameters() if p.requires_grad], config.optimizer
    optimizer = torch.optim.AdamW(trained, wanted.lr, wanted.betas, wanted.eps, wanted.weight_decay)
    advantages = targets.get("advantages")[batch.mask]
    with torch.no_grad():
        before = torch.cat(alone(lm, batch.rollout))
    for _ in range(3):
        optimizer.zero_grad()
        (-(advantages * torch.cat(alone(lm, batch.rollout))).sum() / batch.n_tokens).backward()
        torch.nn.utils.clip_grad_norm_(trained, wanted.clip_norm)
        optimizer.step()
    with torch.no_grad():
        return torch.cat(alone(lm, batch.rollout)) - before


def _say_recovery(item: Item, name: str, config: RunConfig, batch: Batch, targets: Targets) -> None:
    """A step that is not finite is left out; what was saved goes on bit for bit."""

    def not_a_number(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        loss, metrics = policy_gradient(new, batch, targets)
        return loss * float("nan"), metrics

    policy = _loaded(config)
    policy.update(batch, targets, policy_gradient)
    held = dict(policy.weights())
    try:
        policy.update(batch, targets, not_a_number)
        said = "a step was made"
    except NotFiniteError:
        same = all(torch.equal(weight, held[name]) for name, weight in policy.weights())
        said = "left out" if same and policy.updates == 1 else "weights changed"
    item.say(f"{name}, a loss that is NaN", said, "left out", fits=said == "left out")
    folder = item.folder / f"saved-{config.model.dtype}-{config.engine.zero_stage}"
    policy.save(folder)
    policy.update(batch, targets, policy_gradient)
    straight = dict(policy.weights())
    resumed = _loaded(config)
    resumed.load(folder, resumed.layout)
    resumed.update(batch, targets, policy_gradient)
    off = max(float((weight - straight[name]).abs().max()) for name, weight in resumed.weights())
    item.say(f"{name}, saved and gone on", "equal" if off == 0 else f"{off:.1e} off", "equal", fits=off == 0)


def ragged(item: Item) -> None:
    """Rows of all lengths, packed and padded, say and learn what each says alone; and which kernel did it."""
    lengths = [3, 16, 41, 92, 41] if item.small else [3, 60, 300, 1020, 2500, 6140, 1020]
    batch, _ = random_batch(lengths, 4, MIDDLE["vocab_size"])
    batch.rollout.prompt_tokens[-1] = batch.rollout.prompt_tokens[-2]  # one prompt serves two
    path = shaped(item, MIDDLE | {"initializer_range": 0.05})
    for dtype, limit in (("float32", 1e-3), ("bfloat16", 0.1)):
        policy = random_policy(settings(path, model={"dtype": dtype}))
        exact = copy.deepcopy(policy.lm).float()
        exact.set_attn_implementation("sdpa")
        parts = alone(exact, batch.rollout)
        weight = exact.get_input_embeddings().weight
        (gradient,) = torch.autograd.grad(torch.cat(parts).sum(), weight)
        wanted = torch.cat(parts).detach()
        del parts
        for packed in (True, False):
            place = place_rows(batch.rollout, distributed.device(), packed)
            found = policy(**place, want=LOGPROBS)["logprobs"]
            own = policy.lm.get_input_embeddings().weight
            (grad,) = torch.autograd.grad(found.sum(), own)
            off = float((found.detach() - wanted).abs().mean())
            slant = float((grad.float() - gradient).norm() / gradient.norm())
            kernels = _kernels(lambda: policy(**place, want=LOGPROBS))  # noqa: B023
            item.say(
                f"{'packed' if packed else 'padded'}, {dtype}",
                f"{off:.1e} nats, gradient {slant:.1e}",
                f"under {limit:g}, both",
                fits=off < limit and slant < limit,
            )
            # The plain kernel holds the scores of all pairs of tokens.
            fused = any(kind in name for name in kernels for kind in ("flash", "cudnn", "efficient"))
            item.say(
                f"kernel, {'packed' if packed else 'padded'}, {dtype}",
                ", ".join(kernels) or "none seen",
                "flash, cudnn or efficient",
                fits=fused,
            )
    item.say("packs, as a run finds out", str(policy.packs), "True", fits=policy.packs)


@torch.no_grad()
def _kernels(work: Callable[[], Any]) -> list[str]:
    """The operators that attended, as PyTorch names them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as traced:
        work()
    names = {event.key.split("::")[-1].lstrip("_") for event in traced.key_averages()}
    attended = {name for name in names if "attention" in name or "attn" in name}
    return sorted(attended - {"scaled_dot_product_attention"})


def memory_truth(stage: int, item: Item) -> None:
    """What a model's training takes, beside what the plan says of it."""
    shape, prompt, rows, response = (MIDDLE, 8, 2, 56) if item.small else (LARGE, 96, 2, 4000)
    config = settings(
        shaped(item, shape),
        model={"gradient_checkpointing": True},
        batch={"tokens_per_microbatch": rows * (prompt + response)},
        engine={"zero_stage": stage},
    )
    batch, targets = random_batch([response] * rows, prompt, shape["vocab_size"])
    if item.small:
        ctypes.CDLL(None).mallopt(-3, 2**17)  # M_MMAP_THRESHOLD: what is freed is the system's at once
    warm = random_engine(settings(shaped(item, TINY), engine={"zero_stage": stage}))
    for _ in range(2):  # what any first pass leaves behind is no model's
        warm.update(*random_batch([response] * rows, prompt, TINY["vocab_size"]), policy_gradient)
    del warm
    size = model_shape(config.model)
    assert size is not None
    said = memory.engine_bytes(config, 1, size.parameters)
    gpu = torch.cuda.is_available()
    tokens = rows * (prompt + response)
    logits = peak_bytes(tokens, size.vocabulary, gpu, learns=size.width, width=2)
    passing = tokens * (bytes_of_a_token(config.model) or 0.0)
    bucket = said.sampling - 18 * size.parameters if stage == 3 else 0.0
    # A process has more in memory than tensors, and not yet all of these: tests/unit/test_memory.py counts them.
    near = 0.05 if gpu else 0.4
    before = taken()
    policy = random_engine(config)

    def resident(when: str, expected: float) -> None:
        found = taken() - before
        fits = abs(found - expected) < near * expected
        item.say(f"{when}, resident", f"{found / GB:.2f} GB", f"{expected / GB:.2f} GB", fits)

    def peak(when: str, least: float, most: float, work: Callable[[], Any]) -> None:
        found, most = peak_of(work) - before, most + logits + passing
        fits = (1 - 2 * near) * least < found < (1 + 2 * near) * most
        item.say(f"{when}, peak", f"{found / GB:.2f} GB", f"{least / GB:.2f} to {most / GB:.2f} GB", fits)

    made = AFTER_INIT[stage] * size.parameters + bucket
    resident("after init", made)
    peak("measuring", made, made, lambda: policy.own_logprobs(batch.rollout))
    # AdamW's means come into being at the end of the first.
    for number, missing in ((1, 8 * size.parameters), (2, 0)):
        work = partial(policy.update, batch, targets, policy_gradient)
        peak(f"update {number}", said.training - missing, said.training, work)
    resident("after update 2", said.sampling)


def speed(item: Item) -> None:
    """Tokens a second, of measuring and of an update."""
    shape, prompt, rows, response = (MIDDLE, 8, 4, 24) if item.small else (LARGE, 96, 8, 4000)
    each = rows // 4 * (prompt + response)
    config = settings(
        shaped(item, shape), model={"gradient_checkpointing": True}, batch={"tokens_per_microbatch": each}
    )
    policy = random_engine(config)
    batch, targets = random_batch([response] * rows, prompt, shape["vocab_size"])
    tokens = rows * (prompt + response)
    peak = flops.peak(config.model)
    size = model_shape(config.model)
    assert size is not None
    work: dict[flops.Kind, Callable[[], Any]] = {
        "measure": lambda: policy.own_logprobs(batch.rollout),
        "update": lambda: policy.update(batch, targets, policy_gradient),
    }
    for kind, once in work.items():
        once()
        seconds = min(timed(once)[0] for _ in range(2))
        item.say(kind, f"{tokens / seconds:,.0f} tokens/s", "")
        if peak is not None:
            reached = flops.flops(policy.identity["parameters"], kind, tokens) / seconds / peak
            item.say(f"{kind}, MFU", f"{reached:.2f}", f"{MFU[kind]:.2f}", fits=reached > 0.7 * MFU[kind])
    some = batch.rollout.rows(range(rows // 4))
    place = place_rows(some, distributed.device(), True)
    whole = min(timed(lambda: policy.own_logprobs(some))[0] for _ in range(3))
    bare = min(timed(lambda: policy.hidden_states(place))[0] for _ in range(3))
    share = size.vocabulary * size.width / size.parameters
    item.say(
        "head's share of measuring",
        f"{1 - bare / whole:.2f}",
        f"{share:.2f} by its operations",
        fits=item.small or 1 - bare / whole < 2 * share,
    )


def budget(item: Item) -> None:
    """Out of memory ends in a sentence, and a smaller micro-batch works after it."""
    shape, prompt, rows, response = (TINY, 4, 8, 28) if item.small else (LARGE, 96, 96, 4000)
    path = shaped(item, shape | ({} if item.small else {"num_hidden_layers": 8}))
    batch, targets = random_batch([response] * rows, prompt, shape["vocab_size"])

    def greedy(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        if item.small:  # a host's memory is not to be filled
            torch.empty(2**60)
        return policy_gradient(new, batch, targets)

    absurd = rows * (prompt + response)
    policy = random_engine(settings(path, batch={"tokens_per_microbatch": absurd}))
    said = "it fits"
    try:
        policy.update(batch, targets, greedy)
    except RlkitError as error:
        said = str(error)
    wanted = f"out of memory with batch.tokens_per_microbatch: {absurd}. Try"
    item.say(f"{absurd:,} tokens in a micro-batch", said[:160], wanted, fits=wanted in said)
    del policy
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    policy = random_engine(settings(path, batch={"tokens_per_microbatch": prompt + response}))
    few = batch.rows(range(4))
    few.n_tokens = int(few.mask.sum())
    found = policy.update(few, targets.rows(range(4)), policy_gradient)
    item.say(f"{prompt + response:,} tokens", f"loss {found['policy/loss']:.3f}", "an update", fits=bool(found))


def weights(item: Item) -> None:
    """The pass of weights that a sync takes, and that which the first check perturbs."""

    def names(policy: Engine) -> list[str]:
        return [name for name, _ in policy.weights()]

    def marks(policy: Engine) -> list[int]:
        return [int(weight.view(torch.int16).long().sum()) for _, weight in policy.weights()]

    for stage in (2, 3):
        policy = random_engine(settings(shaped(item, MIDDLE if item.small else LARGE), engine={"zero_stage": stage}))
        before = marks(policy)
        seconds, found = timed(partial(names, policy))
        said = f"{seconds:.2f} s, {len(found)} tensors"
        item.say(f"ZeRO {stage}, weights()", said, "under 1 s", fits=item.small or seconds < 1)
        held = taken()
        with policy.perturbed():
            more, during = taken() - held, marks(policy)
        after = marks(policy)
        different = sum(one != other for one, other in zip(before, during, strict=True))
        item.say(
            f"ZeRO {stage}, perturbed()",
            f"{different} of {len(found)} differ, {more / GB:.2f} GB more",
            "all, none more",
            fits=different == len(found) and more < 0.1 * GB,
        )
        item.say(f"ZeRO {stage}, undone", "equal" if before == after else "not", "equal", fits=before == after)
        del policy


def model(item: Item) -> None:
    """A real model learns, as many steps as there is time for."""
    if item.model is None:
        raise Skipped("no --model")
    if item.data:
        preset, data = "gsm8k_smollm2", [f"data.path={item.data}", "data.eval_path=null"]
    else:
        preset, data = "embedded", ["eval.problems=1", "model.dtype=auto", "optimizer.lr=1e-5"]
    small = ["batch.prompts_per_step=2", "batch.samples_per_prompt=2", "sampling.max_tokens=8"] if item.small else []
    each = 0.35 * item.seconds
    for algo in ("vimpo", "grpo"):
        own = [f"model.path={item.model}", f"out={item.folder}", f"name={algo}", "steps=1000", "eval.every=0"]
        stage = 2 if torch.cuda.is_available() else 1
        config = configs.load(preset, [*own, *data, f"engine.zero_stage={stage}", "sampler=transformers", *small], algo)
        started = time.perf_counter()
        with closing() as stack:
            loop = _loop(config, stack)
            loop.sync.prove()
            rows: list[dict[str, float]] = []
            while len(rows) < (1 if item.small else 1000) and time.perf_counter() - started < each:
                rows.append(loop._one_step()[2])
        seconds = sum(row["time/step_s"] for row in rows) / len(rows)
        gap, allowed = max(row.get("sampler/gap_mean", 0.0) for row in rows), GAP_ALLOWED[loop.config.model.dtype]
        item.say(
            algo,
            f"{len(rows)} steps of {seconds:.1f} s, reward {rows[0]['reward/mean']:.2f} to "
            f"{rows[-1]['reward/mean']:.2f}, gap {gap:.1e}",
            f"gap under {allowed:g}",
            fits=gap < allowed,
        )


def _loop(config: RunConfig, stack: ExitStack, resume: bool = False) -> Loop:
    resolved, algorithm = configs.resolve_with_algorithm(config)
    distributed.init()
    return build_loop(resolved, algorithm, stack, resume=resume)


def vllm(item: Item) -> None:
    """vLLM beside training: how long it takes to start, to leave and to come back, and how near its log-probs are."""
    if importlib.util.find_spec("vllm") is None:
        raise Skipped("vLLM is not installed")
    small = ["batch.prompts_per_step=4", "batch.samples_per_prompt=4", "sampling.max_tokens=12"] if item.small else []
    dtype = "float32" if item.small else "bfloat16"
    own = [f"model.dtype={dtype}", f"engine.zero_stage={0 if item.small else 2}", f"out={item.folder}", "name=vllm"]
    path = ["model.path=" + (item.model or "embedded:s")]
    config = configs.load("embedded", [*own, *path, *small, "steps=4", "eval.every=0", "sampler=vllm"], "grpo")
    with closing() as stack:
        seconds, loop = timed(lambda: _loop(config, stack))
        fits = item.small or seconds < 120
        item.say("start, model and vLLM", f"{seconds:.0f} s", "60 to 120 s on a GPU", fits)
        sampler = loop.gatherer.collector.sampler
        seconds, _ = timed(loop.sync.prove)  # RlkitError where it does not sample from the weights it was given
        item.say("two syncs, and the check of each", f"{seconds:.1f} s")
        rows = [loop._one_step()[2] for _ in range(3)]
        gap, allowed = max(row["sampler/gap_mean"] for row in rows), GAP_ALLOWED[dtype]
        item.say("log-probs, its and the trainer's", f"{gap:.1e} nats", f"under {allowed:g}", fits=gap < allowed)
        sync = rows[-1]["time/sync_s"]
        item.say("a sync", f"{sync:.3f} s", "under 1 s", fits=item.small or sync < 1)
        if not torch.cuda.is_available():
            return
        total = torch.cuda.mem_get_info()[1]
        awake, asleep = [], []

        def wake() -> None:
            loop.sync.version = None  # as if there were new weights
            loop.sync.newest()
            list(sampler.generate([]))

        for _ in range(2):
            for work, found in ((wake, awake), (partial(make_room, sampler, until_sync=True), asleep)):
                seconds, _ = timed(work)
                found.append((seconds, total - torch.cuda.mem_get_info()[0]))
        item.say("wake and sync", f"{awake[1][0]:.2f} s", "under 2 s", fits=awake[1][0] < 2)
        item.say("sleep", f"{asleep[1][0]:.2f} s", "under 2 s", fits=asleep[1][0] < 2)
        item.say(
            "GPU memory in use, awake and asleep",
            f"{awake[1][1] / GB:.1f}, {asleep[1][1] / GB:.1f} GB",
            "less asleep, the same each time",
            fits=asleep[1][1] < awake[1][1] and asleep[1][1] < asleep[0][1] + 0.02 * total,
        )


def tests(item: Item) -> None:
    """The tests that need a GPU."""
    if not torch.cuda.is_available():
        raise Skipped("they need a GPU")
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(root / "tests/gpu")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=dict(os.environ))
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    for line in lines:
        item.say(line, "failed", "passes", fits=False)
    item.say("tests/gpu", (done.stdout.strip() or "no output").splitlines()[-1], "pass", fits=done.returncode == 0)
