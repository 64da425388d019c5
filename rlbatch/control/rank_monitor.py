"""A chunk's measurements over all ranks, with one small all-reduce at its end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rlbatch.control.ranks import Ranks
from rlbatch.errors import ConfigurationError
from rlbatch.signals import foreach
from rlbatch.signals.metric import GradientMetric, make_metric
from rlbatch.signals.monitor import ChunkMeasurement, ChunkMonitor, Window
from rlbatch.signals.record import Array


class _AveragedMonitor(ChunkMonitor):
    """Reads a chunk as the mean over ranks of what each has measured."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: Optimizer,
        ranks: Ranks,
        *,
        scaler: Any = None,
    ) -> None:
        """Watch these parameters on this rank; see `ChunkMonitor`."""
        super().__init__(parameters, optimizer, scaler=scaler)
        self._ranks = ranks
        self._kinds = _kinds(self._parameters)  # as the controller was made with them

    def finish(self) -> ChunkMeasurement:
        """Read the chunk, the same on every rank."""
        batch = self._sizes[-1][1] if self._sizes else math.nan
        measured = super().finish()
        # The cosine that two halves of the batch would have, by the same estimates.
        variance = 2.0 * measured.noise_trace / batch
        size = abs(measured.grad_sqr) + variance
        cosine = measured.grad_sqr / size if size > 0.0 else math.nan
        return replace(measured, gradient_cosine=cosine)

    def _read(self, losses: list[Tensor], norms: list[Tensor]) -> Array:
        return self._ranks.mean(super()._read(losses, norms))


class RankMonitor(_AveragedMonitor):
    """Measures the gradient noise from what the ranks have before and after they average.

    A rank's own gradient is that of N / ranks samples, and the one that the optimizer gets that of
    all N: the two batch sizes that the estimate needs. Ranks differ in the first only, whose
    squared norm is averaged over them together with the losses. Hooks on the parameters see a
    rank's own gradients before they are averaged. Where a step has several micro-batches, the
    first one's is taken, which is not synchronised.
    """

    _metric: GradientMetric | None = None
    _own: dict[int, Tensor]
    _handles: Sequence[RemovableHandle] = ()
    _repeated = False

    def begin_step(self, micro_batch_sizes: Sequence[int], *, measured: bool) -> None:
        """Announce an optimizer step; see `ChunkMonitor`.

        Raises:
            ConfigurationError: A parameter was converted, so that nobody averages its gradient.
        """
        self._require_averaged()
        super().begin_step(micro_batch_sizes, measured=measured)

    def _require_averaged(self) -> None:
        """Refuse a model that is no more what `DistributedDataParallel` was made for.

        It averages in hooks on the nodes of autograd's graph in which gradients are accumulated,
        and a parameter of another type or device gets a new node, without them and without a word.
        """
        # All of them at a chunk's start: in each step it would take as long as a small step.
        some = self._parameters if not self._losses else self._parameters[:1]
        if _kinds(some) == self._kinds[: len(some)]:
            return
        both = zip(self._parameters, self._kinds, _kinds(self._parameters), strict=True)
        changed = [(was, new) for p, was, new in both if was != new and p.requires_grad]
        if not changed:
            return
        (was, device), (kind, place) = changed[0]
        raise ConfigurationError(
            f"{len(changed)} parameters were {was} on {device} when the controller was made and "
            f"are {kind} on {place} now. DistributedDataParallel does not average the gradients of "
            "parameters that were converted, and each rank trains a model of its own. Convert the "
            "model first, and make DistributedDataParallel, optimizer and controller behind it."
        )

    @property
    def _is_measuring(self) -> bool:
        return bool(self._handles)

    def _begin_whole(self, samples: int) -> None:
        self._batch_size, self._own, self._repeated = samples, {}, False
        self._metric = metric = make_metric(self._parameters, self._optimizer)
        if metric is not None and samples >= 2:
            unscaling = self._unscaling()
            self._handles = [
                parameter.register_hook(partial(self._take, place, unscaling))
                for place, parameter in enumerate(metric.parameters)
            ]

    def _take(self, place: int, unscaling: Tensor | None, gradient: Tensor) -> None:
        """Take a parameter's own gradient, which comes once a step."""
        assert self._metric is not None  # noqa: S101 - hooks are there only with it
        self._repeated |= place in self._own  # as within reentrant checkpoints, part by part
        gradient = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
        if gradient.dtype != torch.float64:
            gradient = gradient.float()
        if unscaling is not None:
            gradient = gradient * unscaling
        if self._metric.scales is not None:
            gradient = gradient * self._metric.scales[place]
        self._own[place] = foreach.squared_norm([gradient])

    def _measure_whole(self) -> None:
        metric, own = self._metric, list(self._own.values())
        self._forget_step()
        if metric is None or self._repeated or not own:
            return
        big = foreach.squared_norm(metric.gradients(self._unscaling()))
        total, ranks = self._batch_size, self._ranks.world_size
        rank_size = total // ranks + (self._ranks.rank < total % ranks)
        # Weighed by their shares, unequal ranks count as equal ones: see `noise_scale.estimate`.
        small = foreach.together(own).sum() * (total / (ranks * rank_size))
        self._note((small, big, torch.zeros_like(big)), (total / ranks, float(total)))

    def _forget_step(self) -> None:
        super()._forget_step()
        for handle in self._handles:
            handle.remove()
        self._handles, self._metric = (), None

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """Return the chunk so far on this rank; see `ChunkMonitor`."""
        return {**super().state_dict(steps), "rank": self._ranks.rank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the chunk that `state_dict` returned, best on this rank.

        Another rank's measurements stand for this one's, with a warning: within a chunk, the mean
        over ranks and with it the next decision differ from those of the undisturbed run.
        """
        saved = state.get("rank", self._ranks.rank)  # one process has the losses of all samples
        if saved != self._ranks.rank and state["losses"]:
            warnings.warn(
                f"rlbatch: rank {self._ranks.rank} resumes within a chunk with the state of rank "
                f"{saved}. Its own losses of the chunk's first {len(state['losses'])} "
                "steps are lost, and the next decision may be another one. Save "
                "controller.state_dict() on every rank, and load on each its own.",
                RuntimeWarning,
                stacklevel=2,
            )
        super().load_state_dict(state)

    def _measure(self, step: Window, metric: GradientMetric, share: float) -> None:
        if step.done == 1:
            own = foreach.squared_norm(metric.vector(self._unscaling()))
            step.small_sqr = own / share**2
        if step.done < len(step.shares):
            return
        assert step.small_sqr is not None  # noqa: S101 - the first micro-batch set it
        big = foreach.squared_norm(metric.vector(self._unscaling()))
        small = self._batch_size * step.shares[0] / self._ranks.world_size
        self._note((step.small_sqr, big, torch.zeros_like(big)), (small, float(self._batch_size)))


class ShardMonitor(_AveragedMonitor):
    """Measures the gradient noise where each rank has its shard of gradients already averaged.

    The micro-batches' own gradients are then those of all ranks' samples, and the estimate is that
    of one process: squared norms are sums over the ranks' shards. A step of one micro-batch shows
    nothing.
    """

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """Return the chunk so far on this rank; see `ChunkMonitor`."""
        return {**super().state_dict(steps), "shard": self._shard()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the chunk that `state_dict` returned on this rank.

        Raises:
            ConfigurationError: Another rank has saved it, or there were more or fewer of them.
        """
        saved = state.get("shard")
        if saved != self._shard():
            raise ConfigurationError(
                f"Expected the state that [rank, ranks] = {self._shard()} has saved, got that of "
                f"{saved}. With a sharded model save controller.state_dict() on every rank, and "
                "load on each its own, on as many ranks as before."
            )
        super().load_state_dict(state)

    def _shard(self) -> list[int]:
        return [self._ranks.rank, self._ranks.world_size]

    def _read(self, losses: list[Tensor], norms: list[Tensor]) -> Array:
        values = super()._read(losses, norms)
        values[len(losses) :] *= self._ranks.world_size
        return values


def _kinds(parameters: Iterable[nn.Parameter]) -> list[tuple[torch.dtype, torch.device]]:
    return [(parameter.dtype, parameter.device) for parameter in parameters]
