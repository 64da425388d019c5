"""The raw measurements of one chunk, and the facts about a run that do not change.

Every numeric field is a float or an array whose leading axes are free: a live run has none, the
simulator has one entry a run. A value that was not measured is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Numeric = float | Array

COST_CURVE_SIZES: Array = np.exp2(np.arange(17, dtype=np.float64))
"""Batch sizes (1, 2, 4 ... 65,536) at which `Signals.step_cost_curve` is given."""


class Coupling(StrEnum):
    """How the learning rate follows the batch size."""

    NONE = "none"
    SQRT = "sqrt"
    LINEAR = "linear"
    ADASCALE = "adascale"

    @property
    def exponent(self) -> float:
        """Power of the batch size ratio that the rate follows (AdaScale: its upper bound)."""
        return {"none": 0.0, "sqrt": 0.5, "linear": 1.0, "adascale": 1.0}[self.value]


@dataclass(frozen=True)
class RunContext:
    """What stays constant during a run.

    Attributes:
        base_batch_size: Batch size for which the optimizer's learning rate was chosen.
        min_batch_size: Smallest batch size that may be applied.
        max_batch_size: Largest batch size that may be applied.
        dataset_size: Training samples in one epoch.
        learning_rate: Learning rate at the base batch size, before any schedule.
        momentum: First-moment decay: momentum of SGD, beta1 of Adam.
        adaptive: 1.0 for Adam-type optimizers, else 0.0.
        coupling_exponent: 0, 0.5 or 1; see `Coupling.exponent`.
        adascale: 1.0 when the learning rate follows AdaScale's gain, else 0.0.
        target_loss: Validation loss that ends the run; NaN under the `budget` objective.
        budget: Cost at which the run ends; NaN under the `target` objective without a limit.
        weight_seconds: Weight of seconds in the cost. The three weights sum to one.
        weight_samples: Weight of samples in the cost.
        weight_joules: Weight of joules in the cost.
        planned_samples: Samples that the run and its learning-rate schedule were planned for. A
            run without a target or a budget ends there. NaN where nobody said.
    """

    base_batch_size: Numeric
    min_batch_size: Numeric
    max_batch_size: Numeric
    dataset_size: Numeric
    learning_rate: Numeric
    momentum: Numeric
    adaptive: Numeric
    coupling_exponent: Numeric
    adascale: Numeric
    target_loss: Numeric
    budget: Numeric
    weight_seconds: Numeric
    weight_samples: Numeric
    weight_joules: Numeric
    planned_samples: Numeric = float("nan")


@dataclass(frozen=True)
class Signals:
    """One chunk's measurements.

    Attributes:
        context: The run's constants.
        batch_size: Global batch size in force during the chunk (samples per optimizer step).
        steps: Optimizer steps in the chunk.
        total_steps: Optimizer steps since the start of the run, this chunk included.
        total_samples: Samples since the start of the run, this chunk included.
        chunk_cost: What the chunk cost, in the objective's unit.
        total_cost: What the run has cost so far, in the objective's unit.
        train_loss: Mean training loss over the chunk's steps.
        train_loss_std: Standard deviation of the per-step training losses in the chunk.
        val_loss: Validation loss after the chunk; NaN when it was not evaluated.
        grad_sqr: Estimate of the squared norm of the true gradient, |G|^2 (may be negative). For
            adaptive optimizers in the preconditioned metric: sum of g_i^2 / (sqrt(v_i) + eps).
        grad_sqr_se: Standard error of `grad_sqr`; NaN when unknown.
        noise_trace: Estimate of the trace of the per-sample gradient covariance, tr(Sigma), in the
            same metric.
        noise_trace_se: Standard error of `noise_trace`; NaN when unknown.
        gradient_cosine: Mean cosine between the two half-batch gradients, in [-1, 1].
        predicted_decrease: First-order predicted decrease of the training loss over the chunk:
            steps x learning rate / (1 - momentum) x |G|^2 (no 1 / (1 - momentum) for adaptive
            optimizers).
        learning_rate_factor: Factor that the coupling applied to the learning rate.
        schedule_factor: Factor that the user's scheduler applied (scheduled over initial learning
            rate).
        step_cost_curve: log2 of the cost of one optimizer step at each of `COST_CURVE_SIZES`; shape
            (..., 17).
        step_cost_known: How far the curve rests on measurement: 0 (a prior) to 1.
        nonfinite_steps: Steps of the chunk whose loss or gradient was not finite.
        rolled_back: 1.0 when the guard rolled this chunk back, else 0.0.
    """

    context: RunContext
    batch_size: Numeric
    steps: Numeric
    total_steps: Numeric
    total_samples: Numeric
    chunk_cost: Numeric
    total_cost: Numeric
    train_loss: Numeric
    train_loss_std: Numeric
    val_loss: Numeric
    grad_sqr: Numeric
    grad_sqr_se: Numeric
    noise_trace: Numeric
    noise_trace_se: Numeric
    gradient_cosine: Numeric
    predicted_decrease: Numeric
    learning_rate_factor: Numeric
    schedule_factor: Numeric
    step_cost_curve: Array
    step_cost_known: Numeric
    nonfinite_steps: Numeric
    rolled_back: Numeric
