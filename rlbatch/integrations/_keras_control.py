"""A controlled run of Keras's `fit`, as its user sees it: what it does, its state, its end."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any, Unpack

import keras

from rlbatch.control.build import named_policy
from rlbatch.control.config import ControllerConfig
from rlbatch.control.settings import Settings, make_config
from rlbatch.errors import ConfigurationError
from rlbatch.integrations._keras_backup import Backup
from rlbatch.integrations._keras_checks import check_backend
from rlbatch.integrations._keras_data import Source, Stream
from rlbatch.integrations._keras_flow import Flow
from rlbatch.integrations._keras_run import ControlledRun
from rlbatch.policy.base import Policy

STATE_VERSION = 1


class ControlledFit(keras.callbacks.Callback):
    """The controller of a run that several calls of `fit` may continue.

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
        super().__init__()
        check_backend()
        if config is not None and settings:
            raise ConfigurationError(
                f"Give either config or single settings, got config and {', '.join(settings)}."
            )
        self.config = make_config(config, settings)
        _ = self.config.limits.known_micro_batch_size  # refuses what no fit could follow
        self.base_batch_size = batch_size
        self._asked = policy
        self.policy, self._policy_name = named_policy(policy, self.config)
        self._source: Source | None = None
        self._flow: Flow | None = None
        self._run: ControlledRun | None = None
        self._state: Mapping[str, Any] | None = None  # that was loaded and not yet applied
        self.fit_epoch = 0

    @property
    def batch_size(self) -> int:
        """Samples per optimizer step that were decided last."""
        return self.base_batch_size if self._run is None else self._run.control_loop.batch_size

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
        return 0 if self._run is None else self._run.control_loop.steps

    @property
    def samples_seen(self) -> int:
        """Samples so far."""
        return 0 if self._run is None else self._run.control_loop.samples_seen

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
            "next_step": flow.next_step,
            "traces": dict(run.steps.traces),
            **run.control_loop.summary(),
        }

    def report_validation(self, loss: float) -> None:
        """Tell a validation loss; the next decision sees it. `fit` tells its own by itself."""
        self._require_run().control_loop.report_validation(float(loss))

    @contextmanager
    def paused(self) -> Generator[None]:
        """Stop the wall clock within the block, for a validation in the middle of an epoch."""
        cost_tracker = self._require_run().control_loop.cost_tracker
        cost_tracker.pause()
        try:
            yield
        finally:
            cost_tracker.resume()

    def disable(self, reason: str = "disabled by the user") -> None:
        """Return to the user's batch size and decide nothing any more."""
        self._require_run().disable(reason)

    def detach(self) -> None:
        """Give the model its own train function back, after a `fit` that an exception ended."""
        if self._run is not None:
            self._run.close_log()
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
            "epochs": self.config.epochs,
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
        if state.get("epochs"):  # a `fit` of those that are left would tell too few
            self.config = self.config.lasting(state["epochs"])
        self.detach()
        self._run = None

    def resume(self, state: Mapping[str, Any], model: Any) -> None:
        """Continue from a state within a `fit` that is about to begin; for `Backup`."""
        self.load_state_dict(state)
        self._begin(model)

    def _begin(self, model: Any) -> None:
        run = self._run
        if run is not None and (run.model is not model or not run.has_optimizer_of(model)):
            raise ConfigurationError(
                "A control belongs to one model and one optimizer, and these are others. Make a "
                "new BatchSizeControl."
            )
        if run is None:
            state, self._state = self._state, None
            self.policy, self._policy_name = named_policy(self._asked, self.config)
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
