"""Keeps vLLM's hands off the trainer's model, where it serves a family by running transformers' own code.

For that vLLM changes the family's class, for the whole process: calls and new objects of it then ask for vLLM's
settings, and the trainer's have none. Here the change goes to a subclass that only vLLM's model is of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import nn

_OF_EVERY_CLASS = {"__dict__", "__weakref__", "__module__", "__doc__"}


@contextlib.contextmanager
def of_their_own(model: Callable[[], nn.Module]) -> Iterator[None]:
    """Make vLLM's model within, which `model` gives afterwards."""
    from transformers import PreTrainedModel
    from vllm.compilation import decorators

    before: dict[type, tuple[tuple[type, ...], dict[str, Any]]] = {}
    change = decorators._support_torch_compile

    def noted(cls: type, *args: Any, **kwargs: Any) -> Any:
        if issubclass(cls, PreTrainedModel):
            before.setdefault(cls, (cls.__bases__, dict(vars(cls))))
        return change(cls, *args, **kwargs)

    made = False
    try:
        with mock.patch.object(decorators, "_support_torch_compile", noted):
            yield
        made = True
    finally:
        for cls, (bases, attributes) in before.items():
            changed = {
                name: value
                for name, value in vars(cls).items()
                if attributes.get(name) is not value and name not in _OF_EVERY_CLASS
            }
            added = tuple(base for base in cls.__bases__ if base not in bases)
            own = type(cls.__name__, (cls, *added), {**changed, "__module__": cls.__module__})
            for part in model().modules() if made else ():
                if type(part) is cls:
                    part.__class__ = own
            cls.__bases__ = bases
            for name in changed:
                if name in attributes:
                    setattr(cls, name, attributes[name])
                else:
                    delattr(cls, name)
