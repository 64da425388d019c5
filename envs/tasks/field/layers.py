"""Small networks that several families share."""

from __future__ import annotations

from torch import Tensor, nn


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Recurrent(nn.Module):
    """Embedding, a recurrent layer, dropout, and logits for what follows each token."""

    def __init__(
        self, cell: type[nn.GRU] | type[nn.LSTM], vocabulary: int, width: int, dropout: float = 0.0
    ) -> None:
        """Make the layers."""
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width // 2)
        self.cell = cell(width // 2, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, vocabulary] for tokens [B, T]."""
        states, _ = self.cell(self.embedding(tokens))
        return self.output(self.dropout(states))
