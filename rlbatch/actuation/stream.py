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

from rlbatch.actuation.delivery import Delivered, DeliveryQueue
from rlbatch.actuation.loader import loader_options
from rlbatch.actuation.window import check_batch_size, check_micro_batch_size, plan_window
from rlbatch.errors import ConfigurationError, DeliveryError

_STATE_VERSION = 1


class ElasticIterable:
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
        check_batch_size(batch_size, 1)
        check_micro_batch_size(micro_batch_size)
        self.samples, self.drop_last = samples, drop_last
        self.collate = collate or _collate
        self.measure_next: Callable[[int], bool] | None = None
        """Says of a window's number whether it is to be split in two or more micro-batches."""
        self._requested, self._micro_limit = batch_size, micro_batch_size
        self._queue = DeliveryQueue()
        self._next_epoch = self._skip = self._iteration = 0
        self._exhausted = False

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

    @property
    def requested_batch_size(self) -> int:
        """Batch size of the windows that are yet to be issued."""
        return self._requested

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, or of the next when the last has been consumed whole."""
        return self._queue.epoch + self._is_complete()

    @property
    def position(self) -> int:
        """Samples of the epoch consumed so far, in whole windows."""
        return self._queue.position

    @property
    def windows(self) -> int:
        """Windows consumed since the start of the run."""
        return self._queue.windows

    def set_batch_size(self, batch_size: int) -> None:
        """Change the batch size, from the next window on."""
        check_batch_size(batch_size, 1)
        self._requested = batch_size

    def set_micro_batch_size(self, micro_batch_size: int | None) -> None:
        """Change the limit of a forward pass, from the next window on."""
        check_micro_batch_size(micro_batch_size)
        self._micro_limit = micro_batch_size

    def next_delivered(self) -> Delivered:
        """Return the plan of the micro-batch that was just yielded.

        Raises:
            DeliveryError: It was called more often than batches were yielded.
        """
        return self._queue.pop()

    def __iter__(self) -> Iterator[Any]:
        self._iteration += 1
        iteration = self._iteration
        self._exhausted = False
        self._queue.start(self._next_epoch, self._skip)
        self._next_epoch += 1
        start, self._skip = self._skip, 0
        stream = islice(self.samples, start, None)
        while window := list(islice(stream, self._requested)):
            if len(window) < self._requested and self.drop_last:
                break
            for batch in self._issue(window, start):
                yield batch
                if iteration != self._iteration:
                    raise DeliveryError(
                        "Expected one iterator at a time over an elastic stream, and a second one "
                        "was started. Make one elastic stream for each loop."
                    )
            start += len(window)
        self._exhausted = True

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the run behind the last window that was consumed whole."""
        return {
            "version": _STATE_VERSION,
            "epoch": self._queue.epoch,
            "position": self._queue.position,
            "windows": self._queue.windows,
            "batch_size": self._requested,
            "complete": self._is_complete(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        The stream is read again up to the place, so it has to repeat.

        Raises:
            ConfigurationError: The state is of another version.
        """
        if state.get("version") != _STATE_VERSION:
            raise ConfigurationError(
                f"Expected the state of an ElasticIterable, version {_STATE_VERSION}, got version "
                f"{state.get('version')!r}. Load it with the rlbatch that saved it."
            )
        self.set_batch_size(state["batch_size"])
        complete: bool = state["complete"]
        self._next_epoch = state["epoch"] + complete
        self._skip = 0 if complete else state["position"]
        self._queue.windows = state["windows"]
        self._queue.start(self._next_epoch, self._skip)
        self._exhausted = False
        self._iteration += 1

    def _issue(self, window: list[Any], start: int) -> Iterator[Any]:
        measure = self.measure_next
        measured = measure is not None and measure(self._queue.issued_windows)
        plan = plan_window(len(window), self._micro_limit, 1, measured)
        self._queue.issue(plan, self._requested, start, 0)
        offset = 0
        for size in plan.sizes:
            yield self.collate(window[offset : offset + size])
            offset += size

    def _is_complete(self) -> bool:
        return self._exhausted and not len(self._queue)


def _as_it_is(sample: Any) -> Any:
    return sample


def _collate(samples: list[Any]) -> Any:
    return default_collate(samples)
