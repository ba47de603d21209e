"""Settings held against the plugins they name, and against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from rlkit import registry, secrets
from rlkit.blame import Blame, shown
from rlkit.config.meant import instead_in, instead_of_option
from rlkit.config.run import RunConfig
from rlkit.config.sections import CorrectionConfig, PluginRef, Reference, RefillConfig, RewardRef
from rlkit.errors import ConfigError, PluginLoadError, SettingsError
from rlkit.interfaces.declarations import advantage_declaration, loss_declaration, reward_declaration
from rlkit.mistakes import explain

if TYPE_CHECKING:
    from rlkit.interfaces.learning import Algorithm

IN_PROCESS = ("auto", "transformers", "vllm")
"""Of rlkit's own samplers those that work in the training process. Of a plugin's it is known once it is made."""


def resolve(config: RunConfig) -> RunConfig:
    """The config with its plugins loaded, their options' defaults filled in, and checked that all fits together.

    Raises ConfigError. Loads no model and no data.
    """
    return resolve_with_algorithm(config)[0]


def resolve_with_algorithm(config: RunConfig) -> tuple[RunConfig, Algorithm]:
    """`resolve`, and the algorithm that was built to check the config against it."""
    try:
        return _resolved(config)
    except SettingsError as error:
        raise config.places.point(error) from error


def _resolved(config: RunConfig) -> tuple[RunConfig, Algorithm]:
    config = _checked(config)
    secrets.check(config.dump())
    # What `auto` stands for must go with the rest too.
    config = _checked(config.model_copy(update={"model": config.model.settled()}))
    # Whole paths, so that the run can be resumed from another folder.
    places = {"path": _whole(config.data.path), "eval_path": _whole(config.data.eval_path)}
    plugins = [str(Path(plugin).resolve()) if plugin.endswith(".py") else plugin for plugin in config.plugins]
    registry.load(plugins)
    changes: dict[str, Any] = {
        "plugins": plugins,
        "data": config.data.model_copy(update=places),
        "model": config.model.model_copy(update={"path": _whole(config.model.path)}),
        "algo": resolve_ref("algorithms", config.algo, "algo"),
        "reward": resolve_rewards(config.reward),
        "noise": _resolved_list("noise", config.noise, "noise"),
        "trackers": _resolved_list("trackers", config.trackers, "trackers"),
    }
    if config.replay is not None:
        changes["replay"] = config.replay.model_copy(update={"run": config.replay.run.resolve()})
    if config.environment is not None:
        changes["environment"] = resolve_ref("environments", config.environment, "environment")
    if config.advantage is not None:
        changes["advantage"] = resolve_ref("advantages", config.advantage, "advantage")
    if config.loss is not None:
        changes["loss"] = resolve_ref("losses", config.loss, "loss")
    if config.sampler.kind == "auto":
        if config.sampler.options:
            raise ConfigError("sampler: 'auto' takes no options; name the sampler (vllm or transformers)")
    else:
        changes["sampler"] = resolve_ref("samplers", config.sampler, "sampler")
    resolved = config.model_copy(update=changes)
    algorithm = build_algorithm(resolved)
    if resolved.batch.refill is None:
        batch = resolved.batch.model_copy(update={"refill": RefillConfig(limit=algorithm.refill)})
        resolved = resolved.model_copy(update={"batch": batch})
    if resolved.reference is None:
        resolved = resolved.model_copy(update={"reference": _own_reference(algorithm, resolved.algo.kind)})
    if algorithm.compares_groups and resolved.batch.samples_per_prompt < 2:
        raise ConfigError(
            f"batch.samples_per_prompt is {resolved.batch.samples_per_prompt}, but {resolved.algo.kind} compares the "
            "samples of a prompt with each other: set it to 2 or more (8 is common)"
        )
    for ref in resolved.reward:
        _check_reward(ref.kind)
    needs = algorithm.needs
    assert resolved.reference is not None
    if needs.reference and resolved.reference.kind == "none":
        raise ConfigError(
            f"reference: none, but {resolved.algo.kind} compares the policy with one: leave it out (frozen), or choose "
            "an algorithm or options that need none"
        )
    if not needs.reference and resolved.reference.kind in ("average", "copy"):
        raise ConfigError(
            f"reference: {resolved.reference.kind}, but {resolved.algo.kind} as set here compares with no reference: "
            "leave it out, or give the reference a weight (grpo: algo.kl_coef)"
        )
    if resolved.health.kl and not needs.reference:
        raise ConfigError(
            f"health.kl looks at the KL to the reference, and {resolved.algo.kind} as set here compares with none: "
            "leave it out, or give the reference a weight (grpo: algo.kl_coef)"
        )
    if resolved.schedule == "one_ahead":
        # A replay's sampler evaluates alone, between steps.
        if resolved.sampler.kind in IN_PROCESS and resolved.replay is None:
            raise beside_refused(resolved.sampler.kind)
        if resolved.correction is None:
            resolved = resolved.model_copy(update={"correction": CorrectionConfig()})
    if resolved.corrects is not None and not algorithm.reads_importance:
        without = "set correction: off" if resolved.schedule == "one_ahead" else "leave it out"
        raise ConfigError(
            f"correction: the loss of {resolved.algo.kind} does not read `importance`, so nothing would be corrected: "
            f"{without}, or have the loss multiply its tokens by targets.importance and name it in `reads`"
        )
    check_fit(algorithm, resolved.algo.kind)
    return resolved, algorithm


def beside_refused(sampler: str) -> ConfigError:
    """What to say of `schedule: one_ahead` with a sampler that cannot work while the learner does."""
    which = "stands for one that works" if sampler == "auto" else "works"
    return ConfigError(
        f"schedule: one_ahead, but sampler: {sampler} {which} in the training process, on the learner's own device: "
        "the two would take turns there, and nothing would be gained by samples that are a step older. Name a sampler "
        "that works elsewhere (sampler: {kind: vllm_server, urls: [...]}), or set schedule: synchronous"
    )


def check_fit(algorithm: Algorithm, name: str) -> None:
    """ConfigError where the losses do not read what the advantage gives, or the reverse, or a critic is missing."""
    needs = algorithm.needs
    if "values" in needs.old | needs.now and algorithm.value_loss is None:
        raise ConfigError(
            f"the advantage needs a critic's values, and {name} trains no critic: "
            "choose another advantage, or an algorithm with a value loss (ppo)"
        )
    read = algorithm.reads | {"coefs"} | ({"importance"} if algorithm.reads_importance else set())
    if unread := algorithm.gives - read:
        raise ConfigError(
            f"the advantage gives {', '.join(sorted(unread))}, which the loss does not read, so that part of the "
            "reward would be lost: choose an advantage and a loss that fit together"
        )
    if missing := algorithm.reads - algorithm.gives:
        raise ConfigError(
            f"the loss reads {', '.join(sorted(missing))}, which the advantage does not give: "
            "choose an advantage and a loss that fit together"
        )


def _checked(config: RunConfig) -> RunConfig:
    """The config, validated anew: what was assigned in Python after it was made has not been."""
    try:
        return RunConfig.model_validate(config.model_dump(warnings=False)).read_from(config.places)
    except ValidationError as error:
        # Not where the file has it: what was assigned later is wrong.
        raise ConfigError(str(explain(error, RunConfig, instead=instead_in(RunConfig)))) from error


def _own_reference(algorithm: Algorithm, name: str) -> Reference:
    try:
        found: Reference = TypeAdapter(Reference).validate_python(dict(algorithm.reference))
    except ValidationError as error:
        raise ConfigError(f"{name}: its `reference` {dict(algorithm.reference)} cannot be: {error}") from error
    return found


def build_algorithm(config: RunConfig) -> Algorithm:
    """The Algorithm that `algo`, `advantage` and `loss` describe.

    Raises ConfigError where they are not one, and for what one of them cannot declare.
    """
    from rlkit.interfaces.learning import Algorithm

    algo = f"algorithm {config.algo.kind!r}"
    algorithm = registry.build("algorithms", config.algo.kind, config.algo.options)
    if not isinstance(algorithm, Algorithm):
        factory = Blame(algo, "its factory", registry.find("algorithms", config.algo.kind).factory, PluginLoadError)
        raise factory.fault(f"returned {shown(algorithm)}; it must return an rlkit.Algorithm")
    advantage, loss = f"the advantage of {algo}", f"the policy loss of {algo}"
    if config.advantage is not None:
        algorithm.advantage = registry.build("advantages", config.advantage.kind, config.advantage.options)
        advantage = f"advantage {config.advantage.kind!r}"
    if config.loss is not None:
        algorithm.policy_loss = registry.build("losses", config.loss.kind, config.loss.options)
        loss = f"loss {config.loss.kind!r}"
    with Blame(advantage, "one of its declarations", algorithm.advantage, PluginLoadError):
        advantage_declaration(algorithm.advantage, advantage)
    with Blame(loss, "one of its declarations", algorithm.policy_loss, PluginLoadError):
        loss_declaration(algorithm.policy_loss, loss)
    if algorithm.value_loss is not None:
        value_loss = f"the value loss of {algo}"
        with Blame(value_loss, "one of its declarations", algorithm.value_loss, PluginLoadError):
            loss_declaration(algorithm.value_loss, value_loss)
    return algorithm


def _check_reward(kind: str) -> None:
    """ConfigError for what a reward cannot declare, as far as it can be told before it is made, which may take long."""
    plugin = registry.find("rewards", kind)
    if plugin.is_class or "config" not in plugin.parameters:
        reward_declaration(plugin.factory, f"reward {kind!r}")


def _whole(path: str | None) -> str | None:
    """The absolute path of what is here on disk; anything else as it is."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def resolve_rewards(rewards: Sequence[RewardRef]) -> list[RewardRef]:
    """Rewards with all their options, as `resolve_ref`."""
    resolved = _resolved_list("rewards", rewards, "reward")
    return [RewardRef(weight=ref.weight, **each.model_dump()) for ref, each in zip(rewards, resolved, strict=True)]


def _resolved_list(kind: registry.Kind, refs: Sequence[PluginRef], where: str) -> list[PluginRef]:
    """`resolve_ref` of each; one of several is called by its number, from 0, as in `noise.1`."""
    return [resolve_ref(kind, ref, f"{where}.{i}" if len(refs) > 1 else where) for i, ref in enumerate(refs)]


def resolve_ref(kind: registry.Kind, ref: PluginRef, where: str) -> PluginRef:
    """The plugin by name with all its options, as its model fills them in.

    where: the key, for messages. SettingsError for a name that no plugin has, or options that do not fit; ConfigError
    for a plugin that cannot be used.
    """
    try:
        plugin = registry.find(kind, ref.kind)
    except ConfigError as error:
        if ref.kind in registry.names(kind):
            raise
        raise SettingsError([((where, "kind"), str(error))]) from error
    options = registry.validate_options(plugin, ref.options, where, instead_of_option(where, plugin.options))
    return PluginRef(kind=ref.kind, **options.model_dump(mode="json"))
