"""The environment that a model acts in, put together: for a run, an evaluation, or a person who looks on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import registry
from rlkit.config import ConversationConfig, DataConfig, PluginRef
from rlkit.interfaces.declarations import EnvironmentDeclaration, environment_declaration

if TYPE_CHECKING:
    from contextlib import ExitStack

    from rlkit.environments.glue import Glue
    from rlkit.generation.conversations import Setting


def declared(ref: PluginRef | None) -> EnvironmentDeclaration | None:
    """What the environment declares; it is made for that. None: there is none. ConfigError for what cannot be."""
    if ref is None:
        return None
    return environment_declaration(registry.build("environments", ref.kind, ref.options), f"environment {ref.kind!r}")


def glue_of(
    config: ConversationConfig,
    environment: EnvironmentDeclaration,
    data: DataConfig,
    tokenizer: Any,
    ends: Sequence[int],
) -> Glue:
    """What the chat template puts between turns. ConfigError for one that cannot hold these conversations."""
    from rlkit.environments.glue import Glue

    return Glue(tokenizer, data, ends, environment.tools, keep_past=config.keep_past)


def setting_of(
    ref: PluginRef,
    environment: EnvironmentDeclaration,
    config: ConversationConfig,
    glue: Glue,
    context: int,
    plugins: Sequence[str],
    stack: ExitStack,
    log: Path | None = None,
) -> Setting:
    """What conversations are held with, until `stack` ends. `log`: where goes what environments print."""
    from rlkit.environments.pool import Environments
    from rlkit.generation.conversations import Setting

    environments = stack.enter_context(Environments(ref, plugins, config))
    environments.log = log
    return Setting(ref.kind, environments, glue, config, environment, context)


@dataclass(frozen=True)
class Acting:
    """An environment with all that is known before there is a sampler."""

    ref: PluginRef
    declared: EnvironmentDeclaration
    conversation: ConversationConfig
    glue: Glue

    def setting(self, context: int, plugins: Sequence[str], stack: ExitStack, log: Path | None = None) -> Setting:
        """As `setting_of`."""
        return setting_of(self.ref, self.declared, self.conversation, self.glue, context, plugins, stack, log)


def acting_of(
    ref: PluginRef | None, conversation: ConversationConfig, data: DataConfig, tokenizer: Any, ends: Sequence[int]
) -> Acting | None:
    """As `declared` and `glue_of`, which raise; None: there is no environment."""
    environment = declared(ref)
    if ref is None or environment is None:
        return None
    return Acting(ref, environment, conversation, glue_of(conversation, environment, data, tokenizer, ends))
