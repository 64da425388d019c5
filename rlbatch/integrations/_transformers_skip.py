"""Leaves out an optimizer step of a controlled `Trainer`."""

from __future__ import annotations

from typing import Any

from rlbatch.errors import DeliveryError
from rlbatch.integrations._transformers_run import TrainRun


class LeavesOut:
    """A Trainer whose batches can be left out."""

    def skip(self) -> None:
        """Leave out a batch, within `compute_loss` or `training_step`.

            if not torch.isfinite(loss):
                self.skip()
            return loss

        The optimizer step is left out that the batch is of, with all of its parts: weights and the
        optimizer's state stay as they are. Its samples count as seen. With several processes, all
        of them have to leave it out.

        Raises:
            DeliveryError: There is no batch under way.
        """
        run = self._require_run()
        if run.step is None or not run.step_is_open:
            raise DeliveryError(
                "skip() leaves out a batch, and there is none under way. Call it in compute_loss "
                "or training_step."
            )
        run.left_out = True

    def _require_run(self) -> TrainRun:
        raise NotImplementedError


def drop_gradients(trainer: Any) -> None:
    """Let the optimizer step with nothing."""
    clips = trainer.args.max_grad_norm is not None and trainer.args.max_grad_norm > 0
    if trainer.accelerator.scaler is not None and not clips:
        trainer.accelerator.unscale_gradients()  # else the scaler misses them
    trainer.optimizer.zero_grad(set_to_none=True)
