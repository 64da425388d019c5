"""How a Trainer's loss weighs micro-batches, found out rather than assumed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlbatch.control.part_weights import number_of
from rlbatch.control.ranks import Ranks
from rlbatch.data.delivery import Delivered
from rlbatch.errors import DeliveryError

WeightOf = Callable[[Any], float | Tensor]
_IGNORED = -100  # label that losses leave out, in torch as in transformers
_TOLERANCE = 0.02  # of half precision


def item_counts(trainer: Any, batches: Sequence[Any]) -> list[float] | None:
    """Return what each micro-batch weighs in the mean loss of all.

    That is what the Trainer's `weight` makes of it; without one, its labels that count.

    Args:
        trainer: Whose model decides which labels these are.
        batches: Micro-batches of one optimizer step.

    Returns:
        A count each, or None where there are no labels.
    """
    if trainer.weight is not None:
        return [_weight(trainer.weight, batch) for batch in batches]
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
    return counts


def part_shares(
    trainer: Any, batches: Sequence[Any], plans: Sequence[Delivered], ranks: Ranks
) -> tuple[list[float], list[float]]:
    """Return what each micro-batch's mean loss is multiplied by in a step's gradient, and counts.

    With c what a part's mean is taken over, here its labels that count, the step's gradient is
    sum(c g) / sum(c) over the parts of all processes, which then average: the shares of all are 1
    on average. Without `average_tokens_across_devices` that holds on each process alone, whose
    means weigh as their samples.

    Args:
        trainer: Whose model decides which labels count.
        batches: Micro-batches of one optimizer step on this process.
        plans: What each was planned to be.
        ranks: The processes that train together.

    Returns:
        The shares, and what each mean is taken to be over: labels that count, or samples.
    """
    samples, world_size = plans[0].step_samples, ranks.world_size
    sizes = [float(plan.micro_size) for plan in plans]
    by_samples = [size * world_size / samples for size in sizes], sizes
    tells = trainer.weight is not None
    if world_size == 1 and len(batches) == 1 and not tells:
        return by_samples
    counts = item_counts(trainer, batches)
    if world_size > 1 and (tells or trainer.args.average_tokens_across_devices):
        own = [math.nan if counts is None else sum(counts)]
        per_rank = float(ranks.mean(np.array(own))[0])
        if tells and not per_rank > 0.0:  # a step of nothing
            return [0.0] * len(batches), sizes
        if counts is None or not per_rank > 0.0:
            return by_samples
        return [count / per_rank for count in counts], counts
    if tells and counts is not None and not sum(counts) > 0.0:
        return [0.0] * len(batches), sizes
    if counts is None or not sum(counts) > 0.0:
        return by_samples
    whole = sum(plan.micro_size for plan in plans) * world_size / samples
    return [count / sum(counts) * whole for count in counts], counts


def _weight(weight_of: WeightOf, batch: Any) -> float:
    weight = number_of(weight_of(batch))
    if not 0.0 <= weight < math.inf:
        raise DeliveryError(
            f"Expected a weight of 0 or more, got {weight}. Return what the loss is the mean of: "
            "the number of tokens, or the sum of class weights."
        )
    return weight


def on_this_process(items: Any, plans: Sequence[Delivered], world_size: int) -> Any:
    """Return this process's `num_items_in_batch`, so that processes weigh as their samples."""
    samples = world_size * sum(plan.micro_size for plan in plans)
    return items if samples == plans[0].step_samples else items * (plans[0].step_samples / samples)


def loss_is_scaled(trainer: Any, model: Any, batch: Any, items: Any, ranks: Ranks) -> bool | None:
    """Find out whether a loss is divided by `num_items_in_batch`, and so adds up over parts.

    Many models take the number and return a mean all the same. Two evaluations of one micro-batch
    tell; they draw no random numbers from the run's and leave no gradient. All processes evaluate
    and agree.

    Returns:
        None where these losses do not tell.
    """
    answers = (None, False, True)
    return answers[ranks.largest(answers.index(_is_scaled_here(trainer, model, batch, items)))[0]]


def _is_scaled_here(trainer: Any, model: Any, batch: Any, items: Any) -> bool | None:
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


def warn_about_loss(scaled: bool, parts: int) -> None:
    """Say where the Trainer alone would compute another gradient.

    Args:
        scaled: Whether the loss is divided by `num_items_in_batch`.
        parts: Means that the Trainer alone would add up.
    """
    if scaled or parts == 1:
        return
    warnings.warn(
        "rlbatch: the loss takes num_items_in_batch and is not divided by it. The Trainer alone "
        f"would add up the mean losses of {parts} micro-batches; here they are "
        "averaged, so that the gradient is that of the whole batch.",
        stacklevel=2,
    )


def _loss(trainer: Any, model: Any, batch: Any, items: Any) -> float:
    inputs = trainer._prepare_inputs(dict(batch))  # `compute_loss` takes labels out
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, inputs, num_items_in_batch=items)
    return float(loss.mean())
