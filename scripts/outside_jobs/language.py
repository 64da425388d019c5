"""Jobs with text: the next word, dates in another spelling."""

from __future__ import annotations

import datetime
import re
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import torch
from outside import Rows, as_is, make, others, rate
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset, TensorDataset

from rlbatch.envs import Task

# Words of Python's standard library: an LSTM language model, AdamW, constant rate

_VOCABULARY, _LENGTH = 500, 16


@cache
def _words() -> tuple[Dataset, Dataset]:
    """Chunks of 16 words of source text; the files of the validation set are others."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    files += sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-r]*/*.py"))
    files = [f for f in files if "site-packages" not in f.parts and f.stat().st_size < 200_000]
    pattern = re.compile(r"[A-Za-z_]+|\d|\n|[^\sA-Za-z0-9_]+")
    order = np.random.default_rng(102).permutation(len(files))
    held, rest = [], []
    for place, i in enumerate(order):
        words = pattern.findall(files[i].read_text("utf-8", "ignore"))
        (held if place < 40 else rest).extend(words)
        if len(rest) > 51_000 * (_LENGTH + 1):
            break
    found, number = np.unique(np.array(rest), return_counts=True)
    kept = found[np.argsort(-number, kind="stable")[: _VOCABULARY - 1]]
    index = {word: i + 1 for i, word in enumerate(kept.tolist())}

    def chunks(words: list[str], count: int) -> TensorDataset:
        ids = torch.tensor([index.get(w, 0) for w in words[: count * (_LENGTH + 1)]])
        return TensorDataset(ids[: len(ids) // (_LENGTH + 1) * (_LENGTH + 1)].view(-1, _LENGTH + 1))

    return chunks(rest, 50_000), chunks(held, 1_500)


class WordModel(nn.Module):
    """Embedding, LSTM, output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, 32)
        self.lstm = nn.LSTM(32, 48, batch_first=True)
        self.drop = nn.Dropout(0.1)
        self.output = nn.Linear(48, _VOCABULARY)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return what the loss compares."""
        return self.output(self.drop(self.lstm(self.embedding(words))[0]))


def _next_word(model: nn.Module, batch) -> torch.Tensor:
    words = batch[0]
    return functional.cross_entropy(model(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten())


def words_lstm(factor: float = 1.0) -> Task:
    """Word language model."""
    train, val = _words()
    lr = rate("words_lstm", factor)
    return make(
        "words_lstm",
        factor,
        model=WordModel,
        train_set=train,
        val_set=val,
        loss=_next_word,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01),
    )


# Dates in many spellings to ISO: a transformer with cross-attention, Adam, one-cycle

_CHARACTERS = " ,./-'0123456789abcdefghijklmnopqrstuvwxyz"
_WIDTH = 20


@cache
def _dates() -> tuple[Dataset, Dataset]:
    rng = np.random.default_rng(103)
    spelt = ["%d %B %Y", "%B %d, %Y", "%d.%m.%Y", "%m/%d/%y", "%a %d %b %Y", "%d-%b-%y", "%Y%m%d"]
    spelt += ["%b %d '%y", "%d of %B %Y"]
    first, span = datetime.date(1950, 1, 1), 365 * 95
    count = 51_500
    table = np.zeros(128, dtype=np.int64)
    table[[ord(c) for c in _CHARACTERS]] = np.arange(1, len(_CHARACTERS) + 1)
    dates = [first + datetime.timedelta(days=d) for d in rng.integers(0, span, count).tolist()]
    forms = rng.integers(0, len(spelt), count).tolist()
    texts = [
        date.strftime(spelt[k]).lower().ljust(_WIDTH)[:_WIDTH]
        for date, k in zip(dates, forms, strict=True)
    ]
    isos = [date.isoformat() for date in dates]

    def coded(rows: list[str]) -> torch.Tensor:
        flat = np.frombuffer("".join(rows).encode("ascii"), dtype=np.uint8)
        return torch.from_numpy(table[flat].reshape(len(rows), -1))

    source, goal = coded(texts), coded(isos)
    return (
        Rows(source[:50_000], goal[:50_000]),
        Rows(source[50_000:], goal[50_000:]),
    )


class Translator(nn.Module):
    """One encoder and one decoder layer of width 32."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        symbols = len(_CHARACTERS) + 1
        self.source = nn.Embedding(symbols, width)
        self.goal = nn.Embedding(symbols, width)
        self.source_place = nn.Parameter(0.02 * torch.randn(_WIDTH, width))
        self.goal_place = nn.Parameter(0.02 * torch.randn(10, width))
        shape = {"dim_feedforward": 2 * width, "dropout": 0.0, "batch_first": True}
        self.encoder = nn.TransformerEncoderLayer(width, 2, norm_first=True, **shape)
        self.decoder = nn.TransformerDecoderLayer(width, 2, norm_first=True, **shape)
        self.output = nn.Linear(width, symbols)
        self.register_buffer("mask", torch.full((10, 10), float("-inf")).triu(1), persistent=False)

    def forward(self, source: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        """Return what the loss compares."""
        memory = self.encoder(self.source(source) + self.source_place)
        previous = functional.pad(goal[:, :-1], (1, 0))
        return self.output(
            self.decoder(self.goal(previous) + self.goal_place, memory, tgt_mask=self.mask)
        )


def _translate(model: nn.Module, batch) -> torch.Tensor:
    return functional.cross_entropy(model(*batch).flatten(0, 1), batch[1].flatten())


def dates_seq2seq(factor: float = 1.0) -> Task:
    """Translation of dates."""
    train, val = _dates()
    lr = rate("dates_seq2seq", factor)
    return make(
        "dates_seq2seq",
        factor,
        model=Translator,
        train_set=train,
        val_set=val,
        loss=_translate,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        scheduler=lambda optimizer, steps: OneCycleLR(
            optimizer, max_lr=lr, total_steps=steps + 1, pct_start=0.25
        ),
        collate=as_is,
    )


globals().update(others(words_lstm, dates_seq2seq))
