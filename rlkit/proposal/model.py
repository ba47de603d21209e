"""What there is to know of a model before a config is made for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlkit import embedded
from rlkit.config import ModelConfig
from rlkit.engine.models import Shape, load_tokenizer, model_shape, positions
from rlkit.errors import ConfigError
from rlkit.generation import end_tokens
from rlkit.wording import thousands


@dataclass(frozen=True)
class Model:
    path: str
    tokenizer: Any
    shape: Shape
    positions: int | None
    """Tokens that prompt and response may have together; None: it sets no limit."""
    ends: list[str]
    """Its end tokens, as text."""

    @property
    def chat(self) -> bool:
        return getattr(self.tokenizer, "chat_template", None) is not None

    @property
    def embedded(self) -> bool:
        return self.path.startswith(embedded.PREFIX)

    @property
    def task(self) -> str | None:
        """The embedded data that an embedded model was made for."""
        if self.path == embedded.PREFIX + "xs-turns":
            return embedded.PREFIX + embedded.PLAYED[0]
        named = [embedded.PREFIX + task for task in embedded.TASKS if self.path.endswith(f"-{task}")]
        return (named or [embedded.PREFIX + embedded.TASKS[0]])[0] if self.embedded else None

    @property
    def small(self) -> bool:
        """As those that ship with rlkit: they learn fast, at rates that would ruin a language model."""
        return self.shape.parameters < 5e6

    def __str__(self) -> str:
        room = f"room for {self.positions} tokens" if self.positions else "no limit on tokens"
        kind = "it has a chat template" if self.chat else "a base model: it has no chat template"
        ends = " or ".join(self.ends)
        return f"{thousands(self.shape.parameters)} parameters, {room}; {kind}; " + (
            f"a response ends with {ends}" if ends else "its files name no end token"
        )


def look_at(path: str) -> Model:
    """ConfigError for a model that cannot be loaded, or whose size is not known from here."""
    config = ModelConfig(path=path)
    tokenizer, room, shape = load_tokenizer(config), positions(config), model_shape(config)
    if shape is None:
        raise ConfigError(f"the config of {path} is not on this machine: give a folder, or a model that the hub has")
    ends = [str(tokenizer.convert_ids_to_tokens(end)) for end in end_tokens(embedded.resolve(path))]
    return Model(path, tokenizer, shape, room, ends)
