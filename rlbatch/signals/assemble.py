"""What a run reports: its constants, and the signals of a chunk."""

from __future__ import annotations

import math
from typing import Protocol

from rlbatch.signals.monitor import ChunkMeasurement
from rlbatch.signals.prediction import predicted_decrease
from rlbatch.signals.record import Array, Coupling, RunContext, Signals


class OptimizerFacts(Protocol):
    """What a run's constants tell of its optimizer."""

    @property
    def initial(self) -> float:
        """Learning rate before any schedule."""
        ...

    @property
    def momentum(self) -> float:
        """Decay of the first moment; 0 where there is none."""
        ...

    @property
    def adaptive(self) -> bool:
        """Whether it divides by a running root mean square, as Adam does."""
        ...


def run_context(  # noqa: PLR0913 - one argument a field
    optimizer: OptimizerFacts,
    coupling: Coupling,
    *,
    base_batch_size: int,
    min_batch_size: int,
    max_batch_size: int,
    dataset_size: int,
    target_loss: float | None = None,
    budget: float | None = None,
    weights: tuple[float, float, float] = (1.0, 0.0, 0.0),
    planned_samples: float | None = None,
) -> RunContext:
    """Return the constants of a run.

    Args:
        optimizer: `rlbatch.control.torch_parts.TorchRate` tells torch's.
        coupling: How the learning rate follows the batch size.
        base_batch_size: As in `RunContext`.
        min_batch_size: Likewise.
        max_batch_size: Likewise.
        dataset_size: Likewise.
        target_loss: None for none.
        budget: None for none; ignored beside a target.
        weights: Of seconds, samples and joules in the cost.
        planned_samples: None where nobody said.
    """
    return RunContext(
        base_batch_size=float(base_batch_size),
        min_batch_size=float(min_batch_size),
        max_batch_size=float(max_batch_size),
        dataset_size=float(dataset_size),
        learning_rate=optimizer.initial,
        momentum=optimizer.momentum,
        adaptive=float(optimizer.adaptive),
        coupling_exponent=coupling.exponent,
        adascale=float(coupling is Coupling.ADASCALE),
        target_loss=math.nan if target_loss is None else target_loss,
        # A limit under `target` often comes from a reference that a policy must not know.
        budget=math.nan if budget is None or target_loss is not None else budget,
        weight_seconds=weights[0],
        weight_samples=weights[1],
        weight_joules=weights[2],
        planned_samples=math.nan if planned_samples is None else planned_samples,
    )


def chunk_signals(  # noqa: PLR0913 - one argument a field
    context: RunContext,
    measured: ChunkMeasurement,
    *,
    batch_size: int,
    total_steps: int,
    total_samples: int,
    chunk_cost: float,
    total_cost: float,
    val_loss: float,
    learning_rate: float,
    learning_rate_factor: float,
    step_cost_curve: tuple[Array, float],
    rolled_back: bool,
) -> Signals:
    """Return a chunk's signals.

    Args:
        context: The run's constants.
        measured: What the monitor saw.
        batch_size: In force during the chunk.
        total_steps: Since the start, the chunk included.
        total_samples: Likewise.
        chunk_cost: Cost of the chunk.
        total_cost: Since the start.
        val_loss: Of the last validation in the chunk, or NaN.
        learning_rate: As scheduled, without the coupling's factor.
        learning_rate_factor: The coupling's factor.
        step_cost_curve: `Signals.step_cost_curve` and `Signals.step_cost_known`.
        rolled_back: The guard undid the chunk.
    """
    applied = learning_rate * learning_rate_factor
    return Signals(
        context=context,
        batch_size=float(batch_size),
        steps=float(measured.steps),
        total_steps=float(total_steps),
        total_samples=float(total_samples),
        chunk_cost=chunk_cost,
        total_cost=total_cost,
        train_loss=measured.train_loss,
        train_loss_std=measured.train_loss_std,
        val_loss=val_loss,
        grad_sqr=measured.grad_sqr,
        grad_sqr_se=measured.grad_sqr_se,
        noise_trace=measured.noise_trace,
        noise_trace_se=measured.noise_trace_se,
        gradient_cosine=measured.gradient_cosine,
        predicted_decrease=predicted_decrease(context, measured.steps, applied, measured.grad_sqr),
        learning_rate_factor=learning_rate_factor,
        schedule_factor=learning_rate / rate if (rate := float(context.learning_rate)) else 1.0,
        step_cost_curve=step_cost_curve[0],
        step_cost_known=step_cost_curve[1],
        nonfinite_steps=float(measured.nonfinite_steps),
        rolled_back=float(rolled_back),
    )
