"""One training of a small language model: plainly, or with a controller."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from rlbatch.agents.evaluate.overhead_larger import LanguageModel
from rlbatch.agents.gpu.language_data import Text, Windows, as_it_is
from rlbatch.agents.gpu.report import wait
from rlbatch.controller import BatchController
from rlbatch.errors import ConfigurationError

PLAIN = "constant"
"""The plain loop, without a controller."""

_WORDS = 256
_CLIP = 1.0
_FLOOR = 0.1  # of the learning rate's peak, at the schedule's end


@dataclass(frozen=True)
class LanguageJob:
    """What is trained.

    Attributes:
        text: Train and validation bytes.
        width: Of a token's vector.
        heads: Of each attention.
        layers: Blocks.
        length: Tokens of a sample.
        batch_size: Samples of a step, for which the learning rate was chosen.
        learning_rate: Its peak.
        samples: Of a run.
        validation: Windows of the held-out text.
        precise: Float32 all through, instead of bfloat16 where autocast takes it.
    """

    text: Text
    width: int = 384
    heads: int = 6
    layers: int = 6
    length: int = 256
    batch_size: int = 16
    learning_rate: float = 6e-4
    samples: int = 1024
    validation: int = 512
    precise: bool = False

    def __post_init__(self) -> None:
        """Refuse a run without whole steps."""
        if self.samples < self.batch_size or self.samples % self.batch_size:
            raise ConfigurationError(
                f"A run needs a multiple of {self.batch_size} samples, got {self.samples}."
            )

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.text.train.device

    @property
    def steps(self) -> int:
        """Of a run at the constant size."""
        return self.samples // self.batch_size

    def model(self, seed: int) -> LanguageModel:
        """Return fresh weights."""
        torch.manual_seed(seed)
        model = LanguageModel(_WORDS, self.length, self.width, self.heads, self.layers)
        return model.to(self.device)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Return AdamW, fused where there is a GPU."""
        return AdamW(
            model.parameters(),
            lr=self.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.1,
            fused=self.device.type == "cuda",
        )

    def schedule(self, optimizer: Optimizer) -> LambdaLR:
        """Return a warm-up and a cosine down to a tenth, by steps of the constant size."""
        warm_up = max(1, self.steps // 20)

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            done = min(1.0, (step - warm_up) / max(1, self.steps - warm_up))
            return _FLOOR + (1.0 - _FLOOR) * 0.5 * (1.0 + math.cos(math.pi * done))

        return LambdaLR(optimizer, factor)

    def loader(self, seed: int) -> DataLoader[Any]:
        """Return the run's samples, each once, in an order of its own."""
        data = Windows(self.text.train, self.length, self.samples, seed)
        return DataLoader(
            data,
            batch_size=self.batch_size,
            shuffle=True,
            collate_fn=as_it_is,
            generator=torch.Generator().manual_seed(seed),
        )

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Return the mean loss of a token, in nats."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=not self.precise):
            logits = model(batch[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    @torch.no_grad()
    def validate(self, model: nn.Module) -> float:
        """Return the mean loss of a token of the held-out text."""
        data = Windows(self.text.validation, self.length, self.validation, seed=12345)
        model.eval()
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for first in range(0, self.validation, 64):
            batch = data.__getitems__(list(range(first, min(first + 64, self.validation))))
            total += self.loss(model, batch).double() * len(batch)
        model.train()
        return float(total) / self.validation


@dataclass
class LanguageRun:
    """What a run came to.

    Attributes:
        seconds: From its first batch to its last step, without the validation.
        steps: Optimizer steps.
        samples: Of them all.
        val_loss: At its end, nats a token.
        changes: Share of the samples, and the batch size from there on.
        peak_bytes: Most memory that tensors took; 0 where nobody counts.
    """

    seconds: float = 0.0
    steps: int = 0
    samples: int = 0
    val_loss: float = math.nan
    changes: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    peak_bytes: int = 0


def train(job: LanguageJob, policy: str, seed: int) -> LanguageRun:
    """Return a run of the job.

    Args:
        job: What is trained.
        policy: `PLAIN`, or who decides on the batch size.
        seed: Of weights and order.
    """
    model = job.model(seed)
    run = LanguageRun()
    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.device)
    steps = (_plain if policy == PLAIN else _controlled(policy))(job, model, seed)
    wait(job.device)
    began = time.perf_counter()
    size = job.batch_size
    for samples, next_size in steps:
        run.steps += 1
        run.samples += samples
        if next_size != size:
            size = next_size
            run.changes.append((run.samples / job.samples, size))
    wait(job.device)
    run.seconds = time.perf_counter() - began
    if job.device.type == "cuda":
        run.peak_bytes = torch.cuda.max_memory_allocated(job.device)
    run.val_loss = job.validate(model)
    return run


_Loop = Callable[[LanguageJob, nn.Module, int], Iterator[tuple[int, int]]]


def _plain(job: LanguageJob, model: nn.Module, seed: int) -> Iterator[tuple[int, int]]:
    """Yield samples and the next batch size after each step."""
    optimizer = job.optimizer(model)
    scheduler = job.schedule(optimizer)
    for batch in job.loader(seed):
        job.loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        yield len(batch), job.batch_size


def _controlled(policy: str) -> _Loop:
    def loop(job: LanguageJob, model: nn.Module, seed: int) -> Iterator[tuple[int, int]]:
        optimizer = job.optimizer(model)
        controller = BatchController(
            model, optimizer, batch_size=job.batch_size, policy=policy, epochs=1
        )
        scheduler = controller.schedule(job.schedule(optimizer))
        for batch in controller.loader(job.loader(seed)):
            controller.backward(job.loss(model, batch))
            samples = controller.step(clip_norm=_CLIP)
            scheduler.step()
            if samples:
                yield samples, controller.batch_size
        controller.close()

    return loop
