"""A Lightning callback that adapts the batch size of a `Trainer` while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Unpack

from rlbatch.arguments import require_function, require_kind
from rlbatch.control.config import ControllerConfig
from rlbatch.control.settings import Settings, make_config
from rlbatch.control.user_state import check_hook
from rlbatch.errors import ConfigurationError
from rlbatch.extras import needs_extra
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.policy.base import Policy

with needs_extra("lightning", "lightning"):
    from lightning.pytorch import Callback

from rlbatch.integrations._lightning_checks import check_fit, check_optimization
from rlbatch.integrations._lightning_counts import UsersLimits
from rlbatch.integrations._lightning_data import TrainSource
from rlbatch.integrations._lightning_gradient import Weight
from rlbatch.integrations._lightning_resume import step_on_plateaus
from rlbatch.integrations._lightning_run import FitRun, Hook

_VALIDATION_LOSS = "val_loss"


class BatchSizeCallback(Callback):
    """Decides, every few steps, how many samples the next optimizer steps take.

        trainer = Trainer(max_epochs=10, callbacks=[BatchSizeCallback()])
        trainer.fit(model, DataLoader(train_set, batch_size=64, shuffle=True), val_loader)

    Module, data module and Trainer stay as they are. What the Trainer hands to `training_step` are
    micro-batches: the whole batch, or a part of it where the batch exceeds `micro_batch_size`. What
    is given in steps (`max_steps`, `val_check_interval`, schedules with `interval="step"`) means
    steps of the user's batch size, which is the loader's times `accumulate_grad_batches` and the
    number of devices: all of it goes by samples.

    With the policy `fixed`, the run is the plain one, bit for bit.
    """

    def __init__(
        self,
        policy: Policy | str = "default",
        *,
        monitor: str | None = None,
        weight: Callable[[Any], Weight] | None = None,
        config: ControllerConfig | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """Prepare a callback; a controller is made when a fit begins.

        Args:
            policy: A name (`default`, `fixed`, `goodput`, a policy file ...) or a policy.
            monitor: Metric that is the validation loss, as the module logs it; None takes
                `val_loss` where there is one.
            weight: From a batch to what its loss is the mean of, where that is not the samples: the
                number of tokens, the sum of class weights. It is asked where a batch is divided or
                shared by several devices. `weigh` tells it from within `training_step`.
            config: The controller's settings, or give them as further arguments. With
                `accumulate_grad_batches`, `micro_batch_size` is the loader's batch size unless it
                is given.
            **settings: Fields of `ControllerConfig` and of its parts.

        Raises:
            ConfigurationError: Settings contradict themselves, or are given twice.
        """
        require_function("weight", weight, "a function of a batch")
        if monitor is not None:
            require_kind("monitor", monitor, str, "Give the name of a metric, as it is logged.")
        self.policy, self.monitor = policy, monitor
        self._weight, self._hooks = weight, list[Hook]()
        self.config = make_config(config, settings)
        _ = self.config.limits.known_micro_batch_size  # refuses what no fit could follow
        self._source: TrainSource | None = None
        self._users: UsersLimits | None = None
        self._fit: FitRun | None = None
        self._loaded: Mapping[str, Any] | None = None

    @property
    def controller(self) -> LoopAdapter | None:
        """What decides in the latest fit; None before the first."""
        return None if self._fit is None else self._fit.controller

    def weigh(self, weight: Weight) -> None:
        """Tell, within `training_step`, what the loss that it returns is the mean of.

        With weights w and the gradients g of the parts of a batch, on all devices, the step's
        gradient is sum(w g) / sum(w). Call it for each batch or for none.

        Args:
            weight: The number of tokens, the sum of class weights ...; 0 for a part that has none,
                whose loss may then be no number.
        """
        self._running.weigh(weight)

    def on_rollback(
        self, save: Callable[[], Any] | Any, restore: Callable[[Any], Any] | None = None
    ) -> None:
        """Let a roll-back restore something else, as `BatchController.on_rollback` does.

        Averages of Lightning's `WeightAveraging` callbacks are restored without it.

        Args:
            save: Returns what is to be kept, before a chunk; or an object with a state.
            restore: Is given that when the chunk is undone.

        Raises:
            ConfigurationError: There is no way to save or restore it.
        """
        check_hook(save, restore)
        self._hooks.append((save, restore))
        if self.controller is not None:
            self.controller.on_rollback(save, restore)

    # -- a fit --

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be controlled, and take over the training data."""
        if stage != "fit":
            return
        check_fit(trainer, pl_module)
        # Checkpoints of other callbacks must hold what was decided behind the step.
        callbacks = trainer.callbacks
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))
        self._release(trainer)
        self._fit = self._loaded = None
        self._source = TrainSource(trainer.fit_loop._data_source, trainer)
        trainer.fit_loop._data_source = self._source

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse optimizers and schedules that cannot be controlled."""
        check_optimization(trainer, pl_module)
        self._users = UsersLimits(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the controller."""
        loader = None if self._source is None else self._source.loader
        if loader is None or self._users is None:
            raise ConfigurationError("The Trainer has asked for no training data.")
        loaded, self._loaded = self._loaded, None  # a state that is refused is not tried again
        self._fit = FitRun(
            self._users, loader, self.policy, self.config, loaded, self._hooks, self._weight
        )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell progress bars how many batches there may be."""
        self._running.expect_epoch()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the Trainer step where the controller wants it to."""
        self._running.begin_batch(batch, batch_idx)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Weight the loss."""
        self._running.before_backward(loss)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Measure the gradient."""
        self._running.after_backward()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Leave out a step of which a part had no loss."""
        self._running.before_step()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step and decide."""
        if self._running.end_batch(outputs) and trainer.loggers:
            pl_module.log("rlbatch/batch_size", float(self._running.samples))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock until the next batch is fetched."""
        if self.controller is not None:
            self._running.begin_validation()
            self.controller.pause()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Give the next decision the validation loss."""
        if self.controller is None or trainer.sanity_checking:
            return
        self._running.end_validation()
        name = self.monitor or _VALIDATION_LOSS
        value = trainer.callback_metrics.get(name)
        if value is not None:
            self.controller.report_validation(float(value))
        elif self.monitor is not None:
            raise ConfigurationError(
                f"Expected the metric {name!r} after a validation, got "
                f"{', '.join(sorted(trainer.callback_metrics)) or 'none'}. Log it in "
                "validation_step, or name another as monitor."
            )

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Let schedules by metrics step in the first epoch of a resumed run, too."""
        step_on_plateaus(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Make up the validation of a checkpoint from a run's last step."""
        self._running.make_up_validation()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave Trainer and optimizer as they were."""
        self._release(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave Trainer and optimizer as they were."""
        if stage == "fit":
            self._release(trainer)

    # -- checkpoints --

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """Stop the clock until the next batch is fetched."""
        if self.controller is not None:
            self.controller.pause()

    def state_dict(self) -> dict[str, Any]:
        """Return the state behind the last optimizer step; empty where there is no controller."""
        if self.controller is None:
            return dict(self._loaded or {})
        return self._running.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, in the fit that is about to begin."""
        self._loaded = state_dict or None

    def _release(self, trainer: Any) -> None:
        if self._source is not None:
            trainer.fit_loop._data_source = self._source.source
        if self._users is not None:
            self._users.give_back()
        self._source = self._users = None
        if self._fit is not None:
            self._fit.finish()

    @property
    def _running(self) -> FitRun:
        if self._fit is None:
            raise ConfigurationError("There is no controlled fit before Trainer.fit has begun.")
        return self._fit
