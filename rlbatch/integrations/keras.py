"""Keras 3's `model.fit`, on TensorFlow or torch, with a batch size that a controller adapts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Unpack

from rlbatch.arguments import require_function, require_switch, require_whole
from rlbatch.control.build import named_policy
from rlbatch.control.config import ControllerConfig
from rlbatch.control.limits import require_samples
from rlbatch.control.saved_state import all_or_nothing, check_state, require_like
from rlbatch.control.settings import Settings, make_config
from rlbatch.control.step_planner import StepPlanner
from rlbatch.data.order import ShuffledSampler
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.extras import needs_extra
from rlbatch.policy.base import Policy

with needs_extra("keras", "keras"):
    from rlbatch.integrations._keras_backup import Backup

from rlbatch.integrations._keras_checks import check_backend
from rlbatch.integrations._keras_data import Indexed, Source, Stream, make_source
from rlbatch.integrations._keras_pipeline import (
    check_reading_ahead,
    draw_as_keras_does,
    make_pipeline,
)
from rlbatch.integrations._keras_run import TrainFunction
from rlbatch.integrations._keras_view import REMEDY, RunView

__all__ = ["Backup", "BatchSizeControl"]


class _EpochOver:
    """Ends an epoch of `fit`, not the training, in the place of True.

    Keras counts the batches of the first epoch and takes the number for all others. An epoch that
    is left by `model.stop_training` is not counted.
    """


_EPOCH_OVER = _EpochOver()


class BatchSizeControl(RunView):
    """Adapts the batch size of `model.fit` while it trains.

        control = BatchSizeControl(batch_size=64)
        model.fit(control.dataset(x, y), epochs=5, callbacks=[control])

    One belongs to one run: several calls of `fit` continue it.

    Attributes:
        config: The settings.
        base_batch_size: For which the optimizer's learning rate was chosen.
        fit_epoch: Epochs that this `fit` has completed, as Keras counts them.
    """

    def __init__(
        self,
        batch_size: int,
        policy: Policy | str = "default",
        config: ControllerConfig | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """Prepare a controller.

        Args:
            batch_size: For which the optimizer's learning rate was chosen.
            policy: A name (`default`, `fixed`, `goodput`, a policy file ...) or a policy.
            config: The settings, or give them as further arguments.
            **settings: Fields of `ControllerConfig` and of its parts.

        Raises:
            ConfigurationError: Settings contradict themselves, or Keras runs on JAX.
            UnknownNameError: There is no policy of that name.
        """
        check_backend()
        self.config = make_config(config, settings)
        _ = self.config.limits.known_micro_batch_size  # refuses what no fit could follow
        named_policy(policy, self.config)  # likewise
        super().__init__(require_samples("batch_size", batch_size))
        self._policy = policy
        self._source: Source | None = None
        self._state: Mapping[str, Any] | None = None  # that was loaded and not yet applied
        self._place_before: tuple[dict[str, Any], ControllerConfig] | None = None  # it was loaded
        self._last_epoch: int | None = None  # of a `fit` that has not begun its first one
        self.fit_epoch = 0

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
        if self._planner is not None:
            raise ConfigurationError("A control has one data set, and it was made already.")
        size = None if size is None else require_samples("size", size)
        shuffle = None if shuffle is None else require_switch("shuffle", shuffle)
        seed = require_whole("seed", seed, "a whole number", 0)
        prefetch = require_whole("prefetch", prefetch, "a whole number of batches", 0)
        workers = require_whole("workers", workers, "a whole number of processes", 0)
        require_function("fetch", fetch, "a function of a list of indices")
        require_function("epochs", epochs, "a function of an epoch's number")
        source = make_source((x, y, sample_weight), fetch, epochs, size)
        if isinstance(source, Stream) and shuffle:
            raise ConfigurationError(
                "A stream comes in an order of its own. Shuffle it where it is made."
            )
        shuffled = isinstance(source, Indexed) and shuffle is not False
        order = ShuffledSampler(source.size, seed) if shuffled else range(source.size)
        lag = check_reading_ahead(source, prefetch, workers)
        planner = StepPlanner(order, source.size, self.base_batch_size, lag, REMEDY)
        self._source, self._planner = source, planner
        return make_pipeline(planner, source, prefetch, workers)

    # -- what Keras calls --

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse what cannot be steered."""
        self._require_planner()
        params: dict[str, Any] = self.params or {}
        if params.get("steps") is not None:
            raise ConfigurationError(
                f"fit was told, or found, that an epoch has {params['steps']} steps; how many "
                "there are depends on sizes yet to be decided. Call model.fit(control.dataset(x, "
                "y), callbacks=[control]) without steps_per_epoch: an epoch ends with its last "
                "sample."
            )
        self._last_epoch = params.get("epochs") or 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Plan an epoch; with the first one of a `fit`, take over the model's steps."""
        last, self._last_epoch = self._last_epoch, None
        if last is not None:  # only now it is known where `fit` begins
            self.config = self.config.lasting(last - epoch)
            self._begin(self.model)
        if epoch and not self.epoch and not self.steps:
            warnings.warn(
                f"rlbatch: fit begins at epoch {epoch} (counted from 0) and the controller at its "
                "own first one: of the epochs before, it knows neither orders nor decisions. Use "
                "control.backup(folder) in the place of BackupAndRestore, or load the state of "
                "control.state_dict().",
                RuntimeWarning,
                stacklevel=2,
            )
        self.fit_epoch = epoch
        self._require_function().begin_epoch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """End the epoch after its last sample."""
        if not self.epoch_is_over:
            return
        draw_as_keras_does(self._source)
        model: Any = self.model
        if not model.stop_training:
            model.stop_training = _EPOCH_OVER

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Take the validation loss."""
        model: Any = self.model
        if model.stop_training is _EPOCH_OVER:
            model.stop_training = False
        elif not model.stop_training and not self.epoch_is_over:
            planner = self._require_planner()
            raise DeliveryError(
                f"The epoch ended after {planner.position} of {planner.size} samples. Leave out "
                "what drops samples after control.dataset(...): take, filter, skip."
            )
        self.fit_epoch = epoch + 1
        if logs is not None:
            if "val_loss" in logs:
                self.report_validation(logs["val_loss"])
            logs["batch_size"] = self.batch_size

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave model and optimizer as they were."""
        self.detach()

    # -- saving and going on --

    def backup(
        self, folder: str | os.PathLike[str], save_freq: int | str = "epoch", *, delete: bool = True
    ) -> Backup:
        """Return a callback that saves the run and goes on with it; see `Backup`."""
        return Backup(self, folder, save_freq, delete)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last optimizer step; `torch.load` reads it safely.

        Save the model's weights and its optimizer's at the same moment, or use `backup`.
        """
        planner, tail = self._require_planner(), None
        if isinstance(self._source, Stream):
            tail = self._source.tail(planner.epoch, planner.position)
        state = self._require_function().state_dict()
        return {**state, "tail": tail, "epochs": self.config.epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, with the next `fit`.

        Make the data set as before, load model and optimizer, and call `fit` with the epochs that
        are left. The log is continued after the decisions that the state knows of.

        Raises:
            ConfigurationError: The state is of another version or batch size, or of other data.
        """
        check_state(state, self.base_batch_size)
        planner = self._require_planner()
        with all_or_nothing(self):
            place = planner.state_dict()
            own = {"tail": None, "epochs": None, "fit": {}, "control_loop": {}, "loader": place}
            require_like({name: state[name] for name in own}, own, "the controller's state")
            self._place_before = place, self.config
            planner.load_state_dict(state["loader"])
            if isinstance(self._source, Stream):
                self._source.expect(planner.epoch, planner.position, state["tail"])
            if state["epochs"]:  # a `fit` of those that are left would tell too few
                self.config = self.config.lasting(state["epochs"])
            self._state = state
        self.detach()
        self._function = None

    def resume(self, state: Mapping[str, Any], model: Any) -> None:
        """Continue from a state within a `fit` that is about to begin; for `Backup`."""
        self.load_state_dict(state)
        self._begin(model)

    def _begin(self, model: Any) -> None:
        function = self._function
        if function is not None and not function.belongs_to(model):
            raise ConfigurationError(
                "A control belongs to one model and one optimizer, and these are others. Make a "
                "new BatchSizeControl."
            )
        if function is None:
            planner, state = self._require_planner(), self._state
            self._state = None  # one that is refused is not tried again
            with self._as_before(planner):
                function = TrainFunction(
                    model, planner, self._policy, self.config, state, self._hooks
                )
            self._function = function
        function.install()

    @contextmanager
    def _as_before(self, planner: StepPlanner) -> Generator[None]:
        """Go back to where the data were if a state that was loaded is refused in the block."""
        before, self._place_before = self._place_before, None
        try:
            yield
        except BaseException:
            if before is not None:
                planner.load_state_dict(before[0])
                self.config = before[1]
            raise
