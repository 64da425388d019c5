"""What a Keras run under a controller shows, and what can be told to it while it trains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras

from rlbatch.control.step_planner import StepPlanner
from rlbatch.control.user_state import check_hook
from rlbatch.errors import ConfigurationError
from rlbatch.integrations._keras_run import TrainFunction
from rlbatch.loop_adapter import LoopAdapter

REMEDY = (
    "Train on what control.dataset returned, alone, and with the controller: "
    "model.fit(control.dataset(x, y), callbacks=[control]). After a fit that was interrupted by an "
    "exception, call control.detach() before one without the controller."
)


class RunView(keras.callbacks.Callback):
    """The part of `BatchSizeControl` that shows and steers a run, whoever has begun it.

    Attributes:
        base_batch_size: For which the optimizer's learning rate was chosen.
    """

    def __init__(self, batch_size: int) -> None:
        """Show a run that has not begun."""
        super().__init__()
        self.base_batch_size = batch_size
        self._hooks: list[tuple[Any, Any]] = []
        self._planner: StepPlanner | None = None
        self._function: TrainFunction | None = None

    @property
    def controller(self) -> LoopAdapter | None:
        """What decides in the run; None before the first `fit`."""
        return None if self._function is None else self._function.adapter

    @property
    def batch_size(self) -> int:
        """Samples per optimizer step that were decided last."""
        return self.base_batch_size if self.controller is None else self.controller.batch_size

    @property
    def epoch(self) -> int:
        """Number of the epoch under way since the start of the run, or of the next one."""
        return self._require_planner().epoch

    @property
    def epoch_is_over(self) -> bool:
        """Whether the latest step was the last one of its epoch."""
        return self._function is not None and self._function.epoch_is_over

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return 0 if self.controller is None else self.controller.steps

    @property
    def samples_seen(self) -> int:
        """Samples so far."""
        return 0 if self.controller is None else self.controller.samples_seen

    @property
    def plain_steps(self) -> int:
        """Steps that the plain run would have made with as many samples: what schedules go by."""
        return 0 if self._function is None else self._function.plain_steps

    @property
    def components(self) -> dict[str, Any]:
        """What the controller is doing now, by part."""
        function = self._require_function()
        return {**function.adapter.components, "traces": dict(function.steps.traces)}

    def report_validation(self, loss: float) -> None:
        """Tell a validation loss; the next decision sees it. `fit` tells its own by itself."""
        self._require_function().adapter.report_validation(loss)

    def paused(self) -> AbstractContextManager[None]:
        """Stop the wall clock within the block, for a validation in the middle of an epoch."""
        return self._require_function().adapter.paused()

    def on_rollback(
        self, save: Callable[[], Any] | Any, restore: Callable[[Any], Any] | None = None
    ) -> None:
        """Let a roll-back restore something else, as `rlbatch.BatchController.on_rollback` does.

        Weights, statistics and all that the optimizer holds (its moving average, too) are restored
        without it.

        Args:
            save: Returns what is to be kept, before a chunk; or an object with a state.
            restore: Is given that when the chunk is undone.

        Raises:
            ConfigurationError: There is no way to save or restore it.
        """
        hook = check_hook(save, restore)
        self._hooks.append(hook)
        if self.controller is not None:
            self.controller.on_rollback(*hook)

    def disable(self, reason: str = "disabled by the user") -> None:
        """Return to the user's batch size and decide nothing any more."""
        self._require_function().disable(reason)

    def detach(self) -> None:
        """Give the model its own train function back, after a `fit` that an exception ended."""
        if self._function is not None:
            self._function.adapter.close()
            self._function.uninstall()

    def _require_planner(self) -> StepPlanner:
        if self._planner is None:
            raise ConfigurationError(f"The controller has no data. {REMEDY}")
        return self._planner

    def _require_function(self) -> TrainFunction:
        if self._function is None:
            raise ConfigurationError(
                "There is no run before fit. Pass the controller to it: callbacks=[control]."
            )
        return self._function
