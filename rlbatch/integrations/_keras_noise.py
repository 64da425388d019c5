"""Gradient noise from the one backward pass of a whole Keras batch: nothing is divided.

As `rlbatch.signals.sample_noise`, which has the formulas, for the layers of Keras and on every
backend. The measured step is the model's own `train_step`; layers are watched while it is made or,
with TensorFlow, while it is traced, beside the step that measures nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import keras
import numpy as np
import torch

from rlbatch.integrations._keras_blocks import Block, Draw
from rlbatch.integrations._keras_layers import blocks_of, leads_with, places_fit
from rlbatch.integrations._keras_taps import Tap, replaced, watched
from rlbatch.integrations._keras_training import KerasRate, dense
from rlbatch.signals.sample_noise import MAX_LAYERS, TOLERANCE, elements_of_each

ops: Any = keras.ops  # its annotations name the tensors of every backend at once

UNMEASURED = (0.0, 0.0, 0.0, -1.0)
"""What a step tells that showed nothing, as `SampleNoise.found` does."""


@dataclass(frozen=True)
class _Gradients:
    """Gradients of the trained variables in the optimizer's metric, before its step.

    Attributes:
        raw: As the optimizer gets them, by the variable's identity.
        scales: What they are multiplied by.
        norms: Their squared norms then.
        total: The sum of these.
    """

    raw: dict[int, Any]
    scales: dict[int, Any]
    norms: dict[int, Any]
    total: Any


class SampleNoise:
    """Measures steps of a model that are made in one piece."""

    def __init__(self, model: Any, rate: KerasRate) -> None:
        """Measure a compiled model, in the metric of its optimizer."""
        self._model, self._rate = model, rate
        self._layers: list[Any] | None = None

    @property
    def layers(self) -> list[Any]:
        """Those whose samples' gradients can be seen."""
        if self._layers is None:
            self._layers = measurable_layers(self._model)
        return self._layers

    def renew(self) -> None:
        """Look through the model anew: something else may be trained."""
        self._layers = None

    def draw(self, samples: int, seed: str) -> Any | None:
        """Return which layers and elements a step looks at; None where it is not to be measured.

        Compiled by XLA or `torch.compile`, a measured step would be another program, with other
        last bits.

        Args:
            samples: Of the step.
            seed: Of the choice.

        Returns:
            A row for each layer: elements, 0 where it was not drawn, and two numbers in [0, 1).
        """
        if samples < 2 or self._model.jit_compile or not self._rate.has_metric or not self.layers:
            return None
        rng, drawn = Random(seed), np.zeros((len(self.layers), 3), np.float32)
        chosen = rng.sample(range(len(drawn)), min(MAX_LAYERS, len(drawn)))
        for row in sorted(chosen):
            drawn[row] = elements_of_each(samples, len(chosen)), rng.random(), rng.random()
        return drawn

    @contextmanager
    def watching(self, samples: Any, drawn: Any) -> Generator[Callable[[], Any]]:
        """Watch a step within the block.

        Args:
            samples: Of the step; with TensorFlow maybe a tensor.
            drawn: By `draw`; with TensorFlow maybe a tensor.

        Yields:
            What returns the step's statistics, after it: small and big squared norm, the cosine
            and the variance of tr(Sigma), as `rlbatch.signals.sample_noise.StepNoise`.
        """
        results: list[Any] = []
        optimizer = self._model.optimizer
        original = optimizer.apply

        def apply(grads: Any, trainable_variables: Any = None) -> Any:
            variables = self._model.trainable_weights
            variables = variables if trainable_variables is None else list(trainable_variables)
            grads = list(grads)
            try:
                with torch.no_grad():
                    results.append(self._found(taps, variables, grads, samples, drawn))
            except torch.OutOfMemoryError:  # the training itself has what it needs
                results.append(ops.convert_to_tensor(UNMEASURED))
            return original(grads, trainable_variables)

        def found() -> Any:  # a train_step of several optimizer steps tells nothing of one
            return results[0] if len(results) == 1 else ops.convert_to_tensor(UNMEASURED)

        with watched(self.layers) as taps, replaced(optimizer, "apply", apply):
            yield found

    def _found(
        self, taps: Sequence[Tap], variables: list[Any], grads: list[Any], samples: Any, drawn: Any
    ) -> Any:
        gradients = self._gradients(variables, grads)
        if gradients is None:
            return ops.convert_to_tensor(UNMEASURED)
        unscaling = self._rate.unscaling()
        found = [
            _statistics(tap, Draw(row), gradients, samples, unscaling)
            for tap, row in zip(taps, _rows(drawn), strict=True)
        ]
        kept = [part for part in found if part is not None]
        if not kept:
            return ops.convert_to_tensor(UNMEASURED)
        squares, numbers = (ops.concatenate(parts, 0) for parts in zip(*kept, strict=True))
        return _step_noise(squares, numbers, gradients.total, samples)

    def _gradients(self, variables: list[Any], grads: list[Any]) -> _Gradients | None:
        """Return the gradients in the metric before the coming step; None without one."""
        scales = self._rate.scales()
        if scales is None:
            return None
        known = {
            id(v): scale
            for v, scale in zip(self._model.trainable_weights, scales, strict=True)
            if scale is not None
        }
        raw = {
            id(v): ops.cast(dense(g), "float32")
            for v, g in zip(variables, grads, strict=True)
            if g is not None and id(v) in known
        }
        if not raw:
            return None
        norms = {key: _squared_norm(gradient * known[key]) for key, gradient in raw.items()}
        return _Gradients(raw, known, norms, ops.sum(ops.stack(list(norms.values()))))


def measurable_layers(model: Any) -> list[Any]:
    """Return the layers of which taps see all that is done with their variables.

    Left out are layers of other kinds, and those that share a variable with another layer.
    """
    layers = list({id(layer): layer for layer in model._flatten_layers()}.values())
    owners = Counter(id(v) for layer in layers for v in layer._trainable_variables)
    return [
        layer
        for layer in layers
        if layer.built
        and any(v.trainable for v in layer._trainable_variables)
        and blocks_of(layer) is not None
        and all(owners[id(v)] == 1 for v in layer._trainable_variables)
    ]


def _statistics(
    tap: Tap, draw: Draw, gradients: _Gradients, samples: Any, unscaling: Any
) -> tuple[Any, Any] | None:
    """Return what a layer showed; zeros if it was not drawn, None where it can show nothing.

    Returns:
        The samples' squared norms, shape (variables, samples); and of each of its variables the
        factor, the squared norm of the block's gradient, that of the sum over samples, that of
        their difference, and that of the whole variable's gradient.
    """
    layer, blocks = tap.layer, blocks_of(tap.layer)
    variables = [v for v in layer._trainable_variables if id(v) in gradients.raw]
    if blocks is None or not (tap.usable and tap.calls and variables):
        return None
    nothing = ops.zeros((samples,)), ops.zeros((5,))

    def compute() -> tuple[Any, Any]:
        by_variable = {id(block.variable): block for block in blocks(tap, draw)}
        parts = [
            _measured(by_variable[id(v)], gradients, unscaling) if id(v) in by_variable else nothing
            for v in variables
        ]
        squares, numbers = (ops.stack(column) for column in zip(*parts, strict=True))
        return squares, numbers

    conditions = [draw.elements > 0.0, *places_fit(tap)]
    conditions += [c for call in tap.calls for c in leads_with(samples, call, layer)]
    if not all(c for c in conditions if isinstance(c, (bool, np.bool_))):
        return None
    later = [c for c in conditions if not isinstance(c, (bool, np.bool_))]
    if not later:
        return compute()
    count = len(variables)
    return ops.cond(
        ops.all(ops.stack(later)),
        compute,
        lambda: (ops.zeros((count, samples)), ops.zeros((count, 5))),
    )


def _measured(block: Block, gradients: _Gradients, unscaling: Any) -> tuple[Any, Any]:
    """Return the rows of one block, as `_statistics` does."""
    key = id(block.variable)
    scale = ops.convert_to_tensor(gradients.scales[key])
    scale = block.view(scale) if len(scale.shape) else scale
    raw = block.view(gradients.raw[key])
    gradient, total = raw * scale, block.total * scale
    missing = _squared_norm(total - gradient)
    penalty = _penalty(block.variable)
    if penalty is not None:  # a part of the gradient that comes from no sample
        rest = raw - block.view(penalty) / unscaling
        missing = ops.minimum(missing, _squared_norm(total - rest * scale))
    squares = block.squares(ops.square(scale))
    norms = _squared_norm(gradient), _squared_norm(total), missing, gradients.norms[key]
    return squares, ops.stack([ops.cast(value, "float32") for value in (block.factor, *norms)])


def _penalty(variable: Any) -> Any | None:
    """Return the gradient of a variable's regularizer, where it is one of weights' size."""
    regularizer, kinds = variable.regularizer, keras.regularizers
    if not isinstance(regularizer, (kinds.L1, kinds.L2, kinds.L1L2)):
        return None
    weights = ops.cast(variable, "float32")
    first, second = (getattr(regularizer, name, 0.0) for name in ("l1", "l2"))
    return ops.cast(first, "float32") * ops.sign(weights) + 2.0 * float(second) * weights


def _squared_norm(tensor: Any) -> Any:
    return ops.sum(ops.square(tensor))


def _rows(drawn: Any) -> list[Any]:
    return [drawn[row] for row in range(drawn.shape[0])]


def _step_noise(squares: Any, numbers: Any, whole: Any, samples: Any) -> Any:
    """Return the statistics of a step: see `rlbatch.signals.sample_noise.step_noise`."""
    factors, big, seen, missing, norms = (numbers[:, column] for column in range(5))
    n = ops.cast(samples, "float32")
    # What is not finite stays in, to be noticed.
    is_valid = ops.logical_and(factors > 0.0, ops.logical_not(missing > TOLERANCE * big))
    valid = ops.cast(is_valid, "float32")
    weights = factors * valid
    sample_sqr = ops.matmul(weights, squares)
    total = ops.sum(sample_sqr)
    trace = (n / (n - 1.0)) * (n * total - ops.sum(weights * seen))
    variance = n**3 * ops.sum(ops.square(sample_sqr - total / n)) / (n - 1.0)
    big_sqr = ops.sum(weights * big)
    grad_sqr = big_sqr - trace / n
    cosine = grad_sqr / ops.maximum(grad_sqr + 2.0 * trace / n, 1e-30)
    covered = ops.sum(norms * valid)
    scale = ops.where(covered > 0.0, whole / ops.where(covered > 0.0, covered, 1.0), 1.0)
    small_sqr = scale * (big_sqr + trace * ((n - 1.0) / n))
    variance = ops.where(ops.any(is_valid), ops.square(scale) * variance, -1.0)
    return ops.stack([small_sqr, scale * big_sqr, cosine, variance])
