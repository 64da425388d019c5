"""The next character of Python's help texts, by a one-layer transformer."""

from __future__ import annotations

import functools
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW

from rlbatch.envs.task import Task
from rlbatch.envs.tasks.table import (
    SGD_MOMENTUM,
    OptimizerMaker,
    TensorTable,
    collate_table,
    largest_batch_size,
    shuffled_split,
)
from rlbatch.envs.tasks.text import read_text
from rlbatch.envs.tasks.transformer import Block, Embedding

CONTEXT = 32  # characters
VOCABULARY = 96  # printable ASCII and the line end
WIDTH, HEADS = 32, 4
VAL_WINDOWS = 192  # of CONTEXT + 1 characters
BATCH_SIZE = 32  # windows
TARGET = 2.3  # nats a character
ADAMW_LEARNING_RATE = 8e-3
SGD_LEARNING_RATE = 0.2


class CharacterTransformer(nn.Module):
    """Embedding, one causal block, normalisation and an output layer."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.embedding = Embedding(VOCABULARY, CONTEXT, WIDTH)
        self.block = Block(WIDTH, HEADS)
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, characters: Tensor) -> Tensor:
        """Return logits [B, T, 96] for what follows each of the characters [B, T]."""
        return self.output(self.norm(self.block(self.embedding(characters), causal=True)))


def model() -> nn.Module:
    """Return a fresh network (20,000 parameters)."""
    return CharacterTransformer()


def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """Return the mean cross entropy in nats a character of windows [B, 33]."""
    (windows,) = batch
    logits = model(windows[:, :-1])
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@functools.cache
def windows() -> tuple[TensorTable, TensorTable]:
    """Return training and validation windows [N, 33]; no character is in two windows."""
    codes = [0 if c == "\n" else ord(c) - 31 for c in read_text("char_lm.txt.xz")]
    length = CONTEXT + 1
    usable = len(codes) // length * length
    table = torch.tensor(codes[:usable]).view(-1, length)
    return shuffled_split((torch.unique(table, dim=0),), VAL_WINDOWS)


def adamw() -> Task:
    """Return the task trained with AdamW."""
    return _task("char-lm", partial(AdamW, lr=ADAMW_LEARNING_RATE))


def sgd() -> Task:
    """Return the task trained with SGD and momentum."""
    return _task("char-lm-sgd", partial(SGD, lr=SGD_LEARNING_RATE, momentum=SGD_MOMENTUM))


def _task(name: str, optimizer: OptimizerMaker) -> Task:
    train_set, val_set = windows()
    return Task(
        name=name,
        model=model,
        train_set=train_set,
        val_set=val_set,
        loss=loss,
        optimizer=optimizer,
        batch_size=BATCH_SIZE,
        target=TARGET,
        max_batch_size=largest_batch_size(len(train_set)),
        collate=collate_table,
    )
