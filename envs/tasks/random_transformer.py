"""Random small language models: sequences, network and optimizer drawn by number.

What follows a sequence can be foretold in part only, so that their losses end high, their gradients
stay noisy and samples are dear: where transformers differ from the perceptrons of
`rlbatch.envs.tasks.random_perceptron`. They train as slowly as PyTorch does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from rlbatch.envs.task import Task
from rlbatch.envs.tasks.random_job import draw_scheduler, optimizer, parse
from rlbatch.envs.tasks.table import TensorTable, collate_table, largest_batch_size
from rlbatch.envs.tasks.text import read_text
from rlbatch.envs.tasks.transformer import CausalTransformer, next_token_loss

VAL_WINDOWS = 128
MAX_BATCH_SIZE = 256

_GUESSES = {"adamw": 8e-3, "momentum": 0.1}

Windows = NDArray[np.int64]  # [N, tokens]
Sequences = tuple[Windows, int]  # and the position of the first token to foretell


@functools.lru_cache(maxsize=64)
def random_transformer(name: str) -> Task:
    """Return the task of that name, `random-transformer:NUMBER` or as `RandomJob.name`."""
    wanted = parse(name)
    rng = wanted.drawn()
    train_size = int(2 ** rng.uniform(*wanted.kind.log2_samples))
    make = _DATA[int(rng.integers(len(_DATA)))]
    windows, first = make(rng, train_size + VAL_WINDOWS)
    vocabulary, positions = int(windows.max()) + 1, windows.shape[1] - 1
    width, heads, blocks = 8 * int(rng.integers(2, 5)), int(rng.choice([2, 4])), rng.choice([1, 2])
    kind = str(rng.choice(["adamw", "adamw", "adamw", "momentum"]))
    batch_size = 2 ** int(rng.integers(3, 7))
    table = torch.tensor(windows)
    return Task(
        name=wanted.name,
        model=partial(CausalTransformer, vocabulary, positions, width, heads, int(blocks)),
        train_set=TensorTable(table[:train_size]),
        val_set=TensorTable(table[train_size:]),
        loss=partial(next_token_loss, first=first),
        optimizer=optimizer(kind, wanted.learning_rate or _GUESSES[kind]),
        batch_size=batch_size,
        target=wanted.target or 1e-9,
        max_batch_size=min(largest_batch_size(train_size), MAX_BATCH_SIZE),
        scheduler=draw_scheduler(wanted.kind, rng),
        collate=collate_table,
    )


def _text(rng: np.random.Generator, count: int) -> Sequences:
    """Windows of Python's help texts, over the most frequent characters."""
    symbols = int(rng.integers(24, 65))
    letters, codes = np.unique(np.array(list(read_text("char_lm.txt.xz"))), return_inverse=True)
    rank = np.argsort(np.argsort(-np.bincount(codes, minlength=len(letters)), kind="stable"))
    codes = np.minimum(rank[codes], symbols - 1).astype(np.int64)
    length = int(rng.integers(9, 20))
    starts = rng.integers(len(codes) - length, size=count)
    return codes[starts[:, None] + np.arange(length)], 1


def _chain(rng: np.random.Generator, count: int) -> Sequences:
    """Walks whose next step depends on the last one and on one some steps ago."""
    symbols, length, lag = (int(rng.integers(*r)) for r in ((6, 49), (9, 19), (2, 5)))
    peaked = rng.uniform(1.0, 3.0)
    near, far = (peaked * rng.standard_normal((symbols, symbols)) for _ in range(2))
    walks = np.zeros((count, length), dtype=np.int64)
    walks[:, :lag] = rng.integers(symbols, size=(count, lag))
    for i in range(lag, length):
        logits = near[walks[:, i - 1]] + far[walks[:, i - lag]]
        walks[:, i] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return walks, 1


def _rewriting(rng: np.random.Generator, count: int) -> Sequences:
    """A text, a mark, and the text in other symbols, reversed or sorted, with slips."""
    symbols, length = int(rng.integers(6, 33)), int(rng.integers(4, 11))
    frequencies = np.arange(1, symbols + 1) ** -rng.uniform(0.0, 1.5)
    source = rng.choice(symbols, size=(count, length), p=frequencies / frequencies.sum())
    order = str(rng.choice(["same", "reversed", "sorted"]))
    if order == "sorted":
        target = np.sort(source, axis=1)
    else:
        target = source[:, ::-1] if order == "reversed" else source
    target = rng.permutation(symbols)[target]
    slips = rng.random(target.shape) < rng.choice([0.0, 0.05, 0.2])
    target = np.where(slips, rng.integers(symbols, size=target.shape), target)
    mark = np.full((count, 1), symbols)
    return np.concatenate([source, mark, target], axis=1).astype(np.int64), length + 1


_DATA: tuple[Callable[[np.random.Generator, int], Sequences], ...] = (_text, _chain, _rewriting)
