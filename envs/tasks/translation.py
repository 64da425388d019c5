"""Short interface strings from English to French, by a 1+1 block transformer."""

from __future__ import annotations

import functools
import json
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
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
from rlbatch.envs.tasks.text import PADDING, padded, read_text
from rlbatch.envs.tasks.transformer import Block, Embedding

SOURCE_PIECES, TARGET_PIECES = 10, 12  # longest pairs kept, without the end mark
END = 1  # marks the end of a text, and stands before its first piece in the decoder
VOCABULARY = 512  # word pieces and marks
WIDTH, HEADS = 32, 4
VAL_PAIRS = 128
BATCH_SIZE = 32  # pairs
TARGET = 3.5  # nats a piece
ADAMW_LEARNING_RATE = 8e-3
SGD_LEARNING_RATE = 0.2


class Translator(nn.Module):
    """One encoder and one decoder block over a shared embedding, which is the output layer too."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.embedding = Embedding(VOCABULARY, max(SOURCE_PIECES, TARGET_PIECES) + 1, WIDTH)
        self.encoder = Block(WIDTH, HEADS)
        self.decoder = Block(WIDTH, HEADS, cross=True)
        self.encoder_norm = nn.LayerNorm(WIDTH)
        self.decoder_norm = nn.LayerNorm(WIDTH)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return logits [B, T, 512] for what follows each `target` [B, T], from `source` [B, S]."""
        seen = (source != PADDING)[:, None, None, :]
        context = self.encoder_norm(self.encoder(self.embedding(source), mask=seen))
        decoded = self.decoder(
            self.embedding(target), causal=True, context=context, context_mask=seen
        )
        return self.decoder_norm(decoded) @ self.embedding.tokens.weight.T


def model() -> nn.Module:
    """Return a fresh network (46,700 parameters)."""
    return Translator()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean over pairs of each pair's mean cross entropy, in nats a piece.

    Every pair weighs the same whatever its length, so that halves of a batch average to the whole.
    """
    source, target = batch
    shifted = pad(target[:, :-1], (1, 0), value=END)
    logits = model(source, shifted)
    each = cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=PADDING, reduction="none"
    )
    return (each.view_as(target).sum(dim=1) / (target != PADDING).sum(dim=1)).mean()


def split_pieces(text: str, index: dict[str, int], longest: int) -> list[int]:
    """Return the indices of the text's pieces, the longest known piece first at each place."""
    rest = " " + text
    found: list[int] = []
    while rest:
        size = next((n for n in range(longest, 0, -1) if rest[:n] in index), 0)
        if size:
            found.append(index[rest[:size]])
        rest = rest[max(size, 1) :]
    return found


@functools.cache
def pairs() -> tuple[TensorTable, TensorTable]:
    """Return training and validation pieces: English [N, 10], French and end mark [N, 13]."""
    data = json.loads(read_text("translation.json.xz"))
    pieces: list[str] = data["pieces"]
    index = {piece: i for i, piece in enumerate(pieces[: VOCABULARY - END - 1], start=END + 1)}
    longest = max(map(len, index))
    sources: list[list[int]] = []
    targets: list[list[int]] = []
    for english, french in data["pairs"]:
        source = split_pieces(english, index, longest)
        target = split_pieces(french, index, longest)
        if len(source) <= SOURCE_PIECES and len(target) <= TARGET_PIECES:
            sources.append(source)
            targets.append([*target, END])
    columns = padded(sources, SOURCE_PIECES), padded(targets, TARGET_PIECES + 1)
    return shuffled_split(columns, VAL_PAIRS)


def adamw() -> Task:
    """Return the task trained with AdamW."""
    return _task("translation", partial(AdamW, lr=ADAMW_LEARNING_RATE))


def sgd() -> Task:
    """Return the task trained with SGD and momentum."""
    return _task("translation-sgd", partial(SGD, lr=SGD_LEARNING_RATE, momentum=SGD_MOMENTUM))


def _task(name: str, optimizer: OptimizerMaker) -> Task:
    train_set, val_set = pairs()
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
