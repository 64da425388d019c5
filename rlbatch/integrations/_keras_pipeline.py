"""The pipelines that carry a Keras run's samples to the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rlbatch.control.step_planner import StepPlanner
from rlbatch.errors import ConfigurationError
from rlbatch.integrations._keras_data import Batch, Indexed, Source, Stream

tree: Any = keras.tree  # its annotations name the tensors of every backend at once


def batches(planner: StepPlanner, source: Source) -> Iterator[Batch]:
    """Yield the batches of an epoch, as the planner plans them."""
    is_open = False
    for issued in planner.iterate():
        try:
            if isinstance(source, Indexed):
                batch = source.take(issued.indices)
            else:
                if issued.is_peek or not is_open:
                    source.open(issued.epoch, issued.start)
                    is_open = True
                batch = source.take(issued.epoch, issued.start, len(issued.indices))
        except Exception as error:
            planner.error = error  # a pipeline may turn it into one of its own
            raise
        yield batch


def make_pipeline(planner: StepPlanner, source: Source, prefetch: int, workers: int) -> Any:
    """Return what `fit` trains on.

    Args:
        planner: Plans the batches.
        source: Has the samples.
        prefetch: Batches that are made while the model trains; with workers, by each of them.
        workers: Processes that load samples, with torch.
    """
    if keras.backend.backend() == "torch":
        return _torch_pipeline(planner, source, prefetch, workers)
    if isinstance(source, Stream):
        source.open(0, 0)
        return _tensorflow_pipeline(planner, source, source.take(0, 0, 1), prefetch)
    return _tensorflow_pipeline(planner, source, source.take([0]), prefetch)


def draw_as_keras_does(source: Source | None) -> None:
    """Draw what torch draws for the iteration that Keras begins behind each epoch of arrays.

    From the same generator comes dropout.
    """
    if keras.backend.backend() == "torch" and isinstance(source, Indexed):
        torch.empty((), dtype=torch.int64).random_()


def _tensorflow_pipeline(planner: StepPlanner, source: Source, sample: Any, prefetch: int) -> Any:
    import tensorflow as tf

    def spec(array: Any) -> Any:
        return tf.TensorSpec([None, *array.shape[1:]], tf.as_dtype(array.dtype))

    # Several inputs or targets as a list: TensorFlow would take that for one array.
    dataset = tf.data.Dataset.from_generator(
        lambda: map(tree.lists_to_tuples, batches(planner, source)),
        output_signature=tree.lists_to_tuples(tree.map_structure(spec, sample)),
    )
    if prefetch:
        dataset = dataset.prefetch(prefetch)
    options = tf.data.Options()
    # TensorFlow would read ahead by itself, as far as it likes.
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


def _torch_pipeline(
    planner: StepPlanner, source: Source, prefetch: int, workers: int
) -> DataLoader[Any]:
    if isinstance(source, Stream):
        streamed = _Streamed(planner, source)
        return DataLoader(streamed, batch_size=None, collate_fn=_as_tensors)
    return DataLoader(
        _ByIndices(source),
        sampler=_Order(planner),
        batch_size=None,
        collate_fn=_as_tensors,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
    )


def check_reading_ahead(source: Source, prefetch: int, workers: int) -> int:
    """Return the optimizer steps that a pipeline reads ahead.

    Raises:
        ConfigurationError: The backend's pipeline cannot do so.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        if workers:
            raise ConfigurationError(
                "Worker processes are torch's way of loading. With TensorFlow, use prefetch= and "
                "dataset.map(..., num_parallel_calls=...)."
            )
        return prefetch
    if workers and isinstance(source, Stream):
        raise ConfigurationError(
            "A stream is read in this process, in its order. Leave out workers=, or pass a "
            "function from indices to a batch, and size=."
        )
    if bool(workers) != bool(prefetch):
        raise ConfigurationError(
            f"With torch it is worker processes that read ahead: give both workers= and prefetch= "
            f"(batches a worker), or neither; got {workers} and {prefetch}."
        )
    return workers * prefetch


class _Order:
    """The indices of one batch after the other."""

    def __init__(self, planner: StepPlanner) -> None:
        self._planner = planner

    def __iter__(self) -> Iterator[list[int]]:
        return (issued.indices for issued in self._planner.iterate())


class _ByIndices(Dataset[Any]):
    """Whole batches by the indices of their samples. Without a length: there is none to know."""

    def __init__(self, source: Indexed) -> None:
        self._source = source

    def __getitem__(self, indices: Any) -> Any:
        return self._source.take(indices)


class _Streamed(IterableDataset[Any]):
    def __init__(self, planner: StepPlanner, source: Source) -> None:
        self._planner, self._source = planner, source

    def __iter__(self) -> Iterator[Any]:
        return batches(self._planner, self._source)


def _as_tensors(batch: Any) -> Any:
    return tree.map_structure(torch.as_tensor, batch)
