"""Short interface strings from English to French, by a 1+1 block transformer."""

from __future__ import annotations

import functools
import json

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from rlbatch.envs.tasks.family import TaskFamily
from rlbatch.envs.tasks.table import TensorTable, shuffled_split
from rlbatch.envs.tasks.text import PADDING, padded, read_text
from rlbatch.envs.tasks.transformer import Block, Embedding

SOURCE_PIECES, TARGET_PIECES = 10, 12  # longest pairs kept, without the end mark
END = 1  # marks the end of a text, and stands before its first piece in the decoder
VOCABULARY = 512  # word pieces and marks
WIDTH, HEADS = 32, 4
VAL_PAIRS = 128


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


FAMILY = TaskFamily(
    name="translation",
    model=model,
    tables=pairs,
    loss=loss,
    batch_size=32,  # pairs
    target=3.5,  # nats a piece
    adamw_learning_rate=8e-3,
    sgd_learning_rate=0.2,
)
