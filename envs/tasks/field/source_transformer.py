"""The next word or sign of Python's own sources, by a transformer."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.optim import AdamW

from rlbatch.envs.tasks.field import schedules, sources
from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.table import TensorTable
from rlbatch.envs.tasks.transformer import CausalTransformer, next_token_loss

LENGTH = 16  # tokens of a window
VOCABULARY = 256
VAL = 384  # windows
WIDTH, HEADS, BLOCKS = 32, 4, 1


def model() -> nn.Module:
    """Return a fresh network (42,500 parameters)."""
    return CausalTransformer(VOCABULARY, LENGTH, WIDTH, HEADS, BLOCKS)


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation windows [N, 17] of the library's top-level modules."""
    codes = sources.piece_codes(sources.library_text("*.py"), VOCABULARY)
    return sources.windows(codes, LENGTH, VAL)


JOB = FieldJob(
    name="source-transformer",
    model=model,
    tables=tables,
    loss=next_token_loss,
    optimizer=partial(AdamW, lr=6e-3, weight_decay=0.05),
    scheduler=schedules.warmup_stable_decay(warm_up=0.05, decay=0.25),
    batch_size=32,  # windows: 512 tokens
    epochs=0.4,
    target=1.95,
)
