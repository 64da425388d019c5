"""What the tests of the Lightning callback train, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Dataset

pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

from rlbatch.integrations.lightning import BatchSizeCallback
from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.integrations.steered import TWO_STEP_CHUNKS

MARKS = [
    # Lightning's advice on the number of workers, which is for larger data.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning builds a pytree with a function that torch is about to remove.
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    # An example trains fewer batches than Lightning logs after.
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

SAMPLES, BASE = 75, 8
GROW = ScriptedPolicy((1.0, 0.5, -2.0, 2.5))
CONFIG = TWO_STEP_CHUNKS


class Rows(Dataset[tuple[int, Tensor, Tensor]]):
    """Numbered rows: a batch tells which samples it holds."""

    def __init__(self, size: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(size, 6, generator=generator)
        self.y = self.x.sum(1, keepdim=True).sin()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        return index, self.x[index], self.y[index]


class Net(LightningModule):
    """An ordinary module that remembers what reached it."""

    def __init__(
        self,
        schedule: Callable[[Any, Any], Any] | None = None,
        optimizer: Callable[[Any], Any] | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.schedule = schedule
        self.make_optimizer = optimizer or (lambda parameters: AdamW(parameters, lr=3e-3))
        self.parts: list[tuple[int, int, list[int]]] = []  # epoch, steps made, samples
        self.losses: list[float] = []
        self.validated_at: list[int] = []  # samples seen in training

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        index, x, y = batch
        self.parts.append((self.trainer.current_epoch, self.trainer.global_step, index.tolist()))
        loss = nn.functional.mse_loss(self.net(x), y)
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated_at.append(sum(len(part[2]) for part in self.parts))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        _, x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer, self)}

    @property
    def batches(self) -> dict[int, list[list[int]]]:
        """The samples of each optimizer step's micro-batches, by epoch."""
        found: dict[int, dict[int, list[int]]] = {}
        for epoch, step, samples in self.parts:
            found.setdefault(epoch, {}).setdefault(step, []).extend(samples)
        return {epoch: list(steps.values()) for epoch, steps in found.items()}

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batches in self.batches.values() for batch in batches]

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.net.parameters()])


class Linear(LightningModule):
    """Its gradient is the mean of the samples that it is of: what each step is made of shows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.parts: list[list[int]] = []
        self.gradients: list[Tensor] = []
        self.batches: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.parts.append(batch.tolist())
        return self.weight[batch].mean()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert self.weight.grad is not None
        self.gradients.append(self.weight.grad.clone())
        self.batches.append([i for part in self.parts for i in part])
        self.parts = []

    def configure_optimizers(self) -> Any:
        return SGD([self.weight], lr=1.0)


class Numbers(Dataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Rows(), BASE, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Rows(20), 10)


class Rates(Callback):
    """Notes the samples seen and the learning rate behind each optimizer step."""

    def __init__(self) -> None:
        self.seen = 0
        self.rates: dict[int, float] = {}
        self.used: list[float] = []
        self.made = 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.used.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen += len(batch[0])
        if len(self.used) > self.made:
            self.made = len(self.used)
            self.rates[self.seen] = trainer.optimizers[0].param_groups[0]["lr"]


def cosine(optimizer: Any, module: Any) -> dict[str, Any]:
    """The usual one: over the whole run, by the Trainer's own estimate."""
    steps = module.trainer.estimated_stepping_batches
    return {"scheduler": CosineAnnealingLR(optimizer, steps), "interval": "step"}


def powers(frequency: int = 1) -> Callable[[Any, Any], Any]:
    """A schedule whose rate tells how many steps it made."""

    def make(optimizer: Any, module: Any) -> Any:
        scheduler = LambdaLR(optimizer, lambda step: 0.99**step)
        return {"scheduler": scheduler, "interval": "step", "frequency": frequency}

    return make


def schedules(kind: str) -> Callable[[Any, Any], Any]:
    def make(optimizer: Any, module: Any) -> Any:
        made: dict[str, Any] = {
            "step": {"scheduler": CosineAnnealingLR(optimizer, 40), "interval": "step"},
            "every third": {
                "scheduler": StepLR(optimizer, 2),
                "interval": "step",
                "frequency": 3,
            },
            "epoch": {"scheduler": StepLR(optimizer, 1, 0.5), "interval": "epoch"},
            "plateau": {"scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)},
        }
        if kind == "plateau":
            return {**made[kind], "monitor": "val_loss"}
        return made[kind]

    return make


class Run:
    """A small fit, with the callback or without."""

    def __init__(
        self,
        policy: Any = None,
        *,
        net: LightningModule | None = None,
        samples: int = SAMPLES,
        accumulation: int = 1,
        workers: int = 0,
        callbacks: tuple[Any, ...] = (),
        loader: Any = None,
        val: bool = True,
        data: Any = None,
        settings: dict[str, Any] | None = None,
        monitor: str | None = None,
        ckpt_path: Any = None,
        **trainer: Any,
    ) -> None:
        torch.manual_seed(5)
        self.net: Any = Net() if net is None else net
        self.callback: Any = None
        if policy is not None:
            config = {**CONFIG, **(settings or {})}
            self.callback = BatchSizeCallback(policy, monitor=monitor, **config)
            callbacks = (*callbacks, self.callback)  # last: it has to find its place itself
        options: dict[str, Any] = {
            "max_epochs": 3 if "max_steps" not in trainer else None,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            "accumulate_grad_batches": accumulation,
            "callbacks": list(callbacks),
            **({} if val else {"limit_val_batches": 0}),
        }
        self.trainer = Trainer(**{**options, **trainer})
        if data is not None:
            self.trainer.fit(self.net, datamodule=data, ckpt_path=ckpt_path)
            return
        if loader is None:
            loader = DataLoader(
                Rows(samples), BASE // accumulation, shuffle=True, num_workers=workers
            )
        validates = is_overridden("validation_step", self.net)
        validation = DataLoader(Rows(20), 10) if validates else None
        self.trainer.fit(self.net, loader, validation, ckpt_path=ckpt_path)

    @property
    def controller(self) -> Any:
        return self.callback.controller

    @property
    def rate(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]


EVERY_STEP = {"first_chunk_steps": 1, "min_chunk_steps": 1, "max_chunk_steps": 1}


def mean_of(batches: list[list[int]], size: int) -> list[Tensor]:
    expected = []
    for batch in batches:
        gradient = torch.zeros(size, dtype=torch.float64)
        gradient[batch] = 1.0 / len(batch)
        expected.append(gradient)
    return expected


def assert_same(plain: Run, controlled: Run) -> None:
    assert plain.net.parts == controlled.net.parts
    assert plain.net.losses == controlled.net.losses
    assert plain.net.validated_at == controlled.net.validated_at
    assert torch.equal(plain.net.weights, controlled.net.weights)
    assert plain.rate == controlled.rate
    assert plain.trainer.global_step == controlled.trainer.global_step
    assert plain.trainer.current_epoch == controlled.trainer.current_epoch
    metrics = plain.trainer.callback_metrics
    assert metrics.keys() <= controlled.trainer.callback_metrics.keys()
    for name, value in metrics.items():
        assert controlled.trainer.callback_metrics[name] == value, name
