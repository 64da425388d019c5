"""Training steps of a Keras model: made whole or in parts, and undone."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import keras
import torch

from rlbatch.control.training_parts import TrainingParts
from rlbatch.errors import ConfigurationError
from rlbatch.integrations._keras_checks import one_optimizer
from rlbatch.integrations._keras_means import divisors, weight_of
from rlbatch.integrations._keras_monitor import KerasMonitor
from rlbatch.integrations._keras_noise import SampleNoise
from rlbatch.integrations._keras_taps import replaced
from rlbatch.integrations._keras_training import KerasRate, dense
from rlbatch.integrations._keras_weights import KerasWeights

# Their annotations name the tensors of every backend at once.
ops: Any = keras.ops
tree: Any = keras.tree

Logs = dict[str, Any]

_DRAWS = {
    *("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal"),
    *("ParameterizedTruncatedNormal", "RandomGamma", "RandomPoissonV2", "Multinomial"),
    "RandomShuffle",
}


class Steps:
    """Makes steps with the model's own `train_step`, whoever wrote it.

    What it does to the optimizer, and its loss, are seen by standing in the way of one call of
    each: nothing of it is repeated here. With TensorFlow, each kind of step is traced once, for
    batches of any size.

    Attributes:
        noise: Measures steps.
        traces: How often each kind of step was traced, or made where nothing is compiled.
        draws_by_place: Whether it has random operations of TensorFlow's that are seeded by their
            place in the traced step: in another one they draw other numbers.
    """

    def __init__(self, model: Any, noise: SampleNoise) -> None:
        """Prepare steps of a compiled model; they are traced when they are first made.

        Args:
            model: The model.
            noise: Measures steps.
        """
        self._model, self.noise = model, noise
        self.traces = {"whole": 0, "measured": 0, "part": 0, "apply": 0}
        self.draws_by_place = False
        self._functions: dict[str, Any] = {}
        self._specs: Any = None

    def renew(self) -> None:
        """Trace anew: the model may have been compiled with something else meanwhile."""
        self._functions.clear()
        self.noise.renew()

    def whole(self, data: Any) -> tuple[Logs, Any]:
        """Make a step; returns the model's logs and the loss of this very batch."""
        return self._made("whole", self._whole, data)

    def measured(self, data: Any, drawn: Any) -> tuple[Logs, Any, Any]:
        """Make the same step, and look at the gradients of its samples.

        Args:
            data: The batch.
            drawn: At which of them: see `SampleNoise.draw`.

        Returns:
            Logs, loss, and what was seen: see `SampleNoise.watching`.
        """
        return self._made("measured", self._measured, data, drawn)

    def part(self, data: Any) -> tuple[Logs, Any, list[Any], Any]:
        """Compute the gradient of a micro-batch, scaled as the optimizer wants it.

        The last of what is returned is what its loss is the mean of, None for its samples.
        """
        return self._made("part", self._part, data)

    def apply(self, gradients: list[Any]) -> None:
        """Step the optimizer with a gradient."""
        self._made("apply", self._apply, gradients)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as the model's steps are compiled."""
        if keras.backend.backend() != "tensorflow" or self._model.run_eagerly:
            return function
        import tensorflow as tf

        return tf.function(function, autograph=False, reduce_retracing=True)

    def expect(self, specs: Any) -> None:
        """Tell what batches look like, where the pipeline knows."""
        self._specs = specs

    def _made(self, kind: str, function: Callable[..., Any], data: Any, *more: Any) -> Any:
        if kind not in self._functions:
            self._functions[kind] = self._prepared(kind, function, *more)
        return self._functions[kind](data, *more)

    def _prepared(self, kind: str, function: Callable[..., Any], *more: Any) -> Callable[..., Any]:
        def counted(data: Any, *more: Any) -> Any:
            self.traces[kind] += 1
            return function(data, *more)

        if self._model.run_eagerly:
            return counted
        if keras.backend.backend() == "torch":
            return torch.compile(counted) if self._model.jit_compile else counted
        import tensorflow as tf

        signature = None if kind == "apply" else relaxed(self._specs)
        return tf.function(
            counted,
            input_signature=None if signature is None else (signature, *map(_spec, more)),
            autograph=False,
            reduce_retracing=True,
            jit_compile=self._model.jit_compile,
        )

    def _whole(self, data: Any) -> tuple[Logs, Any]:
        with _losses(self._model) as losses, one_optimizer(self._model) as steps:
            logs = self._model.train_step(data)
        loss = _total(losses)
        if not steps:
            raise ConfigurationError(
                f"{type(self._model).__name__}.train_step did not step the optimizer that the "
                "model was compiled with. Call self.optimizer.apply in each train_step; to "
                "accumulate gradients, use micro_batch_size."
            )
        self.draws_by_place = self.draws_by_place or _draws_by_place()
        return logs, loss

    def _measured(self, data: Any, drawn: Any) -> tuple[Logs, Any, Any]:
        samples = ops.shape(_first(data))[0]
        watching = self.noise.watching(samples, drawn)
        with _losses(self._model) as losses, one_optimizer(self._model), watching as found:
            logs = self._model.train_step(data)
        return logs, _total(losses), found()

    def _part(self, data: Any) -> tuple[Logs, Any, list[Any], Any]:
        means: list[Any] = []
        alone = one_optimizer(self._model)
        with _losses(self._model, means) as losses, alone, _gradients(self._model) as gradients:
            logs = self._model.train_step(data)
        if len(gradients) != 1:
            raise ConfigurationError(
                f"{type(self._model).__name__}.train_step stepped its optimizer {len(gradients)} "
                "times on one batch, expected once: such a step cannot be made in parts. Set "
                "noise_rate=0 and no micro_batch_size."
            )
        tensors = [dense(gradient) for gradient in gradients[0]]
        return logs, _total(losses), tensors, weight_of(means)

    def _apply(self, gradients: list[Any]) -> None:
        self._model.optimizer.apply(gradients, self._model.trainable_weights)


def keras_parts(model: Any, rate: KerasRate, monitor: KerasMonitor) -> TrainingParts:
    """Return a compiled model's training as the control loop sees it."""
    names = type(model).__name__, type(rate.optimizer).__name__
    return TrainingParts(rate, monitor, KerasWeights(model, rate), *names)


def relaxed(specs: Any) -> Any:
    """Return what batches of any size look like; None where that cannot be said."""
    if specs is None or keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    flat = tree.flatten(specs)
    if not all(isinstance(spec, tf.TensorSpec) and spec.shape.rank for spec in flat):
        return None
    return tree.map_structure(
        lambda spec: tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, name=spec.name), specs
    )


def parts_of(data: Any, sizes: list[int]) -> Generator[Any]:
    """Yield a batch in micro-batches of these sizes."""
    start = 0
    for size in sizes:
        stop = start + size
        yield tree.map_structure(lambda t, a=start, b=stop: t[a:b], data)
        start = stop


def _first(data: Any) -> Any:
    return next(leaf for leaf in tree.flatten(data) if leaf is not None)


def _draws_by_place() -> bool:
    """Whether the graph being traced has random operations with a state; Keras's have none."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    if tf.executing_eagerly():
        return False
    graph: Any = tf.compat.v1.get_default_graph().as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return any(node.op in _DRAWS for node in nodes)


def _spec(array: Any) -> Any:
    import tensorflow as tf

    return tf.TensorSpec(array.shape, array.dtype)


def samples_in(data: Any) -> int:
    """Return the samples of a batch, which the host knows."""
    first = _first(data)
    return int(first.shape[0]) if first.shape[0] is not None else len(first)


@contextmanager
def _losses(model: Any, means: list[Any] | None = None) -> Generator[list[Any]]:
    """Collect what the model computes as its loss: its logs hold the mean of the epoch.

    Args:
        model: The model.
        means: Takes what the losses are means of, too.
    """
    losses: list[Any] = []
    original = model.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        if means is None:
            loss = original(*args, **kwargs)
        else:
            with divisors() as found:
                loss = original(*args, **kwargs)
            means.extend(found)
        losses.append(loss.detach() if hasattr(loss, "detach") else loss)
        return loss

    with replaced(model, "compute_loss", compute_loss):
        yield losses


@contextmanager
def _gradients(model: Any) -> Generator[list[list[Any]]]:
    """Collect what would go into the optimizer, in the order of the model's weights."""
    collected: list[list[Any]] = []

    def apply(grads: Any, trainable_variables: Any = None) -> None:
        order = model.trainable_weights
        variables = order if trainable_variables is None else trainable_variables
        found = {id(v): g for v, g in zip(variables, grads, strict=True)}
        collected.append([found.get(id(v)) for v in order])

    with replaced(model.optimizer, "apply", apply):
        yield collected


def _total(losses: list[Any]) -> Any:
    if not losses:
        raise ConfigurationError(
            "The model's train_step computed no loss with compute_loss, so its loss is unknown. "
            "Call self.compute_loss(x, y, y_pred, sample_weight) in it."
        )
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
