"""Which of 24 languages a short interface string is in, by a convolution over its characters."""

from __future__ import annotations

import collections
import functools
import json

import torch
from torch import Tensor, nn

from rlbatch.envs.tasks.family import TaskFamily
from rlbatch.envs.tasks.table import TensorTable, classification_loss, shuffled_split
from rlbatch.envs.tasks.text import PADDING, padded, read_text

LANGUAGES = 24
STRING_CHARACTERS = 40  # the rest of a longer string is cut off
VOCABULARY = 128  # most frequent characters; index 0 pads, 1 stands for all others
OTHER = 1
EMBEDDING_WIDTH = 16
FILTERS, FILTER_CHARACTERS = 64, 4
VAL_STRINGS = 384


class CharacterConvolution(nn.Module):
    """Embeds characters, convolves, takes each filter's maximum and classifies by it."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING_WIDTH, padding_idx=PADDING)
        self.convolution = nn.Conv1d(EMBEDDING_WIDTH, FILTERS, FILTER_CHARACTERS)
        self.output = nn.Linear(FILTERS, LANGUAGES)

    def forward(self, characters: Tensor) -> Tensor:
        """Return logits [B, 24] of character indices [B, 40]."""
        filtered = self.convolution(self.embedding(characters).transpose(1, 2))
        return self.output(torch.relu(filtered.amax(dim=2)))


def model() -> nn.Module:
    """Return a fresh network (7,768 parameters)."""
    return CharacterConvolution()


@functools.cache
def strings() -> tuple[TensorTable, TensorTable]:
    """Return training and validation characters [N, 40] and languages [N]."""
    by_language: dict[str, list[str]] = json.loads(read_text("language_id.json.xz"))
    texts = [text for language in sorted(by_language) for text in by_language[language]]
    labels = [i for i, language in enumerate(sorted(by_language)) for _ in by_language[language]]
    frequency = collections.Counter(character for text in texts for character in text)
    kept = sorted(frequency, key=lambda character: (-frequency[character], character))
    index = {character: i for i, character in enumerate(kept[: VOCABULARY - 2], start=OTHER + 1)}
    rows = [[index.get(c, OTHER) for c in text[:STRING_CHARACTERS]] for text in texts]
    # Some strings differ only beyond the cut: keep one of them, so that none is on both sides.
    distinct = dict(zip(map(tuple, rows), labels, strict=True))
    columns = padded(list(distinct), STRING_CHARACTERS), torch.tensor(list(distinct.values()))
    return shuffled_split(columns, VAL_STRINGS)


FAMILY = TaskFamily(
    name="language-id",
    model=model,
    tables=strings,
    loss=classification_loss,
    batch_size=64,  # samples
    target=1.1,  # nats of validation cross entropy
    adamw_learning_rate=8e-3,
    sgd_learning_rate=0.1,
)
