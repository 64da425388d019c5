"""Keras 3's `model.fit`, on TensorFlow or torch, with a batch size that a controller adapts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rlbatch.data.order import ShuffledSampler
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.extras import needs_extra

with needs_extra("keras", "keras"):
    import keras  # noqa: F401 - the modules below take it for granted

from rlbatch.integrations._keras_backup import Backup
from rlbatch.integrations._keras_checks import check_fit
from rlbatch.integrations._keras_control import ControlledFit
from rlbatch.integrations._keras_data import Indexed, Stream, make_source
from rlbatch.integrations._keras_flow import Flow
from rlbatch.integrations._keras_pipeline import (
    check_reading_ahead,
    draw_as_keras_does,
    make_pipeline,
)

__all__ = ["Backup", "BatchSizeControl"]


class _EpochOver:
    """Ends an epoch of `fit`, not the training, in the place of True.

    Keras counts the batches of the first epoch and takes the number for all others. An epoch that
    is left by `model.stop_training` is not counted.
    """


_EPOCH_OVER = _EpochOver()


class BatchSizeControl(ControlledFit):
    """Adapts the batch size of `model.fit` while it trains.

        control = BatchSizeControl(batch_size=64)
        model.fit(control.dataset(x, y), epochs=5, callbacks=[control])

    One belongs to one run: several calls of `fit` continue it.
    """

    def dataset(  # noqa: PLR0913 - keywords, each for itself
        self,
        x: Any = None,
        y: Any = None,
        sample_weight: Any = None,
        *,
        fetch: Callable[[list[int]], Any] | None = None,
        epochs: Callable[[int], Iterable[Any]] | None = None,
        size: int | None = None,
        shuffle: bool | None = None,
        seed: int = 0,
        prefetch: int = 0,
        workers: int = 0,
    ) -> Any:
        """Return what `fit` trains on: a `tf.data.Dataset`, with torch a `DataLoader`.

        Args:
            x: Inputs as arrays; or a `tf.data.Dataset` of single samples, or a `PyDataset`, whose
                order is kept.
            y: Targets.
            sample_weight: Weights.
            fetch: In place of arrays, a function from a list of indices to these samples as a
                batch `(x, y)`.
            epochs: In place of a stream, a function from an epoch's number to one, or to blocks
                `(x, y)` of any size: a run that is resumed finds the same order.
            size: Samples of an epoch, where they cannot be counted.
            shuffle: Draw an order for each epoch, from seed and epoch alone; None: where the
                samples have no order of their own.
            seed: Of these orders.
            prefetch: Batches that are made while the model trains. A change of the size takes
                effect so many steps later. With torch, those of each worker.
            workers: With torch, processes that load samples.

        Raises:
            ConfigurationError: The samples cannot be regrouped or counted, or there is a data set
                already.
        """
        if self._flow is not None:
            raise ConfigurationError("A control has one data set, and it was made already.")
        source = make_source((x, y, sample_weight), fetch, epochs, size)
        if isinstance(source, Stream) and shuffle:
            raise ConfigurationError(
                "A stream comes in an order of its own. Shuffle it where it is made."
            )
        shuffled = isinstance(source, Indexed) and shuffle is not False
        order = ShuffledSampler(source.size, seed) if shuffled else range(source.size)
        lag = check_reading_ahead(source, prefetch, workers)
        self._source, self._flow = source, Flow(order, source.size, self.base_batch_size, lag)
        return make_pipeline(self._flow, source, prefetch, workers)

    # -- what Keras calls --

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Take over the model's steps."""
        check_fit(self.params or {})
        self._require_flow()
        self.config = self.config.lasting((self.params or {}).get("epochs") or 0)
        self._begin(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Plan an epoch."""
        self.fit_epoch = epoch
        self._require_run().begin_epoch(self._policy_name)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """End the epoch behind its last sample."""
        if not self.epoch_is_over:
            return
        draw_as_keras_does(self._source)
        model: Any = self.model
        if not model.stop_training:
            model.stop_training = _EPOCH_OVER

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Take the validation loss."""
        run = self._require_run()
        model: Any = self.model
        if model.stop_training is _EPOCH_OVER:
            model.stop_training = False
        elif not model.stop_training and not run.epoch_is_over:
            flow = self._require_flow()
            raise DeliveryError(
                f"The epoch ended after {flow.position} of {flow.size} samples. Leave out what "
                "drops samples behind control.dataset(...): take, filter, skip."
            )
        self.fit_epoch = epoch + 1
        if logs is not None:
            if "val_loss" in logs:
                self.report_validation(logs["val_loss"])
            logs["batch_size"] = self.batch_size

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave model and optimizer as they were."""
        self.detach()
