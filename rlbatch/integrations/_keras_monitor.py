"""What Keras steps show to a controller, and what of them can be undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import torch
from torch import nn

from rlbatch.control.snapshot import Snapshot
from rlbatch.integrations._keras_optimizer import OptimizerFacts, on_host
from rlbatch.signals.monitor import ChunkMeasurement, ChunkMonitor

ops: Any = keras.ops  # its annotations name the tensors of every backend at once


class KerasMonitor(ChunkMonitor):
    """Collects losses and gradient norms of a chunk on the device, of any backend.

    As its base, with `take_gradient` called for each micro-batch of a measured step.
    """

    def __init__(self, facts: OptimizerFacts, compiled: Callable[[Any], Any]) -> None:
        """Watch a model whose gradients are given.

        Args:
            facts: Of its optimizer.
            compiled: Compiles a function where the backend does.
        """
        super().__init__((), facts.as_torch())
        self._facts = facts
        self._sqr = compiled(_squared_norm)
        self._forget()
        self._measured_step: _Measured | None = None
        self._shares: list[float] = []
        self._loss: Any = None
        self._done = 0

    @property
    def is_measuring(self) -> bool:
        """Whether the gradients of the step under way are wanted."""
        return self._measured_step is not None

    def begin_step(self, micro_batch_sizes: Sequence[int], *, measured: bool) -> None:
        """Announce an optimizer step."""
        total = sum(micro_batch_sizes)
        self._shares = [size / total for size in micro_batch_sizes]
        self._loss, self._done, self._measured_step = None, 0, None
        if measured and len(self._shares) > 1:
            scales = self._facts.metric()
            if scales is not None:
                self._measured_step = _Measured(self._shares, scales, self._sqr)
                self._size_of_step = total / len(self._shares), float(total)

    def take_gradient(self, part: list[Any]) -> None:
        """Take a micro-batch's gradient times its share in the step; None counts as zero."""
        if self._measured_step is not None:
            self._measured_step.add(part)

    def after_backward(self, loss: Any) -> None:
        """Take the micro-batch's mean loss."""
        share = self._shares[self._done]
        self._done += 1
        part = loss if share == 1.0 else loss * share
        self._loss = part if self._loss is None else self._loss + part
        if self._done < len(self._shares):
            return
        if self._measured_step is not None:
            self._norms_now.append(self._measured_step.norms())
            self._owners_now.append(len(self._known["losses"]) + len(self._losses_now))
            self._sizes_now.append(self._size_of_step)
        self._losses_now.append(self._loss)
        self._loss = self._measured_step = None

    def finish(self) -> ChunkMeasurement:
        """Read the chunk from the device and start the next one."""
        super().load_state_dict(self.state_dict())
        self._forget()
        return super().finish()

    def drop_step(self, steps: int | None = None) -> None:
        """Forget the step under way, and those behind the first `steps` of the chunk."""
        self._loss = self._measured_step = None
        if steps is not None and steps < len(self._known["losses"]) + len(self._losses_now):
            self.load_state_dict(self.state_dict(steps))

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """Return the first `steps` of the chunk so far as plain numbers: reads the device."""
        known = self._known
        norms = [value for triple in self._norms_now for value in triple]
        owners = [*known["owners"], *self._owners_now]
        count = len(owners) if steps is None else sum(owner < steps for owner in owners)
        return {
            "losses": [*known["losses"], *_read(self._losses_now)][:steps],
            "norms": [*known["norms"], *_read(norms)][: 3 * count],
            "owners": owners[:count],
            "sizes": [*known["sizes"], *([*row] for row in self._sizes_now)][:count],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the chunk that `state_dict` returned."""
        self._forget()
        self._known = {name: list(state[name]) for name in self._known}

    def _forget(self) -> None:
        self._known: dict[str, list[Any]] = {
            name: [] for name in ("losses", "norms", "owners", "sizes")
        }
        self._losses_now: list[Any] = []
        self._norms_now: list[tuple[Any, Any, Any]] = []
        self._owners_now: list[int] = []
        self._sizes_now: list[tuple[float, float]] = []


class _Measured:
    """A step under way whose gradient noise is measured."""

    def __init__(self, shares: list[float], scales: list[Any], squared_norm: Any) -> None:
        self._shares, self._scales, self._sqr = shares, scales, squared_norm
        # the first number of micro-batches that holds half of the samples, leaving at least one
        half = int(np.searchsorted(np.cumsum(shares), 0.5 - 1e-9)) + 1
        self._half = min(half, len(shares) - 1)
        self._parts = 0
        self._small: Any = 0.0
        self._first: list[Any] = []  # sum of the first half
        self._rest: list[Any] = []  # sum of the second one

    def add(self, part: list[Any]) -> None:
        """Take share x g_i: g_i weighs by its share, share x |g_i|^2 = |part|^2 / share."""
        own = self._sqr(*_pairs(part, self._scales))
        self._small = self._small + own / self._shares[self._parts]
        target = self._first if self._parts < self._half else self._rest
        target[:] = add_up(target, part)
        self._parts += 1

    def norms(self) -> tuple[Any, Any, Any]:
        """Return the weighted squared norm of the parts, that of the whole, and the cosine."""
        whole = add_up(self._first, self._rest)
        first, rest, big = (
            self._sqr(*_pairs(vector, self._scales)) for vector in (self._first, self._rest, whole)
        )
        product = 0.5 * (big - first - rest)
        cosine = product / ops.maximum(ops.sqrt(first) * ops.sqrt(rest), 1e-30)
        return self._small, big, cosine


def add_up(left: list[Any], right: list[Any]) -> list[Any]:
    """Return the sum of two gradients; an empty one and None count as zero."""
    if not left:
        return list(right)
    both = zip(left, right, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in both]


def _pairs(vector: list[Any], scales: list[Any]) -> tuple[list[Any], list[Any]]:
    pairs = [(v, s) for v, s in zip(vector, scales, strict=True) if v is not None and s is not None]
    return [v for v, _ in pairs], [s for _, s in pairs]


def _squared_norm(vectors: list[Any], scales: list[Any]) -> Any:
    scaled = (ops.cast(v, "float32") * s for v, s in zip(vectors, scales, strict=True))
    return ops.sum(ops.stack([ops.sum(ops.square(v)) for v in scaled]))


def _read(values: list[Any]) -> list[float]:
    """Return scalars of the device in one transfer."""
    if not values:
        return []
    together = ops.stack([ops.cast(value, "float32") for value in values])
    return on_host(together).astype(np.float64).tolist()


class KerasSnapshot(Snapshot):
    """A copy of weights, statistics and optimizer state. The learning rate is the user's."""

    def __init__(self, model: Any, facts: OptimizerFacts) -> None:
        """Keep references; nothing is copied before `take`."""
        super().__init__(nn.Module(), facts.as_torch())
        self._trained, self._facts = model, facts
        self._copies: list[tuple[Any, Any]] = []

    def take(self) -> None:
        """Copy the present values."""
        self._copies = [(v, ops.copy(v)) for v in self._variables()]
        self.taken = True

    def restore(self) -> None:
        """Put the values of the last `take` back."""
        for variable, value in self._copies:
            variable.assign(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the copy as torch's tensors, whatever the backend is."""
        arrays = (ops.convert_to_numpy(value) for _, value in self._copies)
        return {"tensors": [_as_torch(array) for array in arrays]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy out of a backup; one of other shapes is left alone."""
        variables, saved = self._variables(), state["tensors"]
        self.taken = [tuple(v.shape) for v in variables] == [tuple(t.shape) for t in saved]
        if self.taken:
            arrays = (tensor.numpy() for tensor in saved)
            self._copies = list(zip(variables, arrays, strict=True))

    def _variables(self) -> list[Any]:
        rate = self._facts.rate_variable()
        state = [v for v in self._trained.optimizer.variables if v is not rate]
        return [*self._trained.weights, *state]


def _as_torch(array: Any) -> torch.Tensor:
    known = array.dtype.kind in "biu" or array.dtype in (np.float16, np.float32, np.float64)
    return torch.tensor(array if known else array.astype(np.float32))  # such as bfloat16
