"""What the controller cannot steer in a Keras model, refused before the run begins."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import keras
import torch

from rlbatch.errors import ConfigurationError
from rlbatch.integrations._keras_taps import replaced

tree: Any = keras.tree  # its annotations name the tensors of every backend at once

BACKENDS = ("tensorflow", "torch")
_SUM = ("sum", "none", None)


def check_backend() -> None:
    """Refuse backends whose training step keeps its state elsewhere.

    Raises:
        ConfigurationError: Keras runs on another backend than those that are supported.
    """
    backend = keras.backend.backend()
    if backend not in BACKENDS:
        raise ConfigurationError(
            f"Expected the Keras backend {' or '.join(BACKENDS)}, got {backend}. Set "
            f"KERAS_BACKEND={BACKENDS[0]} before Keras is imported."
        )


def check_model(model: Any) -> None:
    """Refuse what changes the meaning of a step.

    Raises:
        ConfigurationError: The message says what to change.
    """
    if model.steps_per_execution != 1:
        raise ConfigurationError(
            f"Expected one optimizer step at a time, got steps_per_execution="
            f"{model.steps_per_execution}: sizes could not change in between. Compile the model "
            "with steps_per_execution=1."
        )
    _check_optimizer(model.optimizer)
    _check_devices(model)
    shapes = [tensor.shape for tensor in getattr(model, "inputs", None) or []]
    fixed = [shape[0] for shape in shapes if shape and shape[0] is not None]
    if fixed:
        raise ConfigurationError(
            f"The model takes batches of {fixed[0]} samples only. Build it with Input(shape=...) "
            "in place of batch_shape or batch_size."
        )


def check_divisible(model: Any) -> None:
    """Refuse losses whose gradient is not the weighted mean of that of a batch's parts.

    Raises:
        ConfigurationError: The model has one.
    """
    for loss in tree.flatten(model.loss):
        reduction = getattr(loss, "reduction", "sum_over_batch_size")
        if reduction in _SUM:
            raise ConfigurationError(
                f"The loss {type(loss).__name__} has reduction={reduction!r}: a batch cannot be "
                "computed in micro-batches. Leave out micro_batch_size."
            )
        if isinstance(loss, keras.losses.Circle) or loss == "circle":
            raise ConfigurationError(
                "The loss Circle compares the samples of a batch, which cannot be computed in "
                "micro-batches. Leave out micro_batch_size, or set divisible=False."
            )


def warn_of_sum(model: Any) -> bool:
    """Warn of a loss whose gradient grows with the batch size; returns whether there is one."""
    for loss in tree.flatten(model.loss):
        if getattr(loss, "reduction", None) == "sum":
            warnings.warn(
                f"rlbatch: the loss {type(loss).__name__} is a sum over samples: with the batch "
                "size its gradient grows, and with it the step that the optimizer makes. Leave out "
                "reduction='sum', and multiply the learning rate by your batch size.",
                RuntimeWarning,
                stacklevel=2,
            )
            return True
    return False


def warn_of_smaller_parts(model: Any, limit: int, samples: int) -> None:
    """Warn where batches are normalised in smaller parts than in the user's own `fit`.

    Args:
        model: The model.
        limit: Samples of a part at most.
        samples: Of the user's batch.
    """
    kind: Any = keras.layers.BatchNormalization
    normalises = any(
        isinstance(layer, kind) and layer.trainable for layer in model._flatten_layers()
    )
    if normalises and limit < samples:
        warnings.warn(
            f"rlbatch: micro_batch_size={limit} divides batches of {samples}, and batch "
            f"normalisation then goes over {limit} samples: another gradient than that of the "
            f"whole batch, and other moving statistics. Set micro_batch_size={samples} or more, or "
            "take group or layer normalisation.",
            RuntimeWarning,
            stacklevel=2,
        )


@contextmanager
def one_optimizer(model: Any) -> Generator[list[Any]]:
    """Refuse, within the block, steps of other optimizers than the model's own; note its own.

    Their rates and states would be unknown to the controller, and in a step that is made in parts
    they would step at each of them.
    """
    own, steps = model.optimizer, list[Any]()
    if torch.compiler.is_compiling():  # which cannot follow it
        yield [own]
        return
    inner = getattr(own, "inner_optimizer", own)
    kind: Any = keras.optimizers.Optimizer
    original, own_apply = kind.apply, own.apply

    def apply(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if optimizer is not own and optimizer is not inner:
            raise ConfigurationError(
                f"{type(model).__name__}.train_step steps a second optimizer, "
                f"{type(optimizer).__name__}, beside the {type(inner).__name__} that the model was "
                "compiled with: the controller knows of one. Train such a model without it."
            )
        return original(optimizer, *args, **kwargs)

    def noted(*args: Any, **kwargs: Any) -> Any:
        steps.append(own)
        return own_apply(*args, **kwargs)

    kind.apply = apply  # inherited by this class, whose own it becomes within the block
    try:
        with replaced(own, "apply", noted):
            yield steps
    finally:
        del kind.apply


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ConfigurationError(
            f"Expected a model compiled with one Keras optimizer, got {type(optimizer).__name__}."
        )
    inner: Any = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(inner, "optimizers"):
        raise ConfigurationError(
            f"{type(inner).__name__} has several learning rates. Compile the model with a single "
            "optimizer."
        )
    steps = inner.gradient_accumulation_steps
    if steps:
        raise ConfigurationError(
            f"The optimizer accumulates gradients over {steps} batches by itself, which would "
            f"count as {steps} steps. Leave out gradient_accumulation_steps, multiply the batch "
            "size by it and give the controller micro_batch_size."
        )


def _check_devices(model: Any) -> None:
    strategy = getattr(model, "distribute_strategy", None)
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        replicas = max(replicas, torch.distributed.get_world_size())
    if replicas > 1 or keras.distribution.distribution() is not None:
        raise ConfigurationError(
            f"A controller steers one device, and the model is distributed ({replicas} replicas). "
            "Create it outside of a distribution strategy."
        )
