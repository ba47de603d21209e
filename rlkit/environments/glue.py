"""STAND-IN until templates are there: text alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.config import DataConfig
from rlkit.data import prompt_tokens
from rlkit.interfaces.environments import Said


@dataclass(frozen=True)
class Glue:
    tokenizer: Any
    data: DataConfig

    def opening(self, question: Any, said: Said) -> tuple[str, list[int]]:
        text = f"{question}{said}"
        return text, prompt_tokens(text, self.data, self.tokenizer)

    def between(self, turn: Sequence[int], said: Said) -> list[int]:
        found: list[int] = self.tokenizer(said, add_special_tokens=False)["input_ids"]
        return found


def glue_of(
    tokenizer: Any, data: DataConfig, ends: Sequence[int], tools: Sequence[Mapping[str, Any]], *, keep_past: bool
) -> Glue:
    return Glue(tokenizer, data)
