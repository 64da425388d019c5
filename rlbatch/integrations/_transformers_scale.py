"""Whether a controlled Trainer's loss is divided by `num_items_in_batch`, asked once in a run."""

from __future__ import annotations

from typing import Any

from rlbatch.errors import ConfigurationError
from rlbatch.integrations._transformers_loss import loss_is_scaled, warn_about_loss
from rlbatch.integrations._transformers_run import TrainRun


def is_scaled(trainer: Any, model: Any, run: TrainRun, items: Any) -> bool:
    """Return whether the losses of a step's parts add up, or are means to be weighted.

    Args:
        trainer: Whose loss.
        model: As the Trainer's loop has it.
        run: Its run, which remembers the answer.
        items: `num_items_in_batch`.

    Raises:
        ConfigurationError: They add up, and `weight` says what they are means over.
    """
    if trainer.loss_is_scaled_for_ga is not None:
        return trainer.loss_is_scaled_for_ga
    if items is None:
        return False
    is_new = run.loss_scaled is None
    if is_new:
        run.loss_scaled = loss_is_scaled(trainer, model, run.batch(0), items, run.ranks)
    scaled = run.loss_scaled
    if trainer.weight is not None:
        if scaled:
            raise ConfigurationError(
                "Expected a loss that is a mean over what weight= says, got one that is "
                "divided by num_items_in_batch. Leave weight= out: its parts add up."
            )
        return False
    if scaled is None:
        return True  # as the Trainer assumes; asked again with the next step
    if is_new:
        adds = run.plan.world_size if trainer.args.average_tokens_across_devices else 1
        warn_about_loss(scaled, run.plan.accumulation_steps * adds)
    return scaled
