"""What surrounds the forward and backward pass of a micro-batch in a controlled `Trainer`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from rlbatch.control.gradient_watch import no_gradient
from rlbatch.integrations._transformers_run import TrainRun


@contextmanager
def surroundings(trainer: Any, model: Any, run: TrainRun, index: int) -> Generator[None]:
    """Run the pass of one part of an optimizer step.

    Args:
        trainer: Runs it.
        model: As the Trainer's loop has it.
        run: Its run.
        index: Of the part. Processes average in a step's last one.
    """
    ranks, share, part = run.ranks, run.shares[index], run.part(index)
    is_last, is_mean = part.is_last, run.is_shared and trainer.loss_is_scaled_for_ga is False
    with ExitStack() as stack:
        if run.watch is not None:
            counts = run.counts[index] if is_mean else None
            divisor = trainer.current_gradient_accumulation_steps
            stack.enter_context(run.watch.over(trainer.accelerator, part, counts, divisor))
        if ranks.sharded:  # the Trainer has told it not to, in all but the last of its own passes
            model.set_requires_gradient_sync(True)
        elif not is_last:
            stack.enter_context(trainer.accelerator.no_sync(model))
        if not share and not ranks.sharded:  # a mean of nothing may be no number
            optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
            stack.enter_context(no_gradient(optimizer))
        if ranks.world_size > 1 and is_mean:
            # Else the Trainer would multiply a loss by the processes that nothing was divided by.
            stack.enter_context(_unmultiplied(trainer.args))
        yield


@contextmanager
def _unmultiplied(args: Any) -> Generator[None]:
    told = args.average_tokens_across_devices
    args.average_tokens_across_devices = False
    try:
        yield
    finally:
        args.average_tokens_across_devices = told
