"""Hidden states of many samples: in memory up to a limit, and in mapped files beyond it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from mudpuppy.errors import EngineError
from mudpuppy.leftovers import ACTIVATIONS_PREFIX


class HiddenStore:
    """Scratch space for hidden states, gone when the block ends.

    What a killed run has left is removed when the next one starts.

    Args:
        folder: where a folder for the files may be made; None keeps everything in memory.
        limit_bytes: what may stay in memory; every further tensor goes to a file of its own. The
            file's pages are the system's to write out and to drop.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int = 0) -> None:
        self._folder = None if folder is None else folder / f"{ACTIVATIONS_PREFIX}{os.getpid()}"
        self._parent = folder
        self._left = limit_bytes
        self._count = 0
        self.bytes_on_disk = 0
        """What lies in files."""

    def __enter__(self) -> HiddenStore:
        for path in self._parent.glob(f"{ACTIVATIONS_PREFIX}*") if self._parent else ():
            shutil.rmtree(path)  # of a run that was killed: the caller holds the folder's lock
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def place_for(self, tensor: Tensor) -> Slot:
        """Return a place that holds a tensor, and later others of its size, on the host."""
        if self._folder is None or tensor.nbytes <= self._left:
            self._left -= tensor.nbytes
            return Slot(tensor.detach().cpu(), is_file=False)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._count:06d}.bin"
        self._count += 1
        # every block is taken now: writing to a map on a full disk would end the process
        with path.open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, tensor.nbytes)
        mapped = torch.from_file(
            str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype
        ).view(tensor.shape)
        mapped.copy_(tensor)
        self.bytes_on_disk += tensor.nbytes
        return Slot(mapped, is_file=True)


class Slot:
    """The place of one sample's hidden states."""

    def __init__(self, tensor: Tensor, *, is_file: bool) -> None:
        self._tensor = tensor
        self._is_file = is_file

    def get(self) -> Tensor:
        """Return what is held, on the host."""
        return self._tensor

    def put(self, tensor: Tensor) -> None:
        """Hold another tensor of the same shape and type.

        Raises:
            EngineError: it has another one.
        """
        if (tensor.shape, tensor.dtype) != (self._tensor.shape, self._tensor.dtype):
            raise EngineError(
                f"a block turned hidden states {tuple(self._tensor.shape)} of "
                f"{self._tensor.dtype} into {tuple(tensor.shape)} of {tensor.dtype}"
            )
        if self._is_file:
            self._tensor.copy_(tensor)
        else:
            self._tensor = tensor.detach().cpu()
