"""Whether what computes log-probs agrees: each sampler with the trainer, the trainer with plain transformers.

The trainer is what a run would train: DeepSpeed's engine, packed rows, the tiled head, the run's dtype and ZeRO stage.
It makes a real update at learning rate 0, after which its weights must be what they were.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import config as configs
from rlkit.config import ModelConfig, PluginRef, RunConfig
from rlkit.errors import RlkitError

if TYPE_CHECKING:
    from torch import Tensor

    from rlkit.engine.deepspeed import Engine
    from rlkit.interfaces.generation import Sampler
    from rlkit.interfaces.learning import Rollout

PROMPTS = [f"{a}+{b}=" for a, b in ((47, 85), (3, 9), (12, 70), (99, 1), (58, 64), (20, 20), (81, 5), (36, 27))]
"""Any model has tokens for them, those that ship with rlkit too."""
PLAIN = {"algo": "grpo", "data": {"path": "embedded:arithmetic"}, "reward": "final_answer"}
"""Of a model without a run; its data and reward are not looked at."""
TOKENS = 64
"""Longest response; shorter where the model has no room."""


@dataclass(frozen=True)
class Parity:
    """Of two that computed log-probs of the same tokens: |difference|, in nats."""

    what: str
    when: str
    mean: float
    largest: float
    tokens: int
    allowed: float
    """Of the mean: what a run allows after a sync (`rlkit.loop.sync.GAP_ALLOWED`)."""
    trouble: str = ""
    """Why there is no figure."""

    @property
    def ok(self) -> bool:
        return not self.trouble and self.mean <= self.allowed


def settings(model: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run whose trainer is asked: that of a run's folder, with its newest model; or one of a folder, a hub id or
    embedded:s. Resolved. Raises ConfigError, and RlkitError for a run without a model."""
    from rlkit.assembly.sampling import model_of
    from rlkit.records.folder import RunFolder

    here = RunFolder(Path(model))
    data = here.read_config().dump() if RunFolder.is_one(here.path) else dict(PLAIN)
    data["model"] = model_of(model).model_dump(mode="json")
    for override in overrides:
        configs.set_key(data, override)
    return configs.resolve(configs.load(data))


def samplers(urls: Sequence[str] = ()) -> list[PluginRef]:
    """Every sampler that can be had here; a server's, where addresses are given."""
    found = [PluginRef(kind="transformers")]
    if importlib.util.find_spec("vllm") is not None:
        found.append(PluginRef(kind="vllm"))
    if urls:
        found.append(PluginRef.model_validate({"kind": "vllm_server", "urls": list(urls)}))
    return [configs.resolve_ref("samplers", ref, "sampler") for ref in found]


def examine(config: RunConfig, refs: Sequence[PluginRef]) -> Iterator[Parity]:
    """One finding after the other, as they are made. `config` and `refs` are resolved."""
    from rlkit.assembly.inputs import quiet_loading
    from rlkit.engine.deepspeed import Engine
    from rlkit.engine.models import load_policy, load_tokenizer, positions
    from rlkit.loop.sync import GAP_ALLOWED

    quiet_loading(config.model)
    tokenizer = load_tokenizer(config.model)
    prompts = _prompts(config, tokenizer)
    longest = max(map(len, prompts))
    room = (positions(config.model) or 2**31) - longest
    if room < 1:
        raise RlkitError(f"{config.model.path} has no room for a response to a prompt of {longest} tokens")
    tokens = min(TOKENS, room)
    # A rate of 0 is no rate for a run, so the config knows none.
    still = config.optimizer.model_copy(update={"lr": 0.0})
    policy = Engine(load_policy(config.model), config, tokenizer, optimizer=still)
    allowed = GAP_ALLOWED[config.model.dtype]
    drawn: Rollout | None = None
    for ref in refs:
        name = f"{ref.kind} : trainer"
        try:
            with _built(ref, config.model, longest + tokens, config.seed) as sampler:
                for when in ("other weights", "the model's weights", "after an update at rate 0"):
                    if when == "other weights":
                        with policy.perturbed():
                            found, _ = _drawn_and_held(policy, sampler, prompts, tokens, config, step=0)
                    else:
                        if when.startswith("after"):
                            assert drawn is not None
                            _update(policy, drawn)
                        found, drawn = _drawn_and_held(policy, sampler, prompts, tokens, config, step=1)
                    yield Parity(name, when, *found, allowed)
        except RlkitError as error:
            yield Parity(name, "", math.nan, math.nan, 0, allowed, str(error))
    if drawn is not None:
        theirs = _plain(config, drawn)
        yield Parity(
            "trainer : transformers", "the model's weights", *_gap(policy.own_logprobs(drawn), theirs, drawn), allowed
        )


@contextmanager
def _built(ref: PluginRef, model: ModelConfig, context: int, seed: int) -> Iterator[Sampler]:
    from rlkit.generation import build_sampler, make_room

    sampler = build_sampler(ref, model, context, seed)
    try:
        make_room(sampler, until_sync=True)
        yield sampler
    finally:
        sampler.close()


def _prompts(config: RunConfig, tokenizer: Any) -> list[list[int]]:
    from rlkit.config import DataConfig
    from rlkit.data.prompts import prompt_tokens

    # A template of the run's may be for other columns.
    put = DataConfig(path="", chat=config.data.chat, chat_template_kwargs=config.data.chat_template_kwargs)
    return [prompt_tokens(prompt, put, tokenizer) for prompt in PROMPTS]


def _drawn_and_held(
    policy: Engine, sampler: Sampler, prompts: Sequence[list[int]], tokens: int, config: RunConfig, step: int
) -> tuple[tuple[float, float, int], Rollout]:
    """Give the sampler the policy's weights, draw, and hold its log-probs against the policy's."""
    from rlkit.data import Problem
    from rlkit.generation import make_room
    from rlkit.generation.assemble import unscored
    from rlkit.generation.sampled import Sampled, draws
    from rlkit.interfaces.generation import Request, SamplingParams

    policy.make_room()
    sampler.sync(policy.weights(), step)
    params = SamplingParams(max_tokens=tokens, temperature=config.sampling.temperature)
    problems = [Problem(str(at), "", prompt, "", {}) for at, prompt in enumerate(prompts)]
    wanted = draws(problems, 1, step)
    requests = [
        Request(prompt_tokens=draw.problem.tokens, seed=draw.key.seed(config.seed, "check"), params=params)
        for draw in wanted
    ]
    completions = dict(sampler.generate(requests))
    make_room(sampler, until_sync=True)
    rollout = unscored([Sampled(draw.key, draw.problem, completions[at], "") for at, draw in enumerate(wanted)])
    return _gap(policy.own_logprobs(rollout), rollout.sampler_logprobs, rollout), rollout


def _gap(ours: Tensor, theirs: Tensor, rollout: Rollout) -> tuple[float, float, int]:
    differences = (ours - theirs).abs()[rollout.mask]
    return float(differences.mean()), float(differences.max()), len(differences)


def _update(policy: Engine, rollout: Rollout) -> None:
    """One that changes nothing: its learning rate is 0."""
    from rlkit.interfaces.learning import Batch, Metrics, Targets, TokenStats

    def likelihood(new: TokenStats, batch: Batch, targets: Targets) -> tuple[Tensor, Metrics]:
        return -(new.get("logprobs") * batch.mask).sum() / batch.n_tokens, {}

    batch = Batch(rollout=rollout, n_sequences=int(rollout.valid.sum()), n_tokens=int(rollout.mask.sum()))
    policy.update(batch, Targets(), likelihood)


def _plain(config: RunConfig, rollout: Rollout) -> Tensor:
    """[B, T] log-probs of the rollout's tokens by transformers' own model, one sequence after the other."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlkit.embedded import resolve
    from rlkit.engine import distributed

    model = AutoModelForCausalLM.from_pretrained(
        resolve(config.model.path),
        dtype=getattr(torch, config.model.dtype),
        trust_remote_code=config.model.trust_remote_code,
    )
    model = model.eval().to(distributed.device())
    found = torch.zeros_like(rollout.sampler_logprobs)
    for row, (prompt, length) in enumerate(zip(rollout.prompt_tokens, rollout.length.tolist(), strict=True)):
        tokens = torch.cat([prompt, rollout.tokens[row, :length]]).long().to(distributed.device())
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, len(prompt) - 1 : -1].float() / config.sampling.temperature
        own = logits.log_softmax(-1).gather(-1, tokens[len(prompt) :, None])[:, 0]
        found[row, :length] = own.cpu()
    return found


def line(finding: Parity) -> str:
    """A row of the table, under `heading`."""
    sign = "ok" if finding.ok else "FAIL"
    if finding.trouble:
        return f"{sign:<5} {finding.what:<26} {finding.trouble}"
    return (
        f"{sign:<5} {finding.what:<26} {finding.when:<26} {finding.mean:9.2e} {finding.largest:9.2e} "
        f"{finding.allowed:9.0e} {finding.tokens:7}"
    )


def heading(config: RunConfig) -> str:
    columns = f"{'|difference|, nats':<26} {'with':<26} {'mean':>9} {'largest':>9} {'allowed':>9} {'tokens':>7}"
    return f"{config.model.path}, {config.model.dtype}: log-probs of the same tokens\n\n{'':<5} {columns}"


def verdict(findings: Sequence[Parity]) -> str:
    apart = dict.fromkeys(finding.what for finding in findings if not finding.ok and not finding.trouble)
    unseen = dict.fromkeys(finding.what for finding in findings if finding.trouble)
    said = []
    if apart:
        said.append(
            f"{', '.join(apart)}: no run should learn from such samples. What to try: docs/troubleshooting.md, "
            "'The gap is large'"
        )
    if unseen:
        said.append(f"{', '.join(unseen)}: could not be examined")
    return "\n" + ("\n".join(said) or "They agree: what is sampled is what learns.")
