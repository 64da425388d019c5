"""The next character of the sources of Python's packages, by a transformer."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.optim import Adam

from rlbatch.envs.tasks.field import schedules, sources
from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.table import TensorTable
from rlbatch.envs.tasks.transformer import CausalTransformer, next_token_loss

LENGTH = 16  # characters of a window
VAL = 384  # windows
WIDTH, HEADS, BLOCKS = 32, 4, 2
PACKAGES = "[a-m]*/*.py"  # asyncio to multiprocessing; none of the top-level modules


def model() -> nn.Module:
    """Return a fresh network (33,000 parameters)."""
    return CausalTransformer(sources.CHARACTERS, LENGTH, WIDTH, HEADS, BLOCKS)


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation windows [N, 17]."""
    codes = sources.character_codes(sources.library_text(PACKAGES))
    return sources.windows(codes, LENGTH, VAL)


JOB = FieldJob(
    name="bytes-transformer",
    model=model,
    tables=tables,
    loss=next_token_loss,
    optimizer=partial(Adam, lr=8e-3),
    scheduler=schedules.linear(warm_up=0.05, floor=0.1),
    batch_size=32,  # windows: 512 characters
    epochs=0.15,
    target=1.78,
)
