"""The torch side of the signals: watches a chunk's steps and reads the device once at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.errors import ConfigurationError
from rlbatch.signals import foreach
from rlbatch.signals.chunk_state import checked_variances
from rlbatch.signals.measurement import ChunkMeasurement, Window, chunk_measurement
from rlbatch.signals.metric import GradientMetric, has_metric, make_metric
from rlbatch.signals.sample_noise import SampleGradients

__all__ = ["ChunkMeasurement", "ChunkMonitor", "Window"]


_WHOLE = Window((1.0,), None, 0)  # stands for any step of one micro-batch; never changed


class ChunkMonitor:
    """Collects losses and gradient norms of a chunk as device tensors.

    Per optimizer step: `begin_step`, then `after_backward` for each micro-batch before anything
    clips or unscales the gradients. At the end of the chunk, `finish`. Nothing is read from the
    device in between, and no gradient is changed. Where a step has several micro-batches, noise is
    measured by the difference between their gradients; where it has one, by its samples'
    (`rlbatch.signals.sample_noise`).
    """

    _read = staticmethod(foreach.read)
    """Returns what the chunk left on the device as one array, moved from there together."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: Optimizer,
        *,
        scaler: Any = None,
        model: nn.Module | None = None,
    ) -> None:
        """Watch these parameters.

        Args:
            parameters: Of the model; shared ones count once, frozen ones not at all.
            optimizer: Its kind and second moments choose the metric.
            scaler: A `torch.amp.GradScaler` in use, whose factor is divided out.
            model: Whose layers are watched in measured steps of one micro-batch; None leaves these
                unmeasured.
        """
        self._parameters = tuple(parameters)
        self._optimizer = optimizer
        self._scaler = scaler
        self._step: Window | None = None
        self._asked = False  # for the noise of the step under way
        self._samples = None if model is None else SampleGradients(model)
        self._chunks = 0
        self._clear()

    def begin_step(self, micro_batch_sizes: Sequence[int], *, measured: bool) -> None:
        """Announce an optimizer step.

        Args:
            micro_batch_sizes: Samples of each of its micro-batches. Their gradients accumulate
                weighted by their share of the sum.
            measured: Measure gradient noise, if the optimizer has the state for it.

        Raises:
            ConfigurationError: A micro-batch is missing from the previous step, or there is none.
        """
        if self._step is not None:
            self._require_complete()
        if len(micro_batch_sizes) == 1 and micro_batch_sizes[0] > 0:
            self._step = _WHOLE  # nearly all steps: they have to cost next to nothing
            self._asked = measured
            if measured:
                self._begin_whole(round(micro_batch_sizes[0]))
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
            if self._asked and self._is_measuring:
                self._measure_whole()
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
            self._losses.append(loss)
            self._versions.append(loss._version)
            self._step = None

    def leave_unmeasured(self) -> None:
        """Measure no noise in the step under way, whose parts are weighted in another way."""
        if self._step is not None and self._step is not _WHOLE:
            self._step.metric = None

    def finish(self) -> ChunkMeasurement:
        """Read the chunk from the device, in one transfer, and start the next one.

        Raises:
            ConfigurationError: A micro-batch of the last step is missing.
        """
        self._require_complete()
        steps, owners, sizes = len(self._losses), self._owners, self._sizes
        self._chunks += 1
        kept = [now._version == was for now, was in zip(self._losses, self._versions, strict=True)]
        values = self._read(self._losses, [*self._norms, *self._variances])
        self._clear()
        # What the loop has changed in place since then is no loss any more, which is no fault.
        known = None if all(kept) else np.array(kept, dtype=bool)
        norms = values[steps : steps + 3 * len(owners)]
        variances = values[steps + 3 * len(owners) :]
        return chunk_measurement(values[:steps], norms, owners, sizes, known, variances)

    def drop_step(self, steps: int | None = None) -> None:
        """Forget the step under way.

        Args:
            steps: Of the chunk that the optimizer made: one whose backward passes are all done
                and that it did not make is forgotten too. None keeps that.
        """
        self._forget_step()
        if steps is not None:
            measured = sum(owner < steps for owner in self._owners)
            del self._losses[steps:], self._versions[steps:], self._norms[3 * measured :]
            del self._owners[measured:], self._sizes[measured:], self._variances[measured:]

    def discard(self) -> None:
        """Forget the chunk and the step under way."""
        self._forget_step()
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
            "variances": foreach.read(self._variances[: len(owners)]).tolist(),
            "chunks": self._chunks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the chunk that `state_dict` returned."""
        variances = checked_variances(state)
        self.discard()
        self._losses = [torch.tensor(value, dtype=torch.float64) for value in state["losses"]]
        self._norms = [torch.tensor(value, dtype=torch.float64) for value in state["norms"]]
        self._owners = list(state["owners"])
        self._sizes = [(row[0], row[1]) for row in state["sizes"]]
        self._versions = [loss._version for loss in self._losses]
        self._variances = [torch.tensor(value, dtype=torch.float64) for value in variances]
        self._chunks = state.get("chunks", 0)

    def _clear(self) -> None:
        self._losses: list[Tensor] = []
        self._versions: list[int] = []  # of the losses: a copy of each would cost more than this
        self._norms: list[Tensor] = []  # small, big and cosine of each measured step
        self._owners: list[int] = []  # which step each triple belongs to
        self._sizes: list[tuple[float, float]] = []  # effective micro-batch size, batch size
        self._variances: list[Tensor] = []  # of each one's tr(Sigma); 0 where only a formula says
        self._batch_size = 0

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
        size = float(self._batch_size)
        self._note((step.small_sqr, big_sqr, cosine), (size / len(step.shares), size))

    def _note(
        self,
        norms: tuple[Tensor, Tensor, Tensor],
        sizes: tuple[float, float],
        variance: Tensor | None = None,
    ) -> None:
        self._norms += norms
        self._owners.append(len(self._losses))
        self._sizes.append(sizes)
        self._variances.append(torch.zeros_like(norms[0]) if variance is None else variance)

    @property
    def _is_measuring(self) -> bool:
        return self._samples is not None and self._samples.is_measuring

    def _begin_whole(self, samples: int) -> None:
        if self._samples is not None and has_metric(self._parameters, self._optimizer):
            self._batch_size = samples
            seed = f"{self._chunks}/{len(self._losses)}"
            self._samples.begin(samples, seed, self._unscaling())

    def _measure_whole(self) -> None:
        assert self._samples is not None  # noqa: S101 - it is measuring
        metric = make_metric(self._parameters, self._optimizer)
        noise = self._samples.finish(metric)
        if noise is not None:
            self._note(noise[:3], (1.0, float(self._batch_size)), noise.variance)

    def _forget_step(self) -> None:
        self._step = None
        if self._samples is not None:
            self._samples.abandon()
