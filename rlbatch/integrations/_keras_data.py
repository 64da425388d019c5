"""Where the samples of a Keras run come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from torch.utils.data import DataLoader, Dataset

from rlbatch.data.worker_samples import fingerprint
from rlbatch.errors import ConfigurationError, DeliveryError

tree: Any = keras.tree  # its annotations name the tensors of every backend at once

Batch = (
    Any  # (inputs, targets, weights) as far as they are there; inputs alone stand for themselves
)


class Indexed:
    """Samples that can be had in any order.

    Attributes:
        size: How many there are.
    """

    def __init__(self, fetch: Callable[[list[int]], Any], size: int) -> None:
        """Take a function from indices to a batch of these samples."""
        self._fetch, self.size = fetch, size

    @classmethod
    def of_arrays(cls, *data: Any) -> Indexed:
        """Take inputs, targets and sample weights, each nested as the model wants it.

        Raises:
            ConfigurationError: They are of different lengths.
        """
        alone = len(data) == 1 and not isinstance(data[0], (list, tuple))  # as `fit` packs it
        arrays = tree.map_structure(_as_array, data[0] if alone else data)
        sizes = {len(array) for array in tree.flatten(arrays)}
        if len(sizes) != 1:
            raise ConfigurationError(
                f"Expected arrays of the same length, got lengths {sorted(sizes)}. Pass inputs, "
                "targets and weights of the same samples."
            )
        return cls(lambda indices: tree.map_structure(lambda a: a[indices], arrays), sizes.pop())

    def take(self, indices: list[int]) -> Batch:
        """Return these samples as one batch."""
        return tree.map_structure(as_keras_does, as_batch(self._fetch(indices)))


class Stream:
    """Samples that come in an order of their own, in blocks of any size.

    Attributes:
        size: Samples of an epoch.
    """

    def __init__(self, epochs: Callable[[int], Iterable[Any]], size: int) -> None:
        """Take a function from an epoch's number to its blocks."""
        self._epochs, self.size = epochs, size
        self._tails: dict[tuple[int, int], str] = {}  # what the sample before a place looks like
        self._blocks: Iterator[Any] = iter(())
        self._rest: Batch | None = None

    def open(self, epoch: int, position: int) -> None:
        """Go to a place in an epoch.

        Raises:
            ConfigurationError: Another sample stands there than in the run that is resumed.
        """
        self._blocks, self._rest = iter(self._epochs(epoch)), None
        if not position:
            return
        expected = self._tails.get((epoch, position))
        self.take(epoch, 0, position)
        if expected is not None and self._tails[epoch, position] != expected:
            raise ConfigurationError(
                f"Sample {position} of epoch {epoch} is another one than in the run that is "
                "resumed: samples would be skipped and repeated. Let the order depend on the epoch "
                "alone: control.dataset(epochs=lambda epoch: ..., size=...)."
            )

    def take(self, epoch: int, start: int, wanted: int) -> Batch:
        """Return the next samples as one batch.

        Args:
            epoch: Number of the epoch.
            start: Place of the first of them.
            wanted: How many.

        Raises:
            DeliveryError: The epoch has not as many samples as was said.
        """
        parts: list[Batch] = []
        while wanted:
            block = self._block()
            if block is None:
                raise DeliveryError(
                    f"Epoch {epoch} of the data has {start} samples, and {self.size} were "
                    "announced. Pass their true number as size=."
                )
            length = len(tree.flatten(block)[0])
            used = min(length, wanted)
            parts.append(tree.map_structure(lambda a, n=used: a[:n], block))
            if used < length:
                self._rest = tree.map_structure(lambda a, n=used: a[n:], block)
            start, wanted = start + used, wanted - used
        if start == self.size and self._block() is not None:
            raise DeliveryError(
                f"Epoch {epoch} of the data has more samples than the {self.size} that were "
                "announced. Pass their true number as size=, and end each epoch after them: "
                "itertools.islice ends a generator, take() a tf.data.Dataset."
            )
        batch = parts[0]
        if len(parts) > 1:
            batch = tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
        self._note(epoch, start, batch)
        return batch

    def tail(self, epoch: int, position: int) -> str | None:
        """Return what the sample in front of a place looks like, if it was read."""
        return self._tails.get((epoch, position))

    def expect(self, epoch: int, position: int, tail: str | None) -> None:
        """Say what stands in front of a place to which a resumed run will go."""
        if tail is not None:
            self._tails[epoch, position] = tail

    def _block(self) -> Batch | None:
        rest, self._rest = self._rest, None
        if rest is not None:
            return rest
        block = next(self._blocks, None)
        return None if block is None else tree.map_structure(as_keras_does, as_batch(block))

    def _note(self, epoch: int, position: int, batch: Batch) -> None:
        last = [np.asarray(array[-1]) for array in tree.flatten(batch)]
        self._tails[epoch, position] = fingerprint(last)
        while len(self._tails) > 1024:  # far more than a pipeline reads ahead
            del self._tails[next(iter(self._tails))]


Source = Indexed | Stream


def make_source(
    data: tuple[Any, Any, Any],
    fetch: Callable[[list[int]], Any] | None,
    epochs: Callable[[int], Iterable[Any]] | None,
    size: int | None,
) -> Source:
    """Return the source that the arguments of `control.dataset` describe.

    Raises:
        ConfigurationError: Something is missing, too much, or endless.
    """
    x, y, weights = data
    if weights is not None and y is None:
        raise ConfigurationError(
            "sample_weight weighs the losses of targets, and there are none. Pass y, too."
        )
    given = [part for part in data if part is not None]
    if [bool(given), fetch is not None, epochs is not None].count(True) != 1:
        raise ConfigurationError(
            "Expected either x (arrays, a tf.data.Dataset, a torch DataLoader or a PyDataset), or "
            "fetch=, or epochs=. Pass one of them."
        )
    if fetch is not None or epochs is not None or _is_stream(x):
        if len(given) > 1:
            raise ConfigurationError(
                f"A {type(x).__name__} holds targets and weights itself: leave out y and "
                "sample_weight."
            )
        size = _require_size(x, size)
        if fetch is not None:
            return Indexed(fetch, size)
        return Stream(lambda epoch: _blocks_of(epochs(epoch) if epochs else x), size)
    arrays = Indexed.of_arrays(*given)
    if size is not None:
        raise ConfigurationError("Arrays have a length: leave out size=.")
    return arrays


def _require_size(x: Any, size: int | None) -> int:
    """Return the samples of an epoch, where they were told or can be counted."""
    if size is None and is_tf_dataset(x) and not _is_batched(x):
        size = int(x.cardinality())
    elif size is None and isinstance(x, DataLoader):
        size = _samples_of(x)
    if size is None or size < 1:
        raise ConfigurationError(
            "Expected the samples of an epoch, by which progress is counted; they are not known. "
            "Pass their number as size=: samples, not batches."
        )
    if isinstance(x, keras.utils.PyDataset) and not _ends(x):
        raise ConfigurationError(
            "Expected a PyDataset that ends, got one without a number of batches. Give it __len__."
        )
    return size


def _ends(dataset: Any) -> bool:
    try:
        return dataset.num_batches is not None
    except NotImplementedError:  # by a PyDataset without __len__
        return False


def _is_stream(x: Any) -> bool:
    return isinstance(x, (keras.utils.PyDataset, DataLoader)) or is_tf_dataset(x)


def _samples_of(loader: Any) -> int | None:
    """Return the samples of an epoch of a torch loader, where it knows them."""
    if loader.batch_size is None or not hasattr(loader.sampler, "__len__"):
        return None
    samples = len(loader.sampler)
    return samples - samples % loader.batch_size if loader.drop_last else samples


def _blocks_of(x: Any) -> Iterable[Any]:
    """Return the blocks of an epoch; a tf.data.Dataset may have single samples."""
    if is_tf_dataset(x):
        return (x if _is_batched(x) else x.batch(_BLOCK)).as_numpy_iterator()
    return _py_dataset(x) if isinstance(x, keras.utils.PyDataset) else x


_BLOCK = 256


def _py_dataset(dataset: Any) -> Iterator[Any]:
    dataset.on_epoch_begin()
    for index in range(dataset.num_batches):
        yield dataset[index]
    dataset.on_epoch_end()


def is_tf_dataset(x: Any) -> bool:
    """Whether it is a `tf.data.Dataset`, without importing TensorFlow."""
    names = {kind.__name__ for kind in type(x).__mro__}
    return "DatasetV2" in names and type(x).__module__.startswith("tensorflow")


_KEEPS_ELEMENTS = ("Prefetch", "Map", "Cache", "Options", "Shuffle", "Repeat", "Take", "Skip")
_OTHERS = ("FlatMap", "Interleave", "Unbatch")


def _is_batched(dataset: Any) -> bool:
    """Whether the elements of a `tf.data.Dataset` are batches, not samples."""
    shapes = [getattr(spec, "shape", None) for spec in tree.flatten(dataset.element_spec)]
    if all(shape is not None and shape.rank and shape[0] is None for shape in shapes):
        return True
    step = dataset
    while step is not None:
        name = type(step).__name__
        if "Batch" in name and "Unbatch" not in name:
            return True
        kept = any(known in name for known in _KEEPS_ELEMENTS)
        if not kept or any(other in name for other in _OTHERS):
            return False
        step = getattr(step, "_input_dataset", None)
    return False


def as_batch(data: Any) -> Batch:
    """Return (inputs, targets, weights) as far as they are there; what is no tuple stays."""
    if not isinstance(data, (tuple, list)):
        return data
    if len(data) > 2 and data[1] is None and data[2] is not None:
        raise ConfigurationError("A batch has sample weights and no targets. Give it targets, too.")
    return tuple(part for part in data if part is not None)


def _as_array(data: Any) -> Any:
    """Return one of the arrays that were given.

    Raises:
        ConfigurationError: It is something else.
    """
    if not hasattr(data, "__next__") and not isinstance(data, Dataset):
        array = as_keras_does(data)
        if array.ndim:
            return array
    raise ConfigurationError(
        f"Expected arrays, a tf.data.Dataset, a torch DataLoader or a PyDataset, got "
        f"{type(data).__name__}. For a generator pass epochs=lambda epoch: generator() and size=, "
        "for a torch Dataset its DataLoader, for a sparse matrix x.toarray() or fetch=."
    )


def as_keras_does(data: Any) -> Any:
    """Return an array as `fit` makes it of its arguments: floats of Keras's precision."""
    array = data if isinstance(data, np.ndarray) else np.asarray(keras.ops.convert_to_numpy(data))
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(keras.config.floatx(), copy=False)
    return array
