"""How much memory tensors take."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Alive(TorchDispatchMode):
    """Bytes of the tensors that exist at once, beside those that were there before."""

    def __init__(self, *before: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return found

    def watch(self, *tensors: Tensor) -> None:
        """Tensors that were made otherwise."""
        for tensor in tensors:
            self._watch(tensor.untyped_storage())

    def _watch(self, storage: Any) -> None:
        if storage.data_ptr() in self._known or not storage.nbytes():
            return
        key, size = storage.data_ptr(), storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
