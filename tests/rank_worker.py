"""Engines at work for the tests: in this process, or in a long-lived pair of them that passes as two ranks.

`run(job, ...)` calls a function of this module here, with one rank; `TwoRanks.run(job, ...)` calls it in both
processes of the pair and gives both results.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.config import RunConfig
from rlkit.errors import RlkitError
from rlkit.interfaces.learning import Batch, Metrics, Rollout, Targets, TokenStats
from rlkit.interfaces.names import Stat
from rlkit.interfaces.rewards import SampleKey

VOCABULARY = 2048
"""Times the width of 64: more than the 1e5 numbers from which ZeRO-3 cuts a weight; so are the MLPs' 1600 times 64."""


def save_model(folder: Path, seed: int, *, tied: bool, layers: int = 2) -> Path:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=1600,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        attention_dropout=0.3,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def settings(path: Path, **changes: Any) -> RunConfig:
    """A run's config; `changes` are sections' fields by section."""
    data: dict[str, Any] = {
        "algo": "vimpo",
        "model": {"path": str(path), "dtype": "float32"},
        "data": {"path": "unused.jsonl"},
        "reward": "exact",
        "batch": {"tokens_per_microbatch": 60},
        "optimizer": {"lr": 1e-3, "eps": 1e-5, "warmup_updates": 2, "clip_norm": 0.5},
        "sampling": {"temperature": 0.8},
    }
    for section, fields in changes.items():
        data[section] = data.get(section, {}) | fields
    return RunConfig.model_validate(data)


def random_batch(seed: int, rows: int = 10) -> tuple[Batch, Targets]:
    """An optimizer batch with prompts and responses of all lengths, tool tokens, and invalid samples."""
    g = torch.Generator().manual_seed(seed)
    width = 12
    length = torch.randint(3, width + 1, (rows,), generator=g)
    valid = torch.rand(rows, generator=g) < 0.75
    valid[:2] = torch.tensor([True, False])
    exists = torch.arange(width) < length[:, None]
    mask = exists & valid[:, None] & (torch.rand(rows, width, generator=g) < 0.8)
    mask[:, 0] = valid
    reward = torch.rand(rows, generator=g)
    rollout = Rollout(
        keys=[SampleKey(f"p{row // 2}", 1, 0, row % 2) for row in range(rows)],
        prompt_tokens=[
            torch.randint(0, VOCABULARY, (int(torch.randint(1, 9, (1,), generator=g)),), generator=g)
            for _ in range(rows)
        ],
        tokens=torch.randint(0, VOCABULARY, (rows, width), generator=g) * exists,
        length=length,
        mask=mask,
        valid=valid,
        group=torch.arange(rows) // 2,
        reward=reward,
        clean_reward=reward.clone(),
        sampler_logprobs=-8 * torch.rand(rows, width, generator=g) * mask,
        version=torch.zeros(rows, dtype=torch.long),
        truncated=torch.zeros(rows, dtype=torch.bool),
    )
    batch = Batch(rollout=rollout, n_sequences=int(valid.sum()), n_tokens=int(mask.sum()))
    targets = Targets(advantages=torch.randn(rows, width, generator=g), scores=torch.randn(rows, generator=g))
    return batch, targets


STATS: frozenset[Stat] = frozenset({"logprobs", "token_kl", "entropy"})


def policy_loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
    """A term of each kind: a ratio, an exact KL, an entropy, and a square of a whole sequence's sum."""
    logprobs, mask = new.get("logprobs"), batch.mask.float()
    ratio = (logprobs - batch.old.get("logprobs")).exp()
    tokens = -targets.get("advantages") * ratio + 0.3 * new.get("token_kl") - 0.1 * new.get("entropy")
    residual = (0.1 * logprobs * mask).sum(1) - targets.get("scores")
    squares = residual.square() * batch.rollout.valid
    loss = (tokens * mask).sum() / batch.n_tokens + squares.sum() / batch.n_sequences
    kl = (new.get("token_kl").detach() * mask).sum()
    return loss, {"policy/kl": (kl, mask.sum())}


def logprob_loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
    tokens = -targets.get("advantages") * new.get("logprobs") * batch.mask
    return tokens.sum() / batch.n_tokens, {}


def value_loss(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
    error = (new.get("values") - targets.get("advantages")) * batch.mask
    return error.square().sum() / batch.n_tokens, {}


def broken_loss(kind: str, new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
    """A loss that is not finite for one sample, or whose gradient is not."""
    loss, metrics = logprob_loss(new, batch, targets)
    if kind == "loss":
        here = torch.tensor([key == SampleKey("p0", 1, 0, 0) for key in batch.rollout.keys])
        return loss + torch.where(here, torch.inf, 0.0).sum(), metrics
    zero = (new.get("logprobs") * 0.0).sum()
    return loss + zero.abs().sqrt(), metrics


def engine_of(config: RunConfig, *, frozen: bool = False, critic: bool = False, whole: bool = False) -> Any:
    """whole: loaded so, and cut by the engine, where ZeRO-3 is to cut it."""
    from rlkit.engine import distributed
    from rlkit.engine.deepspeed import Engine
    from rlkit.engine.models import load_critic, load_policy
    from rlkit.engine.settings import cut_settings

    distributed.init()
    cut = None if whole else cut_settings(config)
    module = load_critic(config.model, cut) if critic else load_policy(config.model, cut=cut)
    return Engine(module, config, optimizer=None if frozen else config.optimizer, total_updates=5)


def keep_gradients(engine: Any) -> list[dict[str, Tensor]]:
    """Whole gradients as they stand before each step from now on."""
    from deepspeed.utils import safe_get_full_grad

    kept: list[dict[str, Tensor]] = []
    step = engine._step

    def keep_and_step(bad: Any) -> float:
        named = engine._module.named_parameters()
        kept.append({n: safe_get_full_grad(p).float().cpu().clone() for n, p in named if p.requires_grad})
        return float(step(bad))

    engine._step = keep_and_step
    return kept


def learn(config: RunConfig, reference: Path | None, seed: int, *, updates: int = 3, rows: int = 10) -> dict[str, Any]:
    """Statistics, gradients, metrics and weights of a policy that makes some updates. No reference: LoRA's."""
    from rlkit.engine.reference import AdaptersOff, FrozenModel, Reference

    policy = engine_of(config)
    frozen: Reference = AdaptersOff(policy)
    if reference is not None:
        model = config.model.model_copy(update={"path": str(reference)})
        frozen = FrozenModel(engine_of(config.model_copy(update={"model": model}), frozen=True))
    gradients = keep_gradients(policy)
    batch, targets = random_batch(seed, rows)
    want: frozenset[Stat] = STATS | {"ref_logprobs"}
    before = policy.token_stats(batch.rollout, want, frozen)
    alone = policy.token_stats(batch.rollout, frozenset({"ref_logprobs"}), frozen)
    metrics = [policy.update(batch, targets, policy_loss, STATS, frozen) for _ in range(updates)]
    after = policy.token_stats(batch.rollout, frozenset({"logprobs", "ref_logprobs", "token_kl"}), frozen)
    return {
        "before": {name: before.get(name) for name in want},
        "ref_alone": alone.get("ref_logprobs"),
        "after": {name: after.get(name) for name in ("logprobs", "ref_logprobs", "token_kl")},
        "gradients": gradients,
        "metrics": metrics,
        "weights": dict(policy.weights()),
    }


def learn_values(config: RunConfig, seed: int) -> dict[str, Any]:
    critic = engine_of(config, critic=True)
    batch, targets = random_batch(seed)
    want: frozenset[Stat] = frozenset({"values"})
    metrics = [critic.update(batch, targets, value_loss, want) for _ in range(3)]
    return {"metrics": metrics, "values": critic.token_stats(batch.rollout, want).get("values")}


def stumble(config: RunConfig, seed: int, kind: str) -> dict[str, Any]:
    """A step that must not be made, then one that is. Kind "nothing": the second alone."""
    policy = engine_of(config)
    batch, targets = random_batch(seed)
    said = "nothing"
    if kind != "nothing":
        try:
            policy.update(batch, targets, partial(broken_loss, kind))
        except RlkitError as error:
            said = str(error)
    policy.update(batch, targets, logprob_loss)
    return {"said": said, "updates": policy.updates, "weights": dict(policy.weights())}


def move(config: RunConfig, seed: int, spread: float) -> dict[str, Any]:
    """A learner's metrics of one update on a rollout whose old log-probs are the policy's, moved by up to `spread`."""
    from rlkit.interfaces.learning import Algorithm
    from rlkit.loop.learner import Learner
    from rlkit.loop.state import RunState

    policy = engine_of(config)
    batch, targets = random_batch(seed, rows=24)
    algorithm = Algorithm(advantage=lambda batch, state: targets, policy_loss=logprob_loss)
    learner = Learner(config, algorithm, policy, None, None, RunState())
    now = policy.token_stats(batch.rollout, frozenset({"logprobs"})).get("logprobs")
    g = torch.Generator().manual_seed(seed)
    old = now + spread * (2 * torch.rand(now.shape, generator=g) - 1) * batch.rollout.mask
    metrics, _ = learner.learn(batch.rollout, TokenStats(logprobs=old), 1)
    return {"metrics": metrics, "now": now, "old": old, "mask": batch.rollout.mask}


def whiten(config: RunConfig, reference: Path, seed: int) -> dict[str, Any]:
    """What VIMPO remembers of three steps of updates, whose advantages it whitens by those before."""
    from rlkit import registry
    from rlkit.engine.reference import FrozenModel
    from rlkit.loop.learner import Learner
    from rlkit.loop.state import RunState

    policy = engine_of(config)
    model = config.model.model_copy(update={"path": str(reference)})
    frozen = FrozenModel(engine_of(config.model_copy(update={"model": model}), frozen=True))
    options = {"whiten": "running", "beta": 0.05, "actor_coef": 0.02}
    learner = Learner(config, registry.build("algorithms", "vimpo", options), policy, frozen, None, RunState())
    metrics = []
    for step in (1, 2, 3):
        rollout = random_batch(seed + step, rows=12)[0].rollout
        metrics.append(learner.learn(rollout, learner.measure(rollout, step), step)[0])
    return {"state": learner.state.algorithm, "metrics": metrics, "weights": dict(policy.weights())}


def reuse(
    config: RunConfig, reference: Path, seed: int, algo: tuple[str, dict[str, Any]], keeps: bool
) -> dict[str, Any]:
    """Three steps of a learner that keeps the reference's hidden states within each, or does not; and how often the
    reference was asked for some. In the last, one row counts: another rank has none."""
    from rlkit import registry
    from rlkit.config import FrozenReference
    from rlkit.engine.reference import reference_of
    from rlkit.loop.learner import Learner
    from rlkit.loop.state import RunState

    policy = engine_of(config)
    model = config.model.model_copy(update={"path": str(reference)})
    config = config.model_copy(update={"reference": config.reference or FrozenReference()})
    other = reference_of(policy, config, lambda: engine_of(config.model_copy(update={"model": model}), frozen=True))
    asked, ask = [], other.hidden_states

    def watched(place: Any) -> Tensor:
        asked.append(place)
        return ask(place)

    other.hidden_states = watched  # type: ignore[method-assign]
    learner = Learner(config, registry.build("algorithms", *algo), policy, other, None, RunState())
    with pytest.MonkeyPatch.context() as patch:
        if not keeps:
            patch.setattr("rlkit.engine.passes.KEPT_BYTES", 0)
        metrics = []
        for step in (1, 2, 3):
            rollout = random_batch(seed + step, rows=12)[0].rollout
            if step == 3:
                rollout.valid[1:] = rollout.mask[1:] = False
            old = learner.measure(rollout, step)
            # What the sampler said is near enough for a correction to leave some.
            rollout.sampler_logprobs = old.get("logprobs") + rollout.sampler_logprobs / 8 * rollout.mask
            metrics.append(learner.learn(rollout, old, step)[0])
    return {"asked": len(asked), "metrics": metrics, "weights": dict(policy.weights())}


def save_and_go_on(config: RunConfig, seed: int, folder: Path) -> dict[str, Any]:
    """Two updates, a checkpoint, two more; and the same from the checkpoint."""
    from rlkit.engine import checkpoint

    batch, targets = random_batch(seed)
    straight = engine_of(config)
    for _ in range(2):
        straight.update(batch, targets, logprob_loss)
    path = checkpoint.save(folder, 2, {"policy": straight}, {"step": 2, "state": {"x": torch.ones(2)}}, keep=1)
    saved = dict(straight.weights())
    last = [straight.update(batch, targets, logprob_loss) for _ in range(2)]

    resumed = engine_of(config)
    state = checkpoint.load(path, {"policy": resumed})
    loaded = dict(resumed.weights())
    again = [resumed.update(batch, targets, logprob_loss) for _ in range(2)]
    return {
        "state": state,
        "saved": saved,
        "loaded": loaded,
        "straight": dict(straight.weights()),
        "resumed": dict(resumed.weights()),
        "metrics": [last, again],
    }


def full_disk_and_rot(config: RunConfig, folder: Path) -> dict[str, Any]:
    """A checkpoint; one that rank 1 has no room for; and which is whole, when one that rank 1 wrote has rotted."""
    from rlkit.engine import checkpoint, distributed

    engines = {"policy": engine_of(config)}
    path = checkpoint.save(folder, 1, engines, {}, keep=2)
    files = [name for name in checkpoint.read_manifest(path).files if name.endswith(".pt")]
    write = torch.save

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    failed = ""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "save", full if distributed.rank() == 1 else write)
        try:
            checkpoint.save(folder, 2, engines, {}, keep=2)
        except RlkitError as error:
            failed = str(error)
    left = [each.name for each in folder.iterdir()]
    distributed.barrier()
    later = checkpoint.save(folder, 2, engines, {}, keep=2)
    if distributed.main_rank():
        shard = later / "policy" / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
        shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    distributed.barrier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sound = checkpoint.newest_sound(folder)
    return {"failed": failed, "left": left, "files": files, "sound": sound and sound.name}


def load(config: RunConfig, seed: int) -> dict[str, Any]:
    """A policy's and a critic's weights as loaded, and what they say after two updates, where they are cut while they
    are loaded, and where it is done after that; and how many numbers a rank holds once the module is there."""
    from rlkit.engine.models import load_policy
    from rlkit.engine.settings import cut_settings

    batch, targets = random_batch(seed)
    found: dict[str, Any] = {}
    for whole in (True, False):
        policy, critic = (engine_of(config, whole=whole, critic=critic) for critic in (False, True))
        found["loaded", whole] = dict(policy.weights())
        found["known", whole] = policy._module.form, policy._module.packs, policy.width, policy.identity
        found["metrics", whole] = [
            policy.update(batch, targets, logprob_loss)
            | critic.update(batch, targets, value_loss, frozenset({"values"}))
            for _ in range(2)
        ]
        found["learnt", whole] = dict(policy.weights())
        found["values", whole] = critic.token_stats(batch.rollout, frozenset({"values"})).get("values")
        module = load_policy(config.model, cut=None if whole else cut_settings(config))
        found["held", whole] = sum(p.numel() for p in module.parameters())
        found["buffers", whole] = dict(module.named_buffers())
        found["frozen", whole] = engine_of(config, whole=whole, frozen=True).own_logprobs(batch.rollout)
    return found


def make_room(config: RunConfig, seed: int, folder: Path) -> dict[str, Any]:
    """Two updates of a policy, between which its state leaves, and a checkpoint that is written while it is away and
    gone on from by another; where it was; and the same of a policy whose state stays."""
    from rlkit.engine import checkpoint

    batch, targets = random_batch(seed)
    found: dict[str, Any] = {}
    for leaves in (False, True):
        engine = config.engine.model_copy(update={"offload_states": leaves})
        policy = engine_of(config.model_copy(update={"engine": engine}))
        policy.make_room()
        for update in range(2):
            policy.update(batch, targets, logprob_loss)
            before = storages(policy)
            policy.make_room()
            policy.make_room()
            found["left", leaves, update] = len(before), len(before & storages(policy))
            if update == 0:
                path = checkpoint.save(folder / str(leaves), 1, {"policy": policy}, {}, keep=1)
        found["weights", leaves] = dict(policy.weights())
        again = engine_of(config.model_copy(update={"engine": engine}))
        again.make_room()
        checkpoint.load(path, {"policy": again})
        again.update(batch, targets, logprob_loss)
        found["resumed", leaves] = dict(again.weights())
    return found


def storages(policy: Any) -> set[int]:
    """Where the optimizer's state lies."""
    zero = policy._engine.optimizer
    flat = zero.fp32_partitioned_groups_flat if policy._stage == 3 else zero.single_partition_of_fp32_groups
    held = [tensor for state in zero.optimizer.state.values() for tensor in state.values() if torch.is_tensor(tensor)]
    return {tensor.data_ptr() for tensor in [*flat, *held]}


def held(config: RunConfig, seed: int, folder: Path) -> dict[str, float]:
    """Bytes of the tensors that there are because of a policy: between its updates, at the peak of the second of two,
    and in its checkpoint."""
    from rlkit.engine.activations import Alive
    from rlkit.engine.deepspeed import Engine
    from rlkit.engine.models import load_policy

    batch, targets = random_batch(seed, rows=30)
    with Alive() as alive:
        module = load_policy(config.model)
        alive.watch(*module.parameters())
        policy = Engine(module, config, optimizer=config.optimizer, total_updates=5)
        policy.update(batch, targets, logprob_loss)
        gc.collect()
        stays, alive.peak = alive.now, alive.now
        policy.update(batch, targets, logprob_loss)
    policy.save(folder)
    return {
        "stays": stays,
        "peak": alive.peak,
        "saved": sum(file.stat().st_size for file in folder.rglob("*.pt")),
        "trained": sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters() if p.requires_grad),
    }


def follow(config: RunConfig, seed: int, folder: Path) -> dict[str, Any]:
    """A reference behind a policy that makes two updates on each of four rollouts: what it says of some responses
    before them, while they go on, and after; and what another says that begins from its checkpoint after two.

    `held` are the policy's whole weights at the start and after each update; `adapters` this rank's trained tensors.
    """
    from rlkit.engine import checkpoint
    from rlkit.engine.reference import reference_of

    batch, targets = random_batch(seed)

    def begin() -> tuple[Any, Any]:
        policy = engine_of(config)
        return policy, reference_of(policy, config, lambda: engine_of(config, frozen=True))

    def learn(policy: Any, reference: Any) -> None:
        for _ in range(2):
            policy.update(batch, targets, logprob_loss)
            reference.after_update()
            found["held"].append({name: weight.clone() for name, weight in policy.weights()})
            found["adapters"].append([tensor.clone() for tensor in policy.local_weights(trained=True)])
        found["during"].append(reference.logprobs(batch.rollout))
        found["own"].append(policy.own_logprobs(batch.rollout))
        reference.after_rollout()
        found["after"].append(reference.logprobs(batch.rollout))

    policy, reference = begin()
    found: dict[str, Any] = {"rollout": batch.rollout, "after": [], "during": [], "own": []}
    found["held"] = [dict(policy.weights())]
    found["adapters"] = [[tensor.clone() for tensor in policy.local_weights(trained=True)]]
    found["before"] = reference.logprobs(batch.rollout)
    for rollout in range(4):
        learn(policy, reference)
        if rollout == 1:
            checkpoint.save(folder, 2, {"policy": policy}, {}, keep=1, reference=reference)
    straight, found = found, {"after": [], "during": [], "own": [], "held": [], "adapters": []}
    resumed, again = begin()
    checkpoint.load(folder / "step-00000002", {"policy": resumed}, again)
    for _ in range(2):
        learn(resumed, again)
    return straight | {"resumed": found}


def go_on(
    config: RunConfig, seed: int, folder: Path, *, updates: int = 2, resume: bool = False, critic: bool = False
) -> dict[str, Any]:
    """Some updates and a checkpoint, or what was loaded of that one; then two updates more.

    `states`: of each engine, by parameter, the weight in float32 and AdamW's moments, as DeepSpeed's own functions
    gather them; `reference`: what a moving one keeps, flattened.
    """
    from rlkit.engine import checkpoint, distributed
    from rlkit.engine.reference import reference_of

    batch, targets = random_batch(seed)
    engines = {"policy": engine_of(config)} | ({"critic": engine_of(config, critic=True)} if critic else {})
    policy = engines["policy"]
    reference = config.reference and reference_of(policy, config, lambda: engine_of(config, frozen=True))

    def learn() -> list[float]:
        said = policy.update(batch, targets, logprob_loss)
        if critic:
            said |= engines["critic"].update(batch, targets, value_loss, frozenset({"values"}))
        if reference:
            reference.after_update()
            reference.after_rollout()
        return [said[name] for name in sorted(said)]

    warned: list[str] = []
    if resume:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            checkpoint.load(folder / "step-00000002", engines, reference)
        warned = [str(each.message) for each in caught if each.category is UserWarning]
    else:
        for _ in range(updates):
            learn()
        checkpoint.save(folder, 2, engines, {}, keep=1, reference=reference)
    kept = folder / f"kept-{resume}-{distributed.world_size()}-{config.engine.zero_stage}"
    if reference:
        reference.save(kept)
        distributed.barrier()
    found = {
        "warned": warned,
        "updates": policy.updates,
        "states": {name: states_of(engine) for name, engine in engines.items()},
        "weights": dict(policy.weights()),
        "reference": [
            torch.cat([piece.flatten() for piece in pieces])
            for pieces in zip(*(torch.load(file)["weights"] for file in sorted(kept.glob("*"))), strict=True)
        ],
    }
    return found | {"metrics": [learn() for _ in range(2)], "after": dict(policy.weights())}


def states_of(engine: Any) -> dict[str, dict[str, Tensor]]:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    named = [(name, p) for name, p in engine._module.named_parameters() if p.requires_grad]
    keys = ("exp_avg", "exp_avg_sq")
    if engine._stage == 0:
        states = engine._engine.optimizer.state
        return {
            n: {"weight": p.detach().clone()} | {k: states[p][k].clone() for k in keys if states[p]} for n, p in named
        }
    stepped = any(engine._engine.optimizer.optimizer.state.values())
    if stepped and engine._stage < 3:
        engine._engine.optimizer._lazy_init_hp_params_optimizer_state()
    return {
        name: {"weight": safe_get_full_fp32_param(p).clone()}
        | {key: safe_get_full_optimizer_state(p, key).clone() for key in keys if stepped}
        for name, p in named
    }


def share(here: list[Path], folder: Path) -> Path | str:
    """The folder that ranks agree on which stand each in its own, or what is wrong with it."""
    from rlkit.engine import distributed, one_folder

    before = Path.cwd()
    os.chdir(here[distributed.rank()])
    try:
        return one_folder.one_folder(folder, patience_s=0.5)
    except RlkitError as error:
        return str(error)
    finally:
        os.chdir(before)


def take_turns(hosts: list[str], file: Path) -> None:
    """Ranks that are taken to run on these machines write their number into a file, those that have a turn."""
    from rlkit.engine import distributed

    def write() -> None:
        time.sleep(0.2)
        with file.open("a") as opened:
            opened.write(f"{distributed.rank()} ")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "_hosts", hosts)
        distributed.first_ranks_first(write)


def wait_in_vain() -> tuple[str, int]:
    """Rank 0 waits for rank 1, which does not come: what it says, and its exit code."""
    import datetime

    from rlkit.engine import distributed

    group = torch.distributed.new_group(timeout=datetime.timedelta(seconds=0.5))
    if distributed.rank():
        return "", 0
    try:
        with distributed.losing_ranks("go on with: this"):
            torch.distributed.all_reduce(torch.ones(1), group=group)
    except RlkitError as error:
        return str(error), error.exit_code
    return "it came", 0


def miss_one(what: str) -> str:
    """Rank 0 looks for the others at the start, and rank 1 is not there."""
    from rlkit.engine import distributed

    if distributed.rank():
        return ""
    distributed._store.delete_key(distributed._SAID)  # which another job may have left
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "JOINING_S", 0.3)
        try:
            distributed._everyone(what, "here")
        except RlkitError as error:
            return str(error)
    return "it was there"


def fail(errors: list[Exception]) -> tuple[int, str]:
    """Exit code and output of a command that raises on each rank what is its own, one rank after the other."""
    from click.testing import CliRunner

    from rlkit import cli
    from rlkit.engine import distributed

    group = cli._Group("rlkit", params=list(cli.main.params), callback=lambda debug: None)

    @group.command()
    def fails() -> None:
        raise errors[distributed.rank()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "leave", sys.exit)  # which would end this process
        if distributed.rank():
            distributed.barrier()
        result = CliRunner().invoke(group, ["fails"])
        if distributed.main_rank():
            distributed.barrier()
    return result.exit_code, result.output


def two_conversations(count: int) -> dict[str, Any]:
    """What two threads of a rank hear from the other one, each in a group of its own, while both speak at once."""
    import threading

    from rlkit.engine import distributed

    rank, heard = distributed.rank(), []
    group = distributed.another_group(5)

    def speak() -> None:
        with distributed.speaking_through(group):
            for number in range(count):
                heard.append(distributed.gather_objects(("thread", rank, number)))
                heard.append(distributed.sum_ranks(torch.tensor([number, rank + 10])).tolist())
            distributed.barrier()

    thread = threading.Thread(target=speak)
    # One rank begins with the one, one with the other: in one group they would meet.
    if rank:
        thread.start()
    said = []
    for number in range(count):
        if number == count // 2 and not rank:
            thread.start()
        said.append(distributed.gather_objects(("main", rank, number)))
        said.append(distributed.any_rank(rank == number % 2))
    thread.join()
    return {"main": said, "thread": heard}


def run(job: str, *args: Any, **kwargs: Any) -> Any:
    torch.set_num_threads(1)
    return globals()[job](*args, **kwargs)


class TwoRanks:
    """Two processes that take jobs until they are closed."""

    def __init__(self, folder: Path) -> None:
        import socket

        self.folder = folder
        self.jobs = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        self.processes = []
        for rank in range(2):
            with (folder / f"rank{rank}.log").open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, __file__, str(folder)],
                        env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                        text=True,
                    )
                )

    def run(self, job: str, *args: Any, **kwargs: Any) -> list[Any]:
        self.jobs += 1
        (self.folder / f"job{self.jobs}").write_bytes(pickle.dumps((job, args, kwargs)))
        for process in self.processes:
            assert process.stdin is not None
            print(self.jobs, file=process.stdin, flush=True)
        results = [self.folder / f"result{self.jobs}-{rank}" for rank in range(2)]
        limit = time.monotonic() + 120
        while not all(result.exists() for result in results):
            ended = any(process.poll() is not None for process in self.processes)
            if ended or time.monotonic() > limit:
                logs = "\n".join((self.folder / f"rank{rank}.log").read_text()[-3000:] for rank in range(2))
                self.close()
                pytest.fail(f"the two ranks did not finish {job}:\n{logs}")
            time.sleep(0.01)
        return [torch.load(result, weights_only=False) for result in results]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRanks]:
    ranks = TwoRanks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "tied": save_model(folder / "tied", 0, tied=True),
        "untied": save_model(folder / "untied", 1, tied=False),
        "reference": save_model(folder / "reference", 2, tied=True),
        "deeper": save_model(folder / "deeper", 3, tied=True, layers=3),
    }


def main(folder: Path) -> None:
    from rlkit.engine import distributed

    distributed.init()
    for line in sys.stdin:
        number = int(line)
        job, args, kwargs = pickle.loads((folder / f"job{number}").read_bytes())
        try:
            result = run(job, *args, **kwargs)
        except BaseException:
            traceback.print_exc()
            raise
        part = folder / f"part{number}-{distributed.rank()}"
        torch.save(result, part)
        part.rename(folder / f"result{number}-{distributed.rank()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
