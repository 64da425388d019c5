"""Keras 3's `model.fit`, on TensorFlow or torch, with a batch size that a controller adapts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

from rlbatch.actuation.order import ShuffledSampler
from rlbatch.control.config import ControllerConfig
from rlbatch.errors import ConfigurationError, DeliveryError, MissingExtraError
from rlbatch.policy.base import Policy
from rlbatch.policy.registry import resolve_policy

try:
    import keras
except ImportError as error:
    raise MissingExtraError("keras", "keras") from error

from rlbatch.integrations._keras_backup import Backup
from rlbatch.integrations._keras_checks import check_backend, check_fit
from rlbatch.integrations._keras_data import Indexed, Source, Stream, make_source
from rlbatch.integrations._keras_flow import Flow
from rlbatch.integrations._keras_pipeline import (
    check_reading_ahead,
    draw_as_keras_does,
    make_pipeline,
)
from rlbatch.integrations._keras_run import ControlledRun

STATE_VERSION = 1


class _EpochOver:
    """Ends an epoch of `fit`, not the training, in the place of True.

    Keras counts the batches of the first epoch and takes the number for all others. An epoch that
    is left by `model.stop_training` is not counted.
    """


_EPOCH_OVER = _EpochOver()


class BatchSizeControl(keras.callbacks.Callback):
    """Adapts the batch size of `model.fit` while it trains.

        control = BatchSizeControl(batch_size=64)
        model.fit(control.dataset(x, y), epochs=5, callbacks=[control])

    One belongs to one run: several calls of `fit` continue it.

    Attributes:
        config: The settings.
        base_batch_size: For which the optimizer's learning rate was chosen.
        policy: Decides.
        fit_epoch: Epochs that this `fit` has completed, as Keras counts them.
    """

    def __init__(
        self,
        batch_size: int,
        policy: Policy | str = "default",
        config: ControllerConfig | None = None,
        **settings: Any,
    ) -> None:
        """Prepare a controller.

        Args:
            batch_size: For which the optimizer's learning rate was chosen.
            policy: A name (`default`, `fixed`, `goodput`, a policy file ...) or a policy.
            config: The settings, or give them as further arguments.
            **settings: Fields of `ControllerConfig`.

        Raises:
            ConfigurationError: Settings contradict themselves, or Keras runs on JAX.
            UnknownNameError: There is no policy of that name.
        """
        super().__init__()
        check_backend()
        if config is not None and settings:
            raise ConfigurationError(
                f"Give either config or single settings, got config and {', '.join(settings)}."
            )
        self.config = ControllerConfig(**settings) if config is None else config
        self.base_batch_size = batch_size
        self.policy = resolve_policy(policy) if isinstance(policy, str) else policy
        self._policy_name = policy if isinstance(policy, str) else type(policy).__name__
        self._source: Source | None = None
        self._flow: Flow | None = None
        self._run: ControlledRun | None = None
        self._state: Mapping[str, Any] | None = None  # that was loaded and not yet applied
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

    @property
    def batch_size(self) -> int:
        """Samples per optimizer step that were decided last."""
        return self.base_batch_size if self._run is None else self._run.conductor.batch_size

    @property
    def epoch(self) -> int:
        """Number of the epoch under way since the start of the run, or of the next one."""
        return self._require_flow().epoch

    @property
    def epoch_is_over(self) -> bool:
        """Whether the latest step was the last one of its epoch."""
        return self._run is not None and self._run.epoch_is_over

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return 0 if self._run is None else self._run.conductor.steps

    @property
    def samples_seen(self) -> int:
        """Samples so far."""
        return 0 if self._run is None else self._run.conductor.samples_seen

    @property
    def plain_steps(self) -> int:
        """Steps that the plain run would have made with as many samples: what schedules go by."""
        return 0 if self._run is None else self._run.plain_steps

    @property
    def components(self) -> dict[str, Any]:
        """What the controller is doing now, by part."""
        run, flow = self._require_run(), self._require_flow()
        return {
            "policy": self._policy_name,
            "shadow": self.config.shadow,
            "epoch": flow.epoch,
            "next_step": flow.next_window,
            "traces": dict(run.steps.traces),
            **run.conductor.summary(),
        }

    def report_validation(self, loss: float) -> None:
        """Tell a validation loss; the next decision sees it. `fit` tells its own by itself."""
        self._require_run().conductor.report_validation(float(loss))

    @contextmanager
    def paused(self) -> Generator[None]:
        """Stop the wall clock within the block, for a validation in the middle of an epoch."""
        meter = self._require_run().conductor.meter
        meter.pause()
        try:
            yield
        finally:
            meter.resume()

    def disable(self, reason: str = "disabled by the user") -> None:
        """Return to the user's batch size and decide nothing any more."""
        self._require_run().disable(reason)

    def detach(self) -> None:
        """Give the model its own train function back, after a `fit` that an exception ended."""
        if self._run is not None:
            self._run.uninstall()

    def backup(
        self, folder: str | PathLike[str], save_freq: int | str = "epoch", *, delete: bool = True
    ) -> Backup:
        """Return a callback that saves the run and goes on with it; see `Backup`."""
        return Backup(self, folder, save_freq, delete)

    def state_dict(self) -> dict[str, Any]:
        """Return the state behind the last optimizer step; `torch.load` reads it safely.

        Save the model's weights and its optimizer's at the same moment, or use `backup`.
        """
        flow, run = self._require_flow(), self._require_run()
        tail = None
        if isinstance(self._source, Stream):
            tail = self._source.tail(flow.epoch, flow.position)
        return {
            "version": STATE_VERSION,
            "base_batch_size": self.base_batch_size,
            "flow": flow.state_dict(),
            "tail": tail,
            "run": run.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, with the next `fit`.

        Make the data set as before, load model and optimizer, and call `fit` with the epochs that
        are left. The log is continued behind the decisions that the state knows of.

        Raises:
            ConfigurationError: The state is of another version or batch size, or of other data.
        """
        if state.get("version") != STATE_VERSION:
            raise ConfigurationError(
                f"A controller state of version {STATE_VERSION} was expected, got "
                f"{state.get('version')!r}. Resume with the rlbatch that saved it."
            )
        if state["base_batch_size"] != self.base_batch_size:
            raise ConfigurationError(
                f"The state was saved with batch size {state['base_batch_size']}, and this "
                f"controller was made for {self.base_batch_size}. Make it for the same one."
            )
        flow = self._require_flow()
        flow.load_state_dict(state["flow"])
        if isinstance(self._source, Stream):
            self._source.expect(flow.epoch, flow.position, state["tail"])
        self._state = state["run"]
        self.detach()
        self._run = None

    def resume(self, state: Mapping[str, Any], model: Any) -> None:
        """Continue from a state within a `fit` that is about to begin; for `Backup`."""
        self.load_state_dict(state)
        self._begin(model)

    # -- what Keras calls --

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Take over the model's steps."""
        check_fit(self.params)
        self._require_flow()
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
        if not self.model.stop_training:
            self.model.stop_training = _EPOCH_OVER

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Take the validation loss."""
        run, model = self._require_run(), self.model
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
        self._require_run().close_log()
        self.detach()

    def _begin(self, model: Any) -> None:
        run = self._run
        if run is not None and (run.model is not model or not run.has_optimizer_of(model)):
            raise ConfigurationError(
                "A control belongs to one model and one optimizer, and these are others. Make a "
                "new BatchSizeControl."
            )
        if run is None:
            state, self._state = self._state, None
            run = ControlledRun(model, self._require_flow(), self.policy, self.config, state)
            self._run = run
        run.install()

    def _require_flow(self) -> Flow:
        if self._flow is None:
            raise ConfigurationError(
                "The controller has no data. Train on what control.dataset(x, y) returns: "
                "model.fit(control.dataset(x, y), callbacks=[control])."
            )
        return self._flow

    def _require_run(self) -> ControlledRun:
        if self._run is None:
            raise ConfigurationError(
                "There is no run before fit. Pass the controller to it: callbacks=[control]."
            )
        return self._run
