"""Single samples that the workers of an iterable-style loader send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from rlbatch.errors import ConfigurationError

_COMPARED = 8  # samples of each worker
_SHOWN = 64  # elements of an array, characters of a text
_PLAIN = (int, float, complex, bool, str, bytes, type(None))


class WorkerSamples:
    """Yields the samples of a loader made with `batch_size=None` and `collate_fn=from_worker`.

    Workers that all read the whole stream would repeat each sample. That is noticed by their first
    samples, before any is handed out.

    Attributes:
        loader: The loader.
        dataset: Its dataset.
        generator: Its generator, if it has one.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        """Wrap the loader."""
        self.loader = loader
        self.dataset = loader.dataset
        self.generator = cast("Any", loader).generator

    def __iter__(self) -> Iterator[Any]:
        samples = iter(self.loader)
        workers = self.loader.num_workers
        if workers > 1:
            head = list(islice(samples, workers * _COMPARED))
            _require_shares(head, workers)
            samples = chain(head, samples)
        return (sample for _, sample in samples)


def from_worker(sample: Any) -> tuple[int, Any]:
    """Return the sample with the number of the worker that read it."""
    worker = get_worker_info()
    return (0 if worker is None else worker.id), sample


def fingerprint(sample: Any) -> str:
    """Return a text that tells most samples from each other, at a cost that does not grow."""
    if isinstance(sample, Tensor):
        if sample.layout is not torch.strided:
            return f"{type(sample).__name__}{tuple(sample.shape)}"
        few: Any = sample.detach().flatten()[:_SHOWN]
        return f"{tuple(sample.shape)}{few.tolist()}"
    if isinstance(sample, np.ndarray):
        array: Any = cast("Any", sample)
        return f"{array.shape}{array.reshape(-1)[:_SHOWN].tolist()}"
    if isinstance(sample, (list, tuple)):
        parts = cast("list[Any]", sample)[:_SHOWN]
        return f"[{', '.join(map(fingerprint, parts))}]"
    if isinstance(sample, Mapping):
        entries = cast("Mapping[Any, Any]", sample)
        shown = islice(entries.items(), _SHOWN)
        return f"{{{', '.join(f'{key}: {fingerprint(value)}' for key, value in shown)}}}"
    if isinstance(sample, _PLAIN):
        return repr(sample[:_SHOWN] if isinstance(sample, (str, bytes)) else sample)
    return type(sample).__name__


def _require_shares(head: list[tuple[int, Any]], workers: int) -> None:
    seen: list[list[str]] = [[] for _ in range(workers)]
    for worker, sample in head:
        seen[worker].append(fingerprint(sample))
    # A stream whose samples are all alike does not tell.
    if len(set(seen[0])) > 1 and all(samples == seen[0] for samples in seen):
        raise ConfigurationError(
            f"Expected each of {workers} workers to read its own share of the stream, and all of "
            "them read the same samples, which would be seen several times. Let the dataset's "
            "__iter__ yield every n-th sample (worker = torch.utils.data.get_worker_info(): "
            "itertools.islice(stream, worker.id, None, worker.num_workers)), or use num_workers=1."
        )
