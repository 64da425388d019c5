"""Elastic batches of a stream, which has neither indices nor a length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import (
    DataLoader,
    IterableDataset,
    default_collate,  # pyright: ignore[reportUnknownVariableType]
)

from rlbatch.actuation.elastic import ElasticSource
from rlbatch.actuation.loader import loader_options
from rlbatch.actuation.window import plan_window
from rlbatch.errors import ConfigurationError


class ElasticIterable(ElasticSource):
    """Groups a stream's single samples into the micro-batches that are asked for.

    Samples are collated in this process, so a change of the batch size holds from the next window
    on, whatever workers have prefetched. Use it like `ElasticBatchSampler`: `next_delivered` once
    for each batch. It is for one process: ranks whose streams differ in length could not be kept in
    step.
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
            drop_last: Leave out the samples that do not fill the epoch's last window.

        Raises:
            ConfigurationError: A size is not positive.
        """
        super().__init__(batch_size, micro_batch_size, drop_last)
        self.samples = samples
        self.collate = collate or _collate
        self._skip = 0  # samples of the next epoch that were consumed before a resume

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
            ConfigurationError: The loader is map-style, or makes no batches.
        """
        if not isinstance(loader.dataset, IterableDataset):
            raise ConfigurationError(
                "Expected a loader over an IterableDataset, got a map-style one. Use "
                "rlbatch.actuation.elastic_loader, which keeps its sampler."
            )
        if loader.batch_size is None:
            raise ConfigurationError(
                "Expected a loader that puts batches together, got batch_size=None: the dataset "
                "does it itself. Let it yield single samples and pass a batch_size."
            )
        old: Any = loader
        options = loader_options(loader)
        options["collate_fn"] = _as_it_is
        return cls(
            DataLoader(loader.dataset, batch_size=None, **options),
            loader.batch_size if batch_size is None else batch_size,
            collate=old.collate_fn,
            micro_batch_size=micro_batch_size,
            drop_last=loader.drop_last,
        )

    def __iter__(self) -> Iterator[Any]:
        iteration = self._begin_iteration()
        self._queue.start(self._next_epoch, self._skip)
        self._next_epoch += 1
        start, self._skip = self._skip, 0
        stream = islice(self.samples, start, None)
        while window := list(islice(stream, self._requested)):
            if len(window) < self._requested and self.drop_last:
                break
            for batch in self._issue(window, start):
                yield batch
                self._require_current(iteration)
            start += len(window)
        self._exhausted = True

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        The stream is read again up to the place, so it has to repeat.

        Raises:
            ConfigurationError: The state is of another version.
        """
        self._go_to(state)
        self._skip = self._queue.position

    def _issue(self, window: list[Any], start: int) -> Iterator[Any]:
        plan = plan_window(len(window), self._micro_limit, 1, self._measures_next())
        self._queue.issue(plan, self._requested, start, 0)
        offset = 0
        for size in plan.sizes:
            yield self.collate(window[offset : offset + size])
            offset += size


def _as_it_is(sample: Any) -> Any:
    return sample


def _collate(samples: list[Any]) -> Any:
    return default_collate(samples)
