"""Keeps ZeRO-3's linear layer out of the sampler's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def plain_linear() -> Iterator[None]:
    """torch's own `linear` within.

    ZeRO-3 replaces it, for the whole process, by one in Python that the backward pass can do with once the weights are
    scattered again. A sampler has no backward pass: it would only be slower, for good in what it compiles or captures.
    """
    found = torch.nn.functional.linear
    torch.nn.functional.linear = torch._C._nn.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = found


def stepped(begin: Callable[[], Iterable[T]]) -> Iterator[T]:
    """What `begin` gives. Each thing is made within `plain_linear`, and used outside of it."""
    with plain_linear():
        things = iter(begin())
    while True:
        with plain_linear():
            try:
                thing = next(things)
            except StopIteration:
                return
        yield thing
