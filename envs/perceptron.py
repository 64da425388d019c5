"""Small multilayer perceptrons trained by hand-written NumPy steps.

PyTorch needs about a millisecond for a step of such a network, nearly all of it on the way to the
arithmetic. Without that way a step takes a tenth, and a controller can be trained on ten times as
many real runs.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import SGD, AdamW

from rlbatch.envs.backend import AppliedRate, TorchBackend, TrainingBackend, build
from rlbatch.envs.perceptron_tasks import is_perceptron, is_perceptron_task, is_plain
from rlbatch.envs.task import Task
from rlbatch.envs.tasks.table import classification_loss
from rlbatch.errors import ConfigurationError
from rlbatch.signals.metric import MIN_STATE_STEPS
from rlbatch.signals.monitor import ChunkMeasurement
from rlbatch.signals.noise_scale import summarize

Floats = NDArray[np.float32]


def fastest_backend(task: Task, seed: int, learning_rate_scale: float = 1.0) -> TrainingBackend:
    """Return a `PerceptronBackend` where the task allows it, else a `TorchBackend`."""
    if is_perceptron_task(task):
        return PerceptronBackend(task, seed, learning_rate_scale)
    return TorchBackend(task, seed, learning_rate_scale)


class PerceptronBackend:
    """A multilayer perceptron: the same steps as `TorchBackend`, but for rounding.

    Attributes:
        optimizer: A torch optimizer that never steps: it holds the learning rate.
        weights: All weights in one vector.
    """

    def __init__(self, task: Task, seed: int, learning_rate_scale: float = 1.0) -> None:
        """Build the same network as PyTorch would.

        Args:
            task: What is trained; see `is_perceptron_task`.
            seed: Of the weights.
            learning_rate_scale: Multiplies the task's learning rate.
        """
        model, self.optimizer, _ = build(task, seed, learning_rate_scale)
        if not (is_perceptron(model) and is_plain(self.optimizer)):
            raise ConfigurationError(
                f"Task {task.name!r} is no plain perceptron. Train it with a TorchBackend."
            )
        linear = [layer for layer in model if isinstance(layer, nn.Linear)]  # type: ignore[union-attr]
        count = sum(p.numel() for p in model.parameters())
        self.weights, self._gradient = np.zeros(count, np.float32), np.zeros(count, np.float32)
        self._layers = _views(self.weights, linear)
        self._gradients = _views(self._gradient, linear)
        for (weight, bias), layer in zip(self._layers, linear, strict=True):
            weight[:] = layer.weight.detach().numpy().T
            bias[:] = layer.bias.detach().numpy()
        self._classifies = task.loss is classification_loss
        self._train, self._val = _columns(task.train_set), _columns(task.val_set)
        self._first, self._second = np.zeros_like(self.weights), np.zeros_like(self.weights)
        self._scratch = np.empty_like(self.weights)
        self._scale = np.empty_like(self.weights)
        self._scales = _views(self._scale, linear)
        self._ones = np.ones(len(self._train[0]), np.float32)
        self._adaptive = not isinstance(self.optimizer, SGD)
        self._steps = 0
        self._saved: tuple[Any, ...] = ()
        self._losses: list[float] = []
        self._norms: list[tuple[float, float, float, int, float]] = []
        self._owners: list[int] = []

    @contextmanager
    def chunk(self) -> Generator[None]:
        """Nothing here draws random numbers; infinite losses are the guard's business."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            yield

    def step(self, indices: Sequence[int], measured: bool, applied: AppliedRate) -> None:
        """As `TrainingBackend.step`."""
        chosen = np.asarray(indices)
        ready = not self._adaptive or self._steps >= MIN_STATE_STEPS
        backward = self._backward_measured if measured and ready else self._backward
        loss = backward(chosen)
        self._losses.append(loss)
        with applied():
            group = self.optimizer.param_groups[0]
            self._steps += 1
            if self._steps == 1:
                self.optimizer.step()  # has no gradients and does nothing; schedulers look for it
            (self._adam if self._adaptive else self._sgd)(group)

    def finish(self) -> ChunkMeasurement:
        """As `TrainingBackend.finish`."""
        losses = np.array(self._losses)
        finite = np.isfinite(losses)
        norms = np.array(self._norms).reshape(-1, 5)
        owners = np.array(self._owners, dtype=np.int64)
        sound = np.isfinite(norms).all(axis=1) & finite[owners]
        bad = (set(np.flatnonzero(~finite)) | set(owners[~sound])) if len(losses) else set()
        small, big, cosine, size, variance = norms[sound].T
        kept = losses[finite]
        self._losses, self._norms, self._owners = [], [], []
        signal, trace = summarize(small, big, np.ones_like(size), size, variance)
        return ChunkMeasurement(
            steps=len(losses),
            train_loss=float(kept.mean()) if len(kept) else math.nan,
            train_loss_std=float(kept.std(ddof=1)) if len(kept) > 1 else 0.0,
            grad_sqr=float(signal[0]),
            grad_sqr_se=float(signal[1]),
            noise_trace=float(trace[0]),
            noise_trace_se=float(trace[1]),
            gradient_cosine=float(cosine.mean()) if len(cosine) else math.nan,
            nonfinite_losses=int((~finite).sum()),
            nonfinite_steps=len(bad),
            measurements=len(cosine),
        )

    def remember(self) -> None:
        """As `TrainingBackend.remember`."""
        self._saved = (self.weights.copy(), self._first.copy(), self._second.copy(), self._steps)

    def restore(self) -> None:
        """As `TrainingBackend.restore`."""
        self.weights[:], self._first[:], self._second[:], self._steps = self._saved

    @contextmanager
    def aside(self) -> Generator[None]:
        """As `TrainingBackend.aside`."""
        self.remember()
        with self.chunk():
            yield
        self.restore()

    def validation_loss(self) -> float:
        """As `TrainingBackend.validation_loss`."""
        inputs, targets = self._val
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            outputs = self._forward(inputs)[-1]
            return self._loss(outputs, targets, derivative=False)

    def _forward(self, inputs: Floats) -> list[Floats]:
        activations = [inputs]
        last = len(self._layers) - 1
        for index, (weight, bias) in enumerate(self._layers):
            outputs = activations[-1] @ weight
            outputs += bias
            if index < last:
                np.maximum(outputs, 0.0, out=outputs)
            activations.append(outputs)
        return activations

    def _loss(self, outputs: Floats, targets: NDArray[Any], *, derivative: bool) -> float:
        """Return the mean loss; with `derivative`, turn `outputs` into its gradient."""
        count = len(outputs)
        if not self._classifies:
            outputs[:, 0] -= targets
            loss = float(np.dot(outputs[:, 0], outputs[:, 0])) / count
            outputs *= 2.0 / count
            return loss
        rows = np.arange(count)
        outputs -= outputs.max(axis=1, keepdims=True)
        chosen = outputs[rows, targets]
        np.exp(outputs, out=outputs)
        total = outputs.sum(axis=1, keepdims=True)
        loss = float(np.log(total[:, 0]).sum() - chosen.sum()) / count
        if derivative:
            outputs /= total
            outputs[rows, targets] -= 1.0
            outputs *= 1.0 / count
        return loss

    def _backward(self, chosen: NDArray[np.int64], squares: Floats | None = None) -> float:
        """Put the gradient of the mean loss of these samples into `_gradient`.

        Args:
            chosen: Samples.
            squares: The squared norm of what each adds to it is added here, in the metric.
        """
        inputs, targets = self._train
        activations = self._forward(inputs[chosen])
        delta = activations.pop()
        loss = self._loss(delta, targets[chosen], derivative=True)
        for index in range(len(self._layers) - 1, -1, -1):
            weight, bias = self._gradients[index]
            np.matmul(activations[index].T, delta, out=weight)
            np.matmul(self._ones[: len(delta)], delta, out=bias)
            if squares is not None:
                squares += self._squares(index, activations[index], delta)
            if index:
                delta = delta @ self._layers[index][0].T
                delta *= activations[index] > 0.0
        return loss

    def _squares(self, index: int, inputs: Floats, delta: Floats) -> Floats:
        """Return each sample's squared norm in one layer, whose gradient is an outer product."""
        inputs, delta = np.square(inputs), np.square(delta)
        if not self._adaptive:
            return (inputs.sum(1) + 1.0) * delta.sum(1)
        weight, bias = self._scales[index]
        return np.einsum("ij,ij->i", inputs @ weight + bias, delta)

    def _backward_measured(self, chosen: NDArray[np.int64]) -> float:
        """As `_backward`; note the norms of the samples' gradients and of their mean."""
        n = len(chosen)
        squares = np.zeros(n, np.float32)
        if self._adaptive:
            np.square(self._metric(), out=self._scale)
        loss = self._backward(chosen, squares)
        gradient = self._gradient * self._gradient
        big = float(np.dot(gradient, self._scale) if self._adaptive else gradient.sum())
        trace = n / (n - 1) * (n * float(squares.sum()) - big)
        grad_sqr = big - trace / n
        cosine = grad_sqr / max(grad_sqr + 2.0 * trace / n, 1e-300)
        variance = float(n) ** 3 * float(squares.var(ddof=1))
        small = big + trace * (n - 1) / n
        self._norms.append((small, big, cosine, n, variance))
        self._owners.append(len(self._losses))
        return loss

    def _metric(self) -> Floats | float:
        """Square roots of the elements' weights, as `rlbatch.signals.metric`."""
        if not self._adaptive:
            return 1.0
        group = self.optimizer.param_groups[0]
        correction = math.sqrt(1.0 - group["betas"][1] ** self._steps)
        root = np.sqrt(self._second) / np.float32(correction)
        root += np.float32(group["eps"])
        return np.sqrt(np.where(self._second > 0.0, 1.0 / root, 0.0)).astype(np.float32)

    def _sgd(self, group: dict[str, Any]) -> None:
        gradient, scratch = self._gradient, self._scratch
        if group["weight_decay"]:
            gradient += np.multiply(self.weights, np.float32(group["weight_decay"]), out=scratch)
        if group["momentum"]:
            self._first *= np.float32(group["momentum"])
            self._first += gradient
            gradient = self._first
        self.weights -= np.multiply(gradient, np.float32(group["lr"]), out=scratch)

    def _adam(self, group: dict[str, Any]) -> None:
        rate, decay = group["lr"], group["weight_decay"]
        beta1, beta2 = group["betas"]
        gradient, scratch, first, second = self._gradient, self._scratch, self._first, self._second
        if decay and isinstance(self.optimizer, AdamW):
            self.weights *= np.float32(1.0 - rate * decay)
        elif decay:
            gradient += np.multiply(self.weights, np.float32(decay), out=scratch)
        first *= np.float32(beta1)
        first += np.multiply(gradient, np.float32(1.0 - beta1), out=scratch)
        second *= np.float32(beta2)
        np.multiply(gradient, gradient, out=scratch)
        scratch *= np.float32(1.0 - beta2)
        second += scratch
        np.sqrt(second, out=scratch)
        scratch *= np.float32(1.0 / math.sqrt(1.0 - beta2**self._steps))
        scratch += np.float32(group["eps"])
        np.divide(first, scratch, out=scratch)
        scratch *= np.float32(rate / (1.0 - beta1**self._steps))
        self.weights -= scratch


def _views(vector: Floats, layers: Sequence[nn.Linear]) -> list[tuple[Floats, Floats]]:
    """Return weight [in, out] and bias [out] of each layer as parts of one vector."""
    views: list[tuple[Floats, Floats]] = []
    start = 0
    for layer in layers:
        shape = layer.in_features, layer.out_features
        middle = start + shape[0] * shape[1]
        end = middle + shape[1]
        views.append((vector[start:middle].reshape(shape), vector[middle:end]))
        start = end
    return views


def _columns(table: Any) -> tuple[Floats, NDArray[Any]]:
    inputs, targets = table.columns
    return inputs.numpy(), targets.numpy()
