"""The engines of a run, loaded: the policy, what it is compared with, and a critic where the algorithm trains one."""

from __future__ import annotations

import warnings
from typing import Any

from rlkit.config import RunConfig
from rlkit.engine import distributed
from rlkit.engine.deepspeed import Engine
from rlkit.engine.export import check_export
from rlkit.engine.models import load_critic, load_policy
from rlkit.engine.modules import Policy
from rlkit.engine.reference import Reference, reference_of
from rlkit.engine.settings import cut_settings
from rlkit.interfaces.learning import Algorithm


def load_engines(
    config: RunConfig, algorithm: Algorithm, tokenizer: Any
) -> tuple[Engine, Reference | None, Engine | None]:
    """Policy, reference and critic. `config` is resolved; raises as `load_policy`, and ConfigError for a policy that
    could not be written as a model again."""
    updates = config.steps * config.updates_per_step
    learns = max(1, updates - algorithm.critic_warmup_steps * config.updates_per_step)
    cut = cut_settings(config)
    module = load_policy(config.model, cut=cut)
    dropped = check_export(module, tokenizer)
    policy = Engine(module, config, tokenizer, optimizer=config.optimizer, total_updates=learns)
    if distributed.main_rank():
        for said in _does_without(module):
            warnings.warn(f"{config.model.path}: {said}", stacklevel=2)
    if dropped and distributed.main_rank():
        warnings.warn(
            f"{config.model.path}: its generation settings hold what transformers refuses to save: "
            f"{', '.join(dropped)}. The models of this run are written without; training does not read it",
            stacklevel=2,
        )
    reference = critic = None
    if algorithm.needs.reference:
        reference = reference_of(
            policy, config, lambda: Engine(load_policy(config.model, module, cut), config, tokenizer)
        )
    if algorithm.value_loss is not None:
        model = config.model.model_copy(update={"path": config.critic.path or config.model.path})
        critic = Engine(
            load_critic(model, cut), config, tokenizer, optimizer=config.critic.optimizer, total_updates=updates
        )
    return policy, reference, critic


def _does_without(policy: Policy) -> list[str]:
    """What costs more with this model than with others, in sentences."""
    found, name = [], type(policy.lm).__name__
    if policy.form is None:
        found.append(
            f"{name} does more than a scale and a soft cap to get its logits, and rlkit does not know what. So the "
            "model makes them itself, and those of a whole micro-batch are in memory at once: lower "
            "batch.tokens_per_microbatch where there is not enough. A reference's would have to be kept from pass to "
            "pass: it may pass more often than the plan says"
        )
    if not policy.packs:
        found.append(
            f"{name} does not keep sequences apart that stand in one row, so they are padded to the longest of their "
            "micro-batch: training takes more time and memory where lengths differ"
        )
    return found
