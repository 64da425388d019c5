"""A small pre-norm transformer block, for the text tasks.

Vaswani et al., Attention is all you need (2017), section 3; the normalisation comes before each
part, as in Xiong et al., On layer normalization in the transformer architecture (2020).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself or to another."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the projections; `width` is a multiple of `heads`."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Return [B, T, width]: `x` [B, T, width] asks, `context` [B, S, width] answers.

        Args:
            x: Where the queries come from.
            context: Where the keys and values come from.
            mask: True where a query may look, broadcastable to [B, heads, T, S].
            causal: Whether position t may look at positions up to t only.
        """
        keys, values = self.key_value(context).chunk(2, dim=-1)
        mixed = scaled_dot_product_attention(
            self._split(self.query(x)),
            self._split(keys),
            self._split(values),
            attn_mask=mask,
            is_causal=causal,
        )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Self-attention, attention to a context if asked for, and a perceptron, each residual."""

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        """Make the parts; `cross` adds the attention to a context."""
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if cross else 2))
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads) if cross else None
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Return [B, T, width] of `x` [B, T, width]; masks and `causal` as in `Attention`."""
        normed = self.norms[0](x)
        x = x + self.self_attention(normed, normed, mask, causal)
        if self.cross_attention is not None and context is not None:
            x = x + self.cross_attention(self.norms[1](x), context, context_mask)
        return x + self.perceptron(self.norms[-1](x))


class Embedding(nn.Module):
    """Sum of a token's and its position's vector."""

    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        """Make the two tables, normal with a standard deviation of width^-1/2."""
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(positions, width) * width**-0.5)
        nn.init.normal_(self.tokens.weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [B, T, width] of token indices [B, T]."""
        return self.tokens(tokens) + self.positions[: tokens.shape[1]]


class CausalTransformer(nn.Module):
    """Embedding, causal blocks, normalisation and an output layer."""

    def __init__(
        self, vocabulary: int, positions: int, width: int, heads: int, blocks: int = 1
    ) -> None:
        """Make the layers."""
        super().__init__()
        self.embedding = Embedding(vocabulary, positions, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, vocabulary] for what follows each of the tokens [B, T]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, causal=True)
        return self.output(self.norm(x))


def next_token_loss(model: nn.Module, batch: tuple[Tensor], first: int = 1) -> Tensor:
    """Return the mean cross entropy in nats a token of windows [B, T + 1].

    Args:
        model: As `CausalTransformer`.
        batch: The windows.
        first: Position in the window of the first token that counts.
    """
    (windows,) = batch
    logits = model(windows[:, :-1])[:, first - 1 :]
    return cross_entropy(logits.flatten(0, 1), windows[:, first:].flatten())
