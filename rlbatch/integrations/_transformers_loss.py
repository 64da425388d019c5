"""How a Trainer's loss weighs micro-batches, found out rather than assumed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch

_IGNORED = -100  # label that losses leave out, in torch as in transformers
_TOLERANCE = 0.02  # of half precision


def item_counts(trainer: Any, batches: Sequence[Any]) -> list[float] | None:
    """Return what each micro-batch weighs in the mean loss of all: its labels that count.

    Args:
        trainer: Whose model decides which labels these are.
        batches: Micro-batches of one optimizer step.

    Returns:
        A count each, or None where they cannot be told apart: no labels, or none that count.
    """
    if len(batches) == 1:
        return [1.0]
    shifts = getattr(trainer, "_loss_shifts_labels", False)
    counts: list[float] = []
    for batch in batches:
        try:
            if "shift_labels" in batch:
                labels = batch["shift_labels"]
            else:
                labels = batch["labels"][..., 1:] if shifts else batch["labels"]
            counts.append(float(labels.ne(_IGNORED).sum()))
        except (AttributeError, IndexError, KeyError, TypeError):
            return None
    return counts if min(counts) > 0 else None


def loss_is_scaled(trainer: Any, model: Any, batch: Any, items: Any) -> bool | None:
    """Find out whether a loss is divided by `num_items_in_batch`, and so adds up over parts.

    Many models take the number and return a mean all the same. Two evaluations of one micro-batch
    tell; they draw no random numbers from the run's and leave no gradient.

    Returns:
        None where these losses do not tell.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            losses = [_loss(trainer, model, batch, items * factor) for factor in (1, 2)]
    finally:
        model.train(training)
    once, twice = losses
    if not (math.isfinite(once) and math.isfinite(twice)) or once == 0.0:
        return None
    if abs(once - 2.0 * twice) <= _TOLERANCE * abs(once):
        return True
    if abs(once - twice) <= _TOLERANCE * abs(once):
        return False
    warnings.warn(
        "rlbatch: only a part of the loss is divided by num_items_in_batch. The rest is added up "
        "over the micro-batches of a step, as the Trainer does when it accumulates gradients.",
        stacklevel=2,
    )
    return True


def warn_about_loss(scaled: bool, accumulation_steps: int) -> None:
    """Say where the Trainer alone would compute another gradient."""
    if scaled or accumulation_steps == 1:
        return
    warnings.warn(
        "rlbatch: the loss takes num_items_in_batch and is not divided by it. The Trainer alone "
        f"would add up the mean losses of {accumulation_steps} micro-batches; here they are "
        "averaged, so that the gradient is that of the whole batch.",
        stacklevel=2,
    )


def _loss(trainer: Any, model: Any, batch: Any, items: Any) -> float:
    inputs = trainer._prepare_inputs(dict(batch))  # `compute_loss` takes labels out
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, inputs, num_items_in_batch=items)
    return float(loss.mean())
