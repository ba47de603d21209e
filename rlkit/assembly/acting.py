"""The environment that a model acts in, put together: for a run, an evaluation, or a person who looks on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import registry
from rlkit.config import ConversationConfig, DataConfig, PluginRef
from rlkit.interfaces.declarations import EnvironmentDeclaration, environment_declaration

if TYPE_CHECKING:
    from contextlib import ExitStack

    from rlkit.generation.conversations import Setting


def declared(ref: PluginRef | None) -> EnvironmentDeclaration | None:
    """What the environment declares; it is made for that. None: there is none. ConfigError for what cannot be."""
    if ref is None:
        return None
    return environment_declaration(registry.build("environments", ref.kind, ref.options), f"environment {ref.kind!r}")


def with_tools(data: DataConfig, environment: EnvironmentDeclaration | None, tokenizer: Any) -> DataConfig:
    """How questions are put to the model where the chat template tells it of the environment's tools."""
    from rlkit.data import uses_chat

    if environment is None or not environment.tools or not uses_chat(data, tokenizer):
        return data
    kwargs = {**data.chat_template_kwargs, "tools": [dict(tool) for tool in environment.tools]}
    return data.model_copy(update={"chat_template_kwargs": kwargs})


def setting_of(
    ref: PluginRef,
    environment: EnvironmentDeclaration,
    conversation: ConversationConfig,
    data: DataConfig,
    tokenizer: Any,
    ends: Sequence[int],
    context: int,
    plugins: Sequence[str],
    stack: ExitStack,
    log: Path | None = None,
) -> Setting:
    """What conversations are held with, which `stack` ends. `log`: where goes what environments print. ConfigError for
    a chat template that cannot hold them."""
    from rlkit.environments.glue import glue_of
    from rlkit.environments.pool import Environments
    from rlkit.generation.conversations import Setting

    glue = glue_of(tokenizer, data, ends, environment.tools, keep_past=conversation.keep_past)
    environments = stack.enter_context(Environments(ref, plugins, conversation))
    environments.log = log
    return Setting(ref.kind, environments, glue, conversation, environment, context)
