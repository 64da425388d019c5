"""Collects what the steps of a Keras training show, on the device, until a chunk is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from rlbatch.integrations._keras_noise import SampleNoise
from rlbatch.integrations._keras_training import KerasRate, on_host
from rlbatch.signals.chunk_state import checked_variances
from rlbatch.signals.monitor import ChunkMeasurement, chunk_measurement

ops: Any = keras.ops  # its annotations name the tensors of every backend at once


class KerasMonitor:
    """Collects losses and gradient norms of a chunk on the device, of any backend.

    Where a step has several micro-batches noise is measured by the difference between their
    gradients, which `take_gradient` gets; where it has one, by its samples', which
    `rlbatch.integrations._keras_noise` sees.

    Attributes:
        drawn: What a step that is made in one piece looks at to measure noise; None: at nothing.
    """

    def __init__(self, rate: KerasRate, noise: SampleNoise, compiled: Callable[[Any], Any]) -> None:
        """Watch a model whose gradients are given.

        Args:
            rate: Of its optimizer.
            noise: Measures steps that are made in one piece.
            compiled: Compiles a function where the backend does.
        """
        self._rate, self._whole, self._sqr = rate, noise, compiled(_squared_norm)
        self._shares: list[float] = []
        self._samples = self._chunks = 0
        self.drop_step()
        self._clear()

    def begin_step(self, micro_batch_sizes: Sequence[int], *, measured: bool) -> None:
        """Announce an optimizer step."""
        self.drop_step()
        self._samples = sum(micro_batch_sizes)
        self._shares = [size / self._samples for size in micro_batch_sizes]
        self._measures = measured and len(self._shares) > 1
        if measured and len(self._shares) == 1:
            self.drawn = self._whole.draw(self._samples, f"{self._chunks}/{len(self._losses)}")

    def take_gradient(self, part: list[Any]) -> None:
        """Take a micro-batch's gradient times its share in the step; None counts as zero."""
        if not self._measures:
            return
        if self._noise is None:  # by now the model has its weights, and the optimizer no new ones
            scales = self._rate.scales()
            if scales is None:
                self._measures = False
                return
            self._noise = _StepNoise(self._shares, scales, self._sqr)
        self._noise.add(part)

    def take_samples(self, found: Any) -> None:
        """Take what a step in one piece showed: see `SampleNoise.watching`."""
        self._found = found

    def after_backward(self, loss: Any) -> None:
        """Take the micro-batch's mean loss."""
        share = self._shares[self._done]
        part = loss if share == 1.0 else loss * share
        self._loss = part if self._loss is None else self._loss + part
        self._done += 1
        if self._done < len(self._shares):
            return
        if self._noise is not None:
            self._note(self._noise.norms(), self._samples / len(self._shares), 0.0)
        elif self._found is not None:
            small, big, cosine, variance = (self._found[place] for place in range(4))
            self._note((small, big, cosine), 1.0, variance)
        self._losses.append(self._loss)
        self.drop_step()  # no gradient is taken of steps that are not announced

    def finish(self) -> ChunkMeasurement:
        """Read the chunk from the device and start the next one."""
        steps, measured = len(self._losses), len(self._owners)
        kept = np.array(_read([*self._losses, *self._norms, *self._variances]))
        losses, norms, variances = np.split(kept, [steps, steps + 3 * measured])
        owners, sizes = self._owners, self._sizes
        self._chunks += 1
        self._clear()
        return chunk_measurement(losses, norms, owners, sizes, variances=variances)

    def leave_unmeasured(self) -> None:
        """Measure no noise in the step under way, whose parts are weighted in another way."""
        self._measures, self._noise = False, None

    def drop_step(self, steps: int | None = None) -> None:
        """Forget the step under way, and those after the first `steps` of the chunk."""
        self._loss: Any = None
        self._noise: _StepNoise | None = None
        self._measures = False
        self.drawn: Any = None
        self._found: Any = None
        self._done = 0
        if steps is not None:
            measured = sum(owner < steps for owner in self._owners)
            del self._losses[steps:], self._norms[3 * measured :]
            del self._owners[measured:], self._sizes[measured:], self._variances[measured:]

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """Return the first `steps` of the chunk so far as plain numbers: reads the device."""
        owners = [owner for owner in self._owners if steps is None or owner < steps]
        return {
            "losses": _read(self._losses[:steps]),
            "norms": _read(self._norms[: 3 * len(owners)]),
            "owners": owners,
            "sizes": [list(row) for row in self._sizes[: len(owners)]],
            "variances": _read(self._variances[: len(owners)]),
            "chunks": self._chunks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the chunk that `state_dict` returned."""
        self._variances: list[Any] = list(checked_variances(state))
        self._losses, self._norms = list(state["losses"]), list(state["norms"])
        self._owners = list(state["owners"])
        self._sizes = [(row[0], row[1]) for row in state["sizes"]]
        self._chunks = state.get("chunks", 0)

    def _note(self, norms: tuple[Any, Any, Any], size: float, variance: Any) -> None:
        self._norms += norms
        self._owners.append(len(self._losses))
        self._sizes.append((size, float(self._samples)))
        self._variances.append(variance)

    def _clear(self) -> None:
        empty: dict[str, list[Any]] = {"losses": [], "norms": [], "owners": [], "sizes": []}
        self.load_state_dict({**empty, "chunks": self._chunks})


class _StepNoise:
    """The norms of a step's gradients, from which its noise is estimated."""

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
        self._small = self._small + self._norm(part) / self._shares[self._parts]
        target = self._first if self._parts < self._half else self._rest
        target[:] = add_up(target, part)
        self._parts += 1

    def norms(self) -> tuple[Any, Any, Any]:
        """Return the weighted squared norm of the parts, that of the whole, and the cosine."""
        first, rest = self._norm(self._first), self._norm(self._rest)
        big = self._norm(add_up(self._first, self._rest))
        product = 0.5 * (big - first - rest)
        cosine = product / ops.maximum(ops.sqrt(first) * ops.sqrt(rest), 1e-30)
        return self._small, big, cosine

    def _norm(self, vector: list[Any]) -> Any:
        both = zip(vector, self._scales, strict=True)
        pairs = [(v, s) for v, s in both if v is not None and s is not None]
        return self._sqr([v for v, _ in pairs], [s for _, s in pairs])


def add_up(left: list[Any], right: list[Any]) -> list[Any]:
    """Return the sum of two gradients; an empty one and None count as zero."""
    if not left:
        return list(right)
    both = zip(left, right, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in both]


def _squared_norm(vectors: list[Any], scales: list[Any]) -> Any:
    scaled = (ops.cast(v, "float32") * s for v, s in zip(vectors, scales, strict=True))
    return ops.sum(ops.stack([ops.sum(ops.square(v)) for v in scaled]))


def _read(values: list[Any]) -> list[float]:
    """Return scalars of the device in one transfer."""
    if not values:
        return []
    together = ops.stack([ops.cast(value, "float32") for value in values])
    return on_host(together).astype(np.float64).tolist()
