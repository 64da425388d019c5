"""How much the loss should have fallen, to first order."""

from __future__ import annotations

from rlbatch.signals.record import Numeric, RunContext


def predicted_decrease(
    context: RunContext, steps: Numeric, learning_rate: Numeric, grad_sqr: Numeric
) -> Numeric:
    """Return the first-order decrease of the training loss over some steps.

    Args:
        context: Says whether the optimizer is adaptive, and its momentum.
        steps: Optimizer steps.
        learning_rate: In force during these steps, schedule and coupling included.
        grad_sqr: |G|^2 in the optimizer's metric. With Adam that metric already contains the
            division by the root second moment, and averaging the gradient does not lengthen the
            step; SGD's momentum adds 1 / (1 - momentum).
    """
    lengthening = context.adaptive + (1.0 - context.adaptive) / (1.0 - context.momentum)
    return steps * learning_rate * lengthening * grad_sqr
