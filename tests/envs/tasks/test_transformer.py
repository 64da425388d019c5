from __future__ import annotations

import math

import torch

from rlbatch.envs.tasks.families import char_lm, translation
from rlbatch.envs.tasks.transformer import Attention


def test_attention_equals_the_formula() -> None:
    width, heads = 8, 2
    attention = Attention(width, heads)
    x, context = torch.randn(3, 4, width), torch.randn(3, 5, width)
    mask = torch.rand(3, 1, 1, 5) > 0.3
    mask[..., 0] = True
    q = attention.query(x)
    k, v = attention.key_value(context).split(width, dim=-1)
    mixed = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * 4, head * 4 + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        weights = scores.masked_fill(~mask[:, 0], -math.inf).softmax(-1)
        mixed[..., part] = weights @ v[..., part]
    torch.testing.assert_close(attention(x, context, mask), attention.output(mixed))


def test_character_model_does_not_look_ahead() -> None:
    model = char_lm.model()
    text = torch.randint(char_lm.VOCABULARY, (2, char_lm.CONTEXT))
    changed = text.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % char_lm.VOCABULARY
    before, after = model(text), model(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def test_translator_sees_the_whole_source_and_no_later_target() -> None:
    model = translation.model()
    source = torch.randint(2, 512, (2, translation.SOURCE_PIECES))
    target = torch.randint(2, 512, (2, translation.TARGET_PIECES + 1))
    logits = model(source, target)
    later = target.clone()
    later[:, 6:] = 3
    torch.testing.assert_close(model(source, later)[:, :6], logits[:, :6])
    other = source.clone()
    other[:, -1] = (other[:, -1] - 1) % 500 + 2
    assert not torch.allclose(model(other, target)[:, 0], logits[:, 0])


def test_padding_of_the_source_changes_nothing() -> None:
    model = translation.model()
    source = torch.randint(2, 512, (2, 6))
    target = torch.randint(2, 512, (2, 5))
    longer = torch.nn.functional.pad(source, (0, 4), value=0)
    torch.testing.assert_close(model(longer, target), model(source, target))
