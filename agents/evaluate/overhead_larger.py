"""Models of the size that people train on one GPU, with their data and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer

_CLASSES = 10
_WORDS, _LENGTH, _WIDTH, _HEADS, _LAYERS = 256, 128, 384, 6, 6


class _Residual(nn.Module):
    """Two convolutions beside a shortcut, as in He et al. 2016."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(wider), nn.BatchNorm2d(wider)])
        self.shortcut = (
            nn.Conv2d(channels, wider, 1, stride, bias=False) if stride > 1 else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(y)) + self.shortcut(x))


class Block(nn.Module):
    """Causal attention and a feed-forward network, each behind a normalisation.

    `functional.scaled_dot_product_attention` takes the device's fused kernels.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Make a block.

        Args:
            width: Of a token's vector.
            heads: Of the attention.
        """
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shaped as its input (samples, tokens, width)."""
        samples, tokens, width = x.shape
        parts = self.queries(self.norm(x)).view(samples, tokens, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(samples, tokens, width))
        return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))


class LanguageModel(nn.Module):
    """A decoder of the GPT kind: the logits of each next token."""

    def __init__(self, words: int, length: int, width: int, heads: int, layers: int) -> None:
        """Make a model.

        Args:
            words: Tokens that there are.
            length: Most tokens of a sample.
            width: Of a token's vector.
            heads: Of each attention.
            layers: Blocks.
        """
        super().__init__()
        self.tokens, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.apply(_as_in_gpt)

    def forward(self, words: Tensor) -> Tensor:
        """Return logits (samples, tokens, words) of token numbers (samples, tokens)."""
        places = torch.arange(words.shape[1], device=words.device)
        return self.head(self.norm(self.blocks(self.tokens(words) + self.places(places))))


def _as_in_gpt(layer: nn.Module) -> None:
    """Draw small weights, as GPT-2 does."""
    if isinstance(layer, nn.Linear | nn.Embedding):
        nn.init.normal_(layer.weight, std=0.02)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


class _Classifier(nn.Module):
    """A language model whose last token's logits are those of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LanguageModel(_WORDS, _LENGTH, _WIDTH, _HEADS, _LAYERS)

    def forward(self, words: Tensor) -> Tensor:
        return self.model(words)[:, -1, :_CLASSES]


def _mlp() -> nn.Module:
    widths = (1024, 2048, 2048, 2048)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], _CLASSES))


def _cnn() -> nn.Module:
    stages = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    blocks = [_Residual(*stage) for stage in stages]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, _CLASSES)]
    return nn.Sequential(*stem, *blocks, *ends)


def adamw(model: nn.Module, learning_rate: float = 3e-4) -> Optimizer:
    """Return the optimizer of transformers and perceptrons."""
    return AdamW(model.parameters(), lr=learning_rate)


def sgd(model: nn.Module) -> Optimizer:
    """Return the optimizer of convolutional networks."""
    return SGD(model.parameters(), lr=0.01, momentum=0.9)


Parts = tuple[Callable[[], nn.Module], Callable[[int], Tensor], Callable[[nn.Module], Optimizer]]

LARGER: dict[str, Parts] = {
    "mlp-11m": (_mlp, lambda samples: torch.randn(samples, 1024), adamw),
    "resnet-2.8m": (_cnn, lambda samples: torch.randn(samples, 3, 32, 32), sgd),
    "transformer-11m": (
        _Classifier,
        lambda samples: torch.randint(0, _WORDS, (samples, _LENGTH)),
        adamw,
    ),
}
"""By name: what makes the model, some inputs, and the optimizer."""
