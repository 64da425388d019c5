"""The next character of Python's help topics, by an LSTM with dropout."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.optim import AdamW

from rlbatch.envs.tasks.field import schedules, sources
from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.field.layers import Recurrent
from rlbatch.envs.tasks.table import TensorTable
from rlbatch.envs.tasks.transformer import next_token_loss

LENGTH = 16  # characters of a window
VAL = 384  # windows
WIDTH = 32


def model() -> nn.Module:
    """Return a fresh network (23,000 parameters)."""
    return Recurrent(nn.LSTM, sources.CHARACTERS, WIDTH, dropout=0.1)


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation windows [N, 17]."""
    codes = sources.character_codes(sources.library_text("pydoc_data/topics.py"))
    return sources.windows(codes, LENGTH, VAL)


JOB = FieldJob(
    name="topics-lstm",
    model=model,
    tables=tables,
    loss=next_token_loss,
    optimizer=partial(AdamW, lr=1e-2),
    scheduler=schedules.step(0.6, 0.85, factor=0.3),
    batch_size=32,  # windows: 512 characters
    epochs=1,
    target=1.5,
)
