"""The next character of Python's help texts, by a one-layer transformer."""

from __future__ import annotations

import functools

import torch
from torch import nn

from rlbatch.envs.tasks.family import TaskFamily
from rlbatch.envs.tasks.table import TensorTable, shuffled_split
from rlbatch.envs.tasks.text import read_text
from rlbatch.envs.tasks.transformer import CausalTransformer, next_token_loss

CONTEXT = 32  # characters
VOCABULARY = 96  # printable ASCII and the line end
WIDTH, HEADS = 32, 4
VAL_WINDOWS = 192  # of CONTEXT + 1 characters


def model() -> nn.Module:
    """Return a fresh network (20,000 parameters)."""
    return CausalTransformer(VOCABULARY, CONTEXT, WIDTH, HEADS)


@functools.cache
def windows() -> tuple[TensorTable, TensorTable]:
    """Return training and validation windows [N, 33]; no character is in two windows."""
    codes = [0 if c == "\n" else ord(c) - 31 for c in read_text("char_lm.txt.xz")]
    length = CONTEXT + 1
    usable = len(codes) // length * length
    table = torch.tensor(codes[:usable]).view(-1, length)
    return shuffled_split((torch.unique(table, dim=0),), VAL_WINDOWS)


FAMILY = TaskFamily(
    name="char-lm",
    model=model,
    tables=windows,
    loss=next_token_loss,
    batch_size=32,  # windows
    target=2.3,  # nats a character
    adamw_learning_rate=8e-3,
    sgd_learning_rate=0.2,
)
