"""The torch side of the signals: watches a chunk's steps and reads the device once at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.errors import ConfigurationError
from rlbatch.signals import foreach
from rlbatch.signals.metric import GradientMetric, make_metric
from rlbatch.signals.noise_scale import NoiseStatistics, measured_noise
from rlbatch.signals.record import Array


@dataclass(frozen=True)
class ChunkMeasurement:
    """What a chunk's steps showed. NaN: not measured.

    Attributes:
        steps: Steps watched.
        train_loss: Mean of their losses, those that are not finite left out.
        train_loss_std: Standard deviation of these; 0 for a single one.
        noise: The gradient statistics.
        gradient_cosine: Mean cosine between the two half-batch gradients.
        nonfinite_losses: Steps whose loss was not finite.
        nonfinite_steps: Steps whose loss, or measured gradient, was not finite.
    """

    steps: int
    train_loss: float
    train_loss_std: float
    noise: NoiseStatistics
    gradient_cosine: float
    nonfinite_losses: int
    nonfinite_steps: int


def chunk_measurement(
    losses: Array,
    norms: Array,
    owners: Sequence[int],
    sizes: Sequence[tuple[float, float]],
    known: NDArray[np.bool_] | None = None,
) -> ChunkMeasurement:
    """Return what a chunk's steps showed, from what was left on the device.

    Args:
        losses: Of each step.
        norms: Small and big squared norm and the cosine of each measured step, one after the other.
        owners: Which step each of these is of.
        sizes: Samples of a micro-batch and of the batch, of each measured step.
        known: Whether each loss is what it was when it was computed; None: all are.
    """
    known = np.ones(len(losses), dtype=bool) if known is None else known
    finite = np.isfinite(losses) | ~known
    bad = set(np.flatnonzero(~finite).tolist())
    nonfinite_losses = len(bad)
    noise, cosine = NoiseStatistics(), math.nan
    if owners:
        noise, cosine = measured_noise(norms.reshape(-1, 3), owners, sizes, bad)
    kept = losses[finite & known]
    return ChunkMeasurement(
        steps=len(losses),
        train_loss=float(kept.mean()) if len(kept) else math.nan,
        train_loss_std=float(kept.std(ddof=1)) if len(kept) > 1 else 0.0,
        noise=noise,
        gradient_cosine=cosine,
        nonfinite_losses=nonfinite_losses,
        nonfinite_steps=len(bad),
    )


@dataclass
class Window:
    """One optimizer step under way, and what its measured micro-batches left on the device."""

    shares: Sequence[float]
    metric: GradientMetric | None
    half: int  # micro-batches of the first half
    done: int = 0
    loss: Tensor | None = None
    previous: list[Tensor] | None = None
    first_half: list[Tensor] | None = None
    half_sqr: Tensor | None = None
    small_sqr: Tensor | None = None


_WHOLE = Window((1.0,), None, 0)  # stands for any step of one micro-batch; never changed


class ChunkMonitor:
    """Collects losses and gradient norms of a chunk as device tensors.

    Per optimizer step: `begin_step`, then `after_backward` for each micro-batch before anything
    clips or unscales the gradients. At the end of the chunk, `finish`. Nothing is read from the
    device in between, and no gradient is changed.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], optimizer: Optimizer, *, scaler: Any = None
    ) -> None:
        """Watch these parameters.

        Args:
            parameters: Of the model; shared ones count once, frozen ones not at all.
            optimizer: Its kind and second moments choose the metric.
            scaler: A `torch.amp.GradScaler` in use, whose factor is divided out.
        """
        self._parameters = tuple(parameters)
        self._optimizer = optimizer
        self._scaler = scaler
        self._step: Window | None = None
        self._clear()

    def begin_step(self, micro_batch_sizes: Sequence[int], *, measured: bool) -> None:
        """Announce an optimizer step.

        Args:
            micro_batch_sizes: Samples of each of its micro-batches. Their gradients accumulate
                weighted by their share of the sum.
            measured: Measure gradient noise, if there are two micro-batches or more and the
                optimizer has the state for it.

        Raises:
            ConfigurationError: A micro-batch is missing from the previous step, or there is none.
        """
        if self._step is not None:
            self._require_complete()
        if len(micro_batch_sizes) == 1 and micro_batch_sizes[0] > 0:
            self._step = _WHOLE  # nearly all steps: they have to cost next to nothing
            return
        if not micro_batch_sizes or min(micro_batch_sizes) < 1:
            raise ConfigurationError(
                f"A step needs micro-batches of at least 1 sample, got {list(micro_batch_sizes)}."
            )
        total = sum(micro_batch_sizes)
        shares = [size / total for size in micro_batch_sizes]
        metric, half = None, 0
        if measured:
            metric = make_metric(self._parameters, self._optimizer)
            # the first number of micro-batches that holds half of the samples, leaving at least one
            half = int(np.searchsorted(np.cumsum(shares), 0.5 - 1e-9)) + 1
        self._step = Window(shares, metric, min(half, len(shares) - 1))
        self._batch_size = total

    def after_backward(self, loss: Tensor) -> None:
        """Take the micro-batch whose backward pass has just run.

        Args:
            loss: Its mean loss, before any weighting or scaling.

        Raises:
            ConfigurationError: More micro-batches came than were announced.
        """
        step = self._step
        if step is None:
            raise ConfigurationError(
                "after_backward came without begin_step. Announce each step's micro-batches."
            )
        loss = loss.detach()
        if step is _WHOLE:
            if not loss.is_cpu:  # a CUDA graph writes the next one over it
                loss = loss.clone()
            self._losses.append(loss)
            self._versions.append(loss._version)
            self._step = None
            return
        share = step.shares[step.done]
        step.done += 1
        loss = loss * share if step.loss is None else step.loss + loss * share
        step.loss = loss
        if step.metric is not None:
            self._measure(step, step.metric, share)
        if step.done == len(step.shares):
            self._append(loss)
            self._step = None

    def finish(self) -> ChunkMeasurement:
        """Read the chunk from the device, in one transfer, and start the next one.

        Raises:
            ConfigurationError: A micro-batch of the last step is missing.
        """
        self._require_complete()
        steps, owners, sizes = len(self._losses), self._owners, self._sizes
        changed = [
            now._version != was for now, was in zip(self._losses, self._versions, strict=True)
        ]
        values = self._read(self._losses, self._norms)
        self._clear()
        # What the loop has changed in place since then is no loss any more, which is no fault.
        known = ~np.array(changed, dtype=bool)
        return chunk_measurement(values[:steps], values[steps:], owners, sizes, known)

    def _read(self, losses: list[Tensor], norms: list[Tensor]) -> Array:
        """Return what the chunk left on the device as one array, moved from there together."""
        return foreach.read(losses, norms)

    def drop_step(self, steps: int | None = None) -> None:
        """Forget the step under way.

        Args:
            steps: Of the chunk that the optimizer made: one whose backward passes are all done
                and that it did not make is forgotten too. None keeps that.
        """
        self._step = None
        if steps is not None:
            measured = sum(owner < steps for owner in self._owners)
            del self._losses[steps:], self._versions[steps:], self._norms[3 * measured :]
            del self._owners[measured:], self._sizes[measured:]

    def discard(self) -> None:
        """Forget the chunk and the step under way."""
        self._step = None
        self._clear()

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """Return the chunk so far, without a step under way, as plain numbers: reads the device.

        Args:
            steps: Of the chunk that the optimizer made, as in `drop_step`.
        """
        owners = [owner for owner in self._owners if steps is None or owner < steps]
        return {
            "losses": foreach.read(self._losses[:steps]).tolist(),
            "norms": foreach.read(self._norms[: 3 * len(owners)]).tolist(),
            "owners": owners,
            "sizes": [list(row) for row in self._sizes[: len(owners)]],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the chunk that `state_dict` returned."""
        self.discard()
        self._losses = [torch.tensor(value, dtype=torch.float64) for value in state["losses"]]
        self._norms = [torch.tensor(value, dtype=torch.float64) for value in state["norms"]]
        self._owners = list(state["owners"])
        self._sizes = [(row[0], row[1]) for row in state["sizes"]]
        self._versions = [loss._version for loss in self._losses]

    def _clear(self) -> None:
        self._losses: list[Tensor] = []
        self._versions: list[int] = []  # of the losses: a copy of each would cost more than this
        self._norms: list[Tensor] = []  # small, big and cosine of each measured step
        self._owners: list[int] = []  # which step each triple belongs to
        self._sizes: list[tuple[float, float]] = []  # effective micro-batch size, batch size
        self._batch_size = 0

    def _append(self, loss: Tensor) -> None:
        self._losses.append(loss)
        self._versions.append(loss._version)

    def _require_complete(self) -> None:
        step = self._step
        if step is not None:
            raise ConfigurationError(
                f"The step was announced with {len(step.shares)} micro-batches and "
                f"{step.done} came. Call after_backward for each, or discard()."
            )

    def _unscaling(self) -> Tensor | None:
        """Return what the gradients have to be multiplied by, if there is a GradScaler."""
        if self._scaler is None:
            return None
        # `scale` multiplies on the device; `get_scale` would wait for it
        one = torch.ones((), device=self._parameters[0].device)
        return self._scaler.scale(one).reciprocal()

    def _measure(self, step: Window, metric: GradientMetric, share: float) -> None:
        """Add the micro-batch's own squared norm: of the difference to what was there before."""
        now = metric.vector(self._unscaling())
        own_sqr = foreach.squared_norm(
            now if step.previous is None else foreach.subtract(now, step.previous)
        )
        # The increment is share x g_i and g_i weighs by its share: share x |g_i|^2 = |.|^2 / share.
        weighted = own_sqr / share
        step.small_sqr = weighted if step.small_sqr is None else step.small_sqr + weighted
        if step.done == step.half:
            step.first_half = now
            step.half_sqr = own_sqr if step.previous is None else foreach.squared_norm(now)
        if step.done < len(step.shares):
            step.previous = now
        else:
            self._record(step, now, own_sqr)

    def _record(self, step: Window, total: list[Tensor], last_sqr: Tensor) -> None:
        assert step.first_half is not None  # noqa: S101 - the half lies before the end
        assert step.half_sqr is not None  # noqa: S101
        assert step.small_sqr is not None  # noqa: S101
        big_sqr = foreach.squared_norm(total)
        if step.first_half is step.previous:  # the second half is the last micro-batch
            rest_sqr = last_sqr
        else:
            rest_sqr = foreach.squared_norm(foreach.subtract(total, step.first_half))
        product = 0.5 * (big_sqr - step.half_sqr - rest_sqr)
        # An exact zero is a gradient that vanished, not an error: no direction, cosine 0.
        cosine = product / (step.half_sqr * rest_sqr).sqrt().clamp_min(1e-300)
        self._norms += [step.small_sqr, big_sqr, cosine]
        self._owners.append(len(self._losses))
        self._sizes.append((self._batch_size / len(step.shares), float(self._batch_size)))
