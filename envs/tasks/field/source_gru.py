"""The next character of Python's own sources, by a recurrent network."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.optim import Adam

from rlbatch.envs.tasks.field import schedules, sources
from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.field.layers import Recurrent
from rlbatch.envs.tasks.table import TensorTable
from rlbatch.envs.tasks.transformer import next_token_loss

LENGTH = 16  # characters of a window
VAL = 384  # windows
WIDTH = 32


def model() -> nn.Module:
    """Return a fresh network (18,700 parameters)."""
    return Recurrent(nn.GRU, sources.CHARACTERS, WIDTH)


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation windows [N, 17] of the library's top-level modules."""
    codes = sources.character_codes(sources.library_text("*.py"))
    return sources.windows(codes, LENGTH, VAL)


JOB = FieldJob(
    name="source-gru",
    model=model,
    tables=tables,
    loss=next_token_loss,
    optimizer=partial(Adam, lr=1e-2),
    scheduler=schedules.linear(warm_up=0.02),
    batch_size=32,  # windows: 512 characters
    epochs=0.16,
    target=2.1,
)
