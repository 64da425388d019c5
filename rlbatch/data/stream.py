"""Elastic batches of a stream, which has neither indices nor a length."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    default_collate,  # pyright: ignore[reportUnknownVariableType]
)

from rlbatch.data.delivery import IssuedStep, Seen
from rlbatch.data.elastic import ElasticSource
from rlbatch.data.loader import check_in_order, check_owner, loader_options
from rlbatch.data.randomness import Randomness
from rlbatch.data.step_plan import plan_step
from rlbatch.data.worker_samples import WorkerSamples, fingerprint, from_worker
from rlbatch.errors import ConfigurationError


class ElasticIterable(ElasticSource):
    """Groups a stream's single samples into the micro-batches that are asked for.

    Samples are collated in this process, so a change of the batch size holds from the next step
    on, whatever workers have prefetched. Use it like `ElasticBatchSampler`: `next_delivered` once
    for each batch. It is for one process: ranks whose streams differ in length could not be kept in
    step.

    An epoch has every sample that the stream gives, once; there is no `len()`. A resumed run reads
    its epoch again up to the place, which takes the time of reading, and sees the same samples if
    the stream repeats itself from the same random state.
    """

    def __init__(
        self,
        samples: Iterable[Any],
        batch_size: int,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        micro_batch_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        """Wrap a stream.

        Args:
            samples: Gives single samples; an iteration of it is an epoch.
            batch_size: Samples of an optimizer step.
            collate: Makes a batch of a list of samples; None for torch's default.
            micro_batch_size: Most samples of one forward pass; None for no limit.
            drop_last: Leave out the samples that do not fill the epoch's last step.

        Raises:
            ConfigurationError: A size is not positive.
        """
        super().__init__(batch_size, micro_batch_size, drop_last)
        self.samples = samples
        self.collate = collate or _collate
        self._randomness = Randomness(samples, within=(Dataset,))
        self._start: dict[str, Any] = {}  # random states at the epoch's start
        self._compared = False

    @classmethod
    def from_loader(
        cls,
        loader: DataLoader[Any],
        batch_size: int | None = None,
        *,
        micro_batch_size: int | None = None,
    ) -> ElasticIterable:
        """Take over an iterable-style loader with its workers, which then send single samples.

        Raises:
            ConfigurationError: The loader is map-style, makes no batches or not in order. While
                iterating: several workers read the same samples.
        """
        if not isinstance(loader.dataset, IterableDataset):
            raise ConfigurationError(
                "Expected a loader over an IterableDataset, got a map-style one. Use "
                "rlbatch.data.elastic_loader, which keeps its sampler."
            )
        if loader.batch_size is None:
            raise ConfigurationError(
                "Expected a loader that puts batches together, got batch_size=None: the dataset "
                "does it itself. Let it yield single samples and pass a batch_size."
            )
        check_in_order(loader)
        check_owner(loader)
        old: Any = loader
        options = loader_options(loader)
        options["collate_fn"] = from_worker
        return cls(
            WorkerSamples(DataLoader(loader.dataset, batch_size=None, **options)),
            loader.batch_size if batch_size is None else batch_size,
            collate=old.collate_fn,
            micro_batch_size=micro_batch_size,
            drop_last=loader.drop_last,
        )

    def __iter__(self) -> Iterator[Any]:
        iteration = self._begin_iteration()
        stream = self._start_epoch()
        self.begun_at = torch.get_rng_state()
        start = self._queue.position
        while True:
            planned, size = self._next_planned()
            size = self._joined(size, start) if planned is None else size
            step = list(islice(stream, size))
            if not step or (len(step) < size and self.drop_last):
                break
            for batch in self._issue(planned, step, start):
                yield batch
                self._require_current(iteration)
            start += len(step)
        self._exhausted = True
        self._compare_with_estimate(start)

    def _compare_with_estimate(self, samples: int) -> None:
        """Warn, once, where an epoch had not nearly as many samples as its length says."""
        told = self.epoch_size
        if told is None or self._compared or told / 2 <= samples <= told * 2:
            return
        self._compared = True
        warnings.warn(
            f"rlbatch: the stream's __len__ says {told} samples, and an epoch had {samples}. "
            "Progress and the largest batch size go by it: let it estimate the samples of an "
            "epoch, not its batches.",
            RuntimeWarning,
            stacklevel=2,
        )

    def state_dict(self, rewind_to: Tensor | None = None) -> dict[str, Any]:
        """Return the place in the run and the epoch's random states; see the base class."""
        state = super().state_dict(rewind_to)
        if self._resume_from is not None:
            return {**state, "order": self._resume_from}
        now = self._randomness.state()
        if now and rewind_to is not None:
            now["global"]["torch"] = rewind_to
        return {**state, "order": {"start": self._start, "now": now}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; the next iteration yields the rest of its epoch.

        Raises:
            ConfigurationError: The state is of another version.
        """
        self._go_to(state)
        order = state["order"]
        self._resume_from = None
        if state["complete"]:
            self._randomness.restore(order["now"])
        elif order["start"]:
            self._resume_from = order

    def _start_epoch(self) -> Iterator[Any]:
        epoch = self._next_epoch
        self._next_epoch += 1
        order, self._resume_from = self._resume_from, None
        if order is None:
            self._planned.clear()
            self._queue.start(epoch, 0)
            self._start = self._randomness.state()
            return iter(self.samples)
        position, tail = self._queue.position, self._queue.tail
        self._queue.start(epoch, position, tail)
        self._start = order["start"]
        self._randomness.restore(self._start)
        stream = iter(self.samples)
        last: deque[Any] = deque(islice(stream, position), maxlen=1)
        if tail and [fingerprint(sample) for sample in last] != list(tail):
            warnings.warn(
                f"rlbatch: sample {position} of the stream is another one than in the run that is "
                "resumed. If only its augmentation is random, nothing is lost. If its order is, "
                "samples are skipped and repeated: draw it from a seed of the dataset's own.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._randomness.restore_global(order["now"]["global"])
        return stream

    def _issue(self, planned: IssuedStep | None, step: list[Any], start: int) -> Iterator[Any]:
        issued = self._step(planned, len(step), start, (Seen(fingerprint(step[-1])),))
        plan = plan_step(issued.samples, issued.micro_batch_size)
        self._queue.issue(issued, plan, 0)
        offset = 0
        for size in plan.sizes:
            yield self.collate(step[offset : offset + size])
            offset += size


def _collate(samples: list[Any]) -> Any:
    return default_collate(samples)
