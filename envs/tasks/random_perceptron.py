"""Random small training jobs: data, network and optimizer drawn by number, by the thousand.

A controller that has only seen the same few jobs learns their habits. These differ in everything
that decides about batch sizes: how noisy and how redundant the data are, how deep the network is,
which optimizer and schedule train it, how long. All are perceptrons, which train fast
(`rlbatch.envs.perceptron`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rlbatch.envs.task import Task
from rlbatch.envs.tasks.digits import digits
from rlbatch.envs.tasks.random_job import RANDOM, RandomJob, draw_scheduler, optimizer, parse
from rlbatch.envs.tasks.table import (
    TensorTable,
    classification_loss,
    collate_table,
    largest_batch_size,
    multilayer_perceptron,
    regression_loss,
)
from rlbatch.envs.tasks.text import read_text

VAL_SAMPLES = 256
MAX_BATCH_SIZE = 2048

_SYMBOLS = 32  # of the text: the most frequent characters

Values = NDArray[np.float64]
Columns = tuple[Values, NDArray[np.generic]]  # inputs [N, D]; classes or values [N]


@functools.lru_cache(maxsize=128)
def random_perceptron(name: str) -> Task:
    """Return the task of that name, `random:...` or `random-long:...`."""
    wanted = parse(name)
    rng, train_size = _drawn(wanted)
    make = _DATA[int(rng.integers(len(_DATA)))]
    inputs, targets = make(rng, train_size + VAL_SAMPLES)
    classes = int(targets.max()) + 1 if targets.dtype.kind == "i" else 0
    train_set, val_set = _split(inputs, targets)
    depth = int(rng.choice([1, 2, 2, 3]))
    units = [int(2 ** rng.uniform(4.0, 6.5)) for _ in range(depth)]
    widths = (inputs.shape[1], *units, max(classes, 1))
    batch_size = min(2 ** int(rng.integers(3, 9)), len(train_set) // 8)
    kind = str(rng.choice(["adamw", "adamw", "adamw", "momentum", "momentum", "sgd"]))
    return Task(
        name=wanted.name,
        model=partial(_model, widths),
        train_set=train_set,
        val_set=val_set,
        loss=classification_loss if classes else regression_loss,
        optimizer=optimizer(kind, wanted.learning_rate or _GUESSES[kind]),
        batch_size=batch_size,
        target=wanted.target or 1e-9,
        max_batch_size=min(largest_batch_size(len(train_set)), MAX_BATCH_SIZE),
        scheduler=draw_scheduler(wanted.kind, rng),
        collate=collate_table,
    )


def kind_of_data(number: int) -> str:
    """Return what a random task's data are, as `text` or `images`."""
    rng, _ = _drawn(RandomJob(RANDOM, number))
    return _DATA[int(rng.integers(len(_DATA)))].__name__.lstrip("_")


def _drawn(job: RandomJob) -> tuple[np.random.Generator, int]:
    """What every further draw comes from, after the first: how many samples there are."""
    rng = job.drawn()
    return rng, int(2 ** rng.uniform(*job.kind.log2_samples))


_GUESSES = {"adamw": 4e-3, "momentum": 0.03, "sgd": 0.2}


def _model(widths: tuple[int, ...]) -> nn.Module:
    return multilayer_perceptron(*widths)


def _split(inputs: Values, targets: NDArray[np.generic]) -> tuple[TensorTable, TensorTable]:
    inputs = (inputs - inputs.mean(axis=0)) / (inputs.std(axis=0).mean() + 1e-9)
    if targets.dtype.kind == "f":
        targets = (targets - targets.mean()) / (targets.std() + 1e-9)
    x = torch.tensor(inputs, dtype=torch.float32)
    y = torch.tensor(targets, dtype=torch.int64 if targets.dtype.kind == "i" else torch.float32)
    cut = len(x) - VAL_SAMPLES
    return TensorTable(x[:cut], y[:cut]), TensorTable(x[cut:], y[cut:])


def _gaussian_inputs(rng: np.random.Generator, count: int) -> Values:
    """Inputs whose variances fall by a power law, in a random basis."""
    dimension = int(2 ** rng.uniform(3.0, 6.0))
    scales = np.arange(1, dimension + 1) ** -rng.uniform(0.0, 1.0)
    basis = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    return (rng.standard_normal((count, dimension)) * scales) @ basis / scales.mean()


def _teach(rng: np.random.Generator, inputs: Values, outputs: int) -> Values:
    """Outputs of a random network, of zero mean and unit variance."""
    units = int(2 ** rng.uniform(2.0, 6.0))
    hidden = inputs
    for _ in range(int(rng.integers(1, 3))):
        weight = rng.standard_normal((hidden.shape[1], units)) / math.sqrt(hidden.shape[1])
        hidden = np.maximum(hidden @ weight + 0.3 * rng.standard_normal(units), 0.0)
    values = hidden @ rng.standard_normal((units, outputs))
    return (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-9)


def _regression(rng: np.random.Generator, count: int) -> Columns:
    inputs = _gaussian_inputs(rng, count)
    noise = 10 ** rng.uniform(-1.5, 0.0)
    return inputs, _teach(rng, inputs, 1)[:, 0] + noise * rng.standard_normal(count)


def _surface(rng: np.random.Generator, count: int) -> Columns:
    """A sum of sines and products of a few of the inputs."""
    dimension = int(rng.integers(4, 16))
    x = rng.uniform(-1.0, 1.0, (count, dimension))
    values = np.zeros(count)
    for _ in range(int(rng.integers(2, 6))):
        i, j = rng.integers(dimension, size=2)
        values += rng.standard_normal() * np.sin(rng.uniform(1.0, 4.0) * x[:, i] + x[:, j])
        values += rng.standard_normal() * x[:, i] * x[:, j]
    noise = 10 ** rng.uniform(-2.0, -0.3)
    return x, values + noise * values.std() * rng.standard_normal(count)


def _taught_classes(rng: np.random.Generator, count: int) -> Columns:
    inputs = _gaussian_inputs(rng, count)
    logits = _teach(rng, inputs, int(rng.integers(2, 16))) * 2 ** rng.uniform(0.0, 3.0)
    drawn = logits + rng.gumbel(size=logits.shape)  # a draw from the softmax
    return inputs, drawn.argmax(axis=1)


def _clusters(rng: np.random.Generator, count: int) -> Columns:
    classes, dimension = int(rng.integers(2, 16)), int(2 ** rng.uniform(3.0, 5.5))
    clusters = classes * int(rng.integers(1, 6))
    centres = rng.uniform(0.5, 2.0) * rng.standard_normal((clusters, dimension))
    cluster = rng.integers(clusters, size=count)
    inputs = centres[cluster] + rng.standard_normal((count, dimension))
    return inputs, _mislabel(rng, cluster % classes, classes)


def _documents(rng: np.random.Generator, count: int) -> Columns:
    """Word counts of short texts, whose words each class draws in its own proportions."""
    classes, words = int(rng.integers(3, 20)), int(2 ** rng.uniform(5.0, 6.5))
    frequencies = np.arange(1, words + 1) ** -1.0
    proportions = frequencies * rng.gamma(rng.uniform(0.2, 2.0), size=(classes, words))
    proportions /= proportions.sum(axis=1, keepdims=True)
    labels = rng.integers(classes, size=count)
    length = int(2 ** rng.uniform(2.0, 6.0))
    counts = np.stack([rng.multinomial(length, proportions[label]) for label in labels])
    return counts / math.sqrt(length), labels


def _text(rng: np.random.Generator, count: int) -> Columns:
    """The next character after the last two or three of Python's help texts."""
    codes = _symbols()
    context = int(rng.integers(2, 4))
    start = int(rng.integers(len(codes) - count - context - 1))
    codes = codes[start : start + count + context]
    windows = np.lib.stride_tricks.sliding_window_view(codes, context + 1)[:count]
    windows = windows[rng.permutation(count)]
    inputs = np.eye(_SYMBOLS)[windows[:, :context]].reshape(count, -1)
    return inputs, windows[:, context].astype(np.int64)


@functools.cache
def _symbols() -> NDArray[np.int64]:
    letters, codes = np.unique(np.array(list(read_text("char_lm.txt.xz"))), return_inverse=True)
    rank = np.argsort(np.argsort(-np.bincount(codes, minlength=len(letters)), kind="stable"))
    return np.minimum(rank[codes], _SYMBOLS - 1).astype(np.int64)


def _images(rng: np.random.Generator, count: int) -> Columns:
    """Handwritten digits: some of the classes, drawn with replacement and jittered."""
    classes = int(rng.integers(2, 11))
    parts: list[tuple[Values, NDArray[np.integer]]] = []
    for table, rows in zip(digits(), (count - VAL_SAMPLES, VAL_SAMPLES), strict=True):
        pixels, labels = (column.numpy() for column in table.columns)
        known = np.flatnonzero(labels < classes)
        chosen = known[rng.integers(len(known), size=rows)]
        parts.append((pixels[chosen], labels[chosen]))
    images, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    jitter = rng.uniform(0.0, 1.0) * rng.standard_normal(images.shape)
    return images + jitter, _mislabel(rng, labels, classes)


def _mislabel(
    rng: np.random.Generator, labels: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    wrong = rng.random(len(labels)) < rng.choice([0.0, 0.0, 0.05, 0.2])
    return np.where(wrong, rng.integers(classes, size=len(labels)), labels).astype(np.int64)


_DATA: tuple[Callable[[np.random.Generator, int], Columns], ...] = (
    _regression,
    _surface,
    _taught_classes,
    _clusters,
    _documents,
    _text,
    _images,
)
