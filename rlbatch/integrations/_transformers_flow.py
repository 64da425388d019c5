"""When a controlled `Trainer` logs, evaluates, saves and ends: by samples, as everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from transformers.trainer_callback import DefaultFlowCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from rlbatch.integrations._shared import SampleScheduler
from rlbatch.integrations._transformers_run import TrainRun
from rlbatch.integrations._transformers_skip import drop_gradients


class Progress(Protocol):
    """The progress of a run in steps of the user's batch size."""

    steps_done: int
    """Behind the latest optimizer step."""

    def passed(self, every: float) -> bool:
        """Whether the latest optimizer step went past a multiple of `every`."""
        ...


class SampleFlowCallback(DefaultFlowCallback):
    """Keeps `logging_steps`, `eval_steps` and `save_steps` at the samples where they would be.

    They count steps of the user's batch size: something is due at the first optimizer step at or
    behind each multiple. At that batch size it is the step that the Trainer itself would choose.
    """

    def __init__(self, progress: Callable[[], Progress]) -> None:
        """Go by the progress that is returned."""
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Say what is due."""
        progress = self._progress()
        if state.global_step == 1 and args.logging_first_step:
            control.should_log = True
        if args.logging_strategy == IntervalStrategy.STEPS and progress.passed(state.logging_steps):
            control.should_log = True
        evaluates = (
            args.eval_strategy == IntervalStrategy.STEPS and args.eval_delay <= progress.steps_done
        )
        if evaluates and progress.passed(state.eval_steps):
            control.should_evaluate = True
        saves = args.save_strategy == SaveStrategy.STEPS
        if saves and state.save_steps > 0 and progress.passed(state.save_steps):
            control.should_save = True
        if state.global_step >= state.max_steps:
            control.should_training_stop = True
            control.should_evaluate = control.should_evaluate or evaluates
            control.should_save = control.should_save or saves
        return control


class StepCallback(TrainerCallback):
    """Steers the run by what happens in the Trainer's loop; comes before other callbacks."""

    def __init__(self, trainer: Any, run: Callable[[], TrainRun]) -> None:
        """Steer the run of a controlled trainer that `run` returns."""
        self._trainer, self._run = trainer, run

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer is about to step."""
        run = self._run()
        if run.watch is not None:
            run.watch.stepping(True)
        if run.left_out:
            drop_gradients(self._trainer)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It has."""
        watch = self._run().watch
        if watch is not None:
            watch.stepping(False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decide, and correct what the Trainer counts."""
        run = self._run()
        state.epoch = run.end_step()
        # What is left at this batch size: bars show it, and callbacks stop where nothing is left.
        state.max_steps = state.global_step + run.steps_left()
        if isinstance(self._trainer.lr_scheduler, SampleScheduler):
            self._trainer.lr_scheduler.skip()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take back the request to stop the epoch, which was over."""
        self._run().leave_epoch(control)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Give the next decision the validation loss."""
        controller = self._trainer.controller
        loss = validation_loss(metrics or {}, args.metric_for_best_model)
        if loss is not None and self._trainer.is_in_train and controller is not None:
            controller.report_validation(loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the log and leave the optimizer as it was."""
        self._run().stop()


def validation_loss(metrics: Mapping[str, Any], wanted: str | None) -> float | None:
    """Return the loss among an evaluation's metrics, or None where there is none.

    Args:
        metrics: As `Trainer.evaluate` returns them.
        wanted: `metric_for_best_model`; of several evaluation sets, that of its loss counts.
    """
    names = ["eval_loss"]
    if wanted is not None and wanted.endswith("loss"):
        names = [wanted if wanted.startswith("eval_") else f"eval_{wanted}"]
    for name in names:
        value = metrics.get(name)
        if value is not None and math.isfinite(value):
            return float(value)
    return None
