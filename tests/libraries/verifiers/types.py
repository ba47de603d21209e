from __future__ import annotations

from typing import Any


class ClientConfig:
    pass


class _Message(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class AssistantMessage(_Message):
    pass


class ToolCall(_Message):
    pass


class ToolMessage(_Message):
    pass
