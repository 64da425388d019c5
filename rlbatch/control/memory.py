"""How many samples of a forward and backward pass fit into the device's memory."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

MARGIN = 0.1  # share of the memory that is left free: fragmentation, and samples of unequal length
_MESSAGES = ("out of memory", "can't allocate memory", "cudnn_status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(message in text for message in _MESSAGES)


@dataclass(frozen=True)
class MicroBatchLimit:
    """The largest micro-batch that is believed to fit, from what was seen of smaller ones.

    Nothing is tried out: the passes of the run itself are what is measured. Memory is taken as
    proportional to the samples beyond what is there before a pass. Whatever a pass needs besides
    makes this an overestimate at small sizes, so the limit is raised to twice the largest size
    seen at most, and corrected there.

    Attributes:
        limit: Most samples of a pass; None: nobody knows of one.
        seen: Largest size that fitted.
        failed: Smallest size that did not; 0 for none.
    """

    limit: int | None
    seen: int = 0
    failed: int = 0

    def after_pass(self, samples: int, needed: int, free: float) -> MicroBatchLimit:
        """Return the limit after a pass that fitted.

        Args:
            samples: Of the pass.
            needed: Bytes at its peak beyond those before it.
            free: Bytes that passes may take.
        """
        if samples <= self.seen or needed <= 0:
            return self
        fits = int((1.0 - MARGIN) * free * samples / needed)
        largest = max(samples, min(fits, 2 * samples))
        if self.failed:
            largest = min(largest, self.failed - 1)
        return replace(self, limit=largest, seen=samples)

    def after_failure(self, samples: int) -> MicroBatchLimit:
        """Return the limit, half of what did not fit, after a pass that ran out of memory."""
        half = max(samples // 2, 1)
        failed = min(samples, self.failed or samples)
        return replace(self, limit=half, failed=failed, seen=min(self.seen, half))

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> MicroBatchLimit:
        """Return what `state_dict` was taken of."""
        return cls(**state)


class MemoryGauge(Protocol):
    """Measures what passes need."""

    def watch(self) -> Any:
        """Return the block of one pass."""
        ...

    def needed(self) -> int:
        """Return the bytes at the peak of the latest pass beyond those before it."""
        ...

    def free(self) -> float:
        """Return the bytes that passes may take."""
        ...

    def release(self) -> None:
        """Give back what a failed pass has left."""
        ...


class CudaGauge:
    """Reads the counters of torch's allocator: no waiting for the device.

    Its peak is that of the run so far, and is not reset: a program's own use of it stays true. A
    higher peak from before (a validation) makes the limit smaller than need be.
    """

    def __init__(self, device: torch.device, memory_limit: int | None = None) -> None:
        """Watch a device.

        Args:
            device: A CUDA device.
            memory_limit: Bytes that this process may take; None for all that are free.
        """
        self._device, self._limit = device, memory_limit
        self._before = 0

    @contextmanager
    def watch(self) -> Generator[None]:
        """Note what is allocated before the pass."""
        self._before = torch.cuda.memory_allocated(self._device)
        yield

    def needed(self) -> int:
        """Return the bytes at the peak beyond those before the latest pass."""
        return torch.cuda.max_memory_allocated(self._device) - self._before

    def free(self) -> float:
        """Return the bytes that passes may take."""
        if self._limit is not None:
            return float(self._limit - self._before)
        unused, _ = torch.cuda.mem_get_info(self._device)
        return float(unused + torch.cuda.memory_reserved(self._device) - self._before)

    def release(self) -> None:
        """Give the allocator's free blocks back: they may be of the wrong sizes now."""
        torch.cuda.empty_cache()


class HostGauge:
    """Counts the bytes that autograd saves for the backward pass, where no allocator counts.

    Beyond the limit a pass is stopped by the error that a full device would raise.
    """

    def __init__(self, memory_limit: int | None = None) -> None:
        """Count.

        Args:
            memory_limit: Bytes that a pass may save; None: half of the machine's memory.
        """
        if memory_limit is None:
            memory_limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        self._limit, self._saved = memory_limit, 0
        self._known: set[tuple[int, int]] = set()

    def watch(self) -> saved_tensors_hooks:
        """Return the block of a pass."""
        self._saved = 0
        self._known = set()
        return saved_tensors_hooks(self._pack, _as_it_is)

    def needed(self) -> int:
        """Return the bytes that the latest pass saved."""
        return self._saved

    def free(self) -> float:
        """Return the bytes that a pass may save."""
        return float(self._limit)

    def release(self) -> None:
        """Nothing is kept."""

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage.data_ptr(), storage.nbytes()
        # Weights are there anyway, and views share what they are of.
        if key not in self._known and not (tensor.is_leaf and tensor.requires_grad):
            self._known.add(key)
            self._saved += storage.nbytes()
            if self._saved > self._limit:
                raise torch.OutOfMemoryError(
                    f"The pass saves more than {self._limit} bytes for its backward pass."
                )
        return tensor


def make_gauge(device: torch.device, memory_limit: int | None) -> MemoryGauge:
    """Return the gauge of a device."""
    if device.type == "cuda":
        return CudaGauge(device, memory_limit)
    return HostGauge(memory_limit)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
