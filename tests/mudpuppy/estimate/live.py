"""Measure the peak of live tensor bytes, by the storages that operations make."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts every storage from the operation that made it until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {self._key(one) for one in tree_leaves((args, kwargs)) if self._is(one)}
        for one in tree_leaves(result):
            if self._is(one) and self._key(one) not in given | self._known:
                self._count(one.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    @staticmethod
    def _is(one: Any) -> bool:
        return isinstance(one, torch.Tensor)

    @staticmethod
    def _key(one: torch.Tensor) -> int:
        return one.untyped_storage()._cdata
