from __future__ import annotations

import json

import pytest
import torch

from rlbatch.envs.tasks.families import translation
from rlbatch.envs.tasks.families.translation import END, loss, split_pieces
from rlbatch.envs.tasks.text import PADDING, read_text

PIECES = {" ": 2, "a": 3, "b": 4, " a": 5, "ab": 6, " ab": 7}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ab", [7]), ("ba", [2, 4, 3]), ("aab", [5, 6]), ("a?b ab", [5, 4, 7]), ("", [2])],
)
def test_takes_the_longest_piece_first_and_skips_the_unknown(
    text: str, expected: list[int]
) -> None:
    assert split_pieces(text, PIECES, longest=3) == expected


def test_shipped_pieces_spell_the_texts_back() -> None:
    data = json.loads(read_text("translation.json.xz"))
    pieces = data["pieces"]
    assert len(set(pieces)) == len(pieces) <= translation.VOCABULARY - END - 1
    index = {piece: i for i, piece in enumerate(pieces)}
    for pair in data["pairs"][:200]:
        for text in pair:
            found = split_pieces(text, index, max(map(len, pieces)))
            assert "".join(pieces[i] for i in found) == " " + text


def test_every_target_ends_with_the_mark_and_then_padding() -> None:
    for table in translation.pairs():
        for row in table.columns[1].tolist():
            kept = row[: row.index(END) + 1]
            assert PADDING not in kept
            assert set(row[len(kept) :]) <= {PADDING}


def test_loss_of_uniform_logits_is_the_logarithm_of_the_vocabulary() -> None:
    class Uniform(torch.nn.Module):
        def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            assert (target[:, 0] == END).all()  # the decoder gets the target shifted by one
            return torch.zeros(*target.shape, 512)

    batch = translation.pairs()[0].__getitems__(list(range(8)))
    value = loss(Uniform(), (batch[0], batch[1]))
    torch.testing.assert_close(value, torch.tensor(512.0).log())
