"""Fits on the processes of torchrun: `lightning_ranks.py jobs.json`.

Each process writes what it saw of each job to `FOLDER/NAME/RANK.pt`.
"""

# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from rlbatch.integrations.lightning import BatchSizeCallback
from rlbatch.testing import ScriptedPolicy
from tests.contract.programs import BASE, Rows, flat, network
from tests.contract.test_divided_losses import masked_mean, plain_mean, tokens_that_count
from tests.rlbatch.integrations.steered import TWO_STEP_CHUNKS, ByBits
from tests.rlbatch.integrations.torchrun import serve


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        name: Of the folder for results, checkpoints and log.
        script: What the policy asks for; empty: `fixed`; None: no callback.
        bits: Decide by the exact bits of all signals in place of `script`.
        tokens: The loss is a mean over tokens, which some parts have none of.
        samples: Of an epoch.
        save_at: Optimizer steps behind which there is a checkpoint.
        resume: A checkpoint, `NAME/STEP.ckpt`.
        workers: Of the loader; where there are some, `persistent` or not.
    """

    name: str
    script: tuple[float, ...] | None = (1.0, 0.6, -2.0, 1.5, -1.0, 1.0)
    bits: bool = False
    tokens: bool = False
    accumulation: int = 1
    samples: int = 75
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    save_at: tuple[int, ...] = ()
    resume: str = ""
    workers: int = 0
    persistent: bool = False


def gather(values: list[int]) -> list[int]:
    rows: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(rows, values)
    return [index for row in rows for index in row]


class Net(LightningModule):
    """Notes the samples, gradient and rate of each optimizer step."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.net, self.loss = network(), masked_mean if tokens else plain_mean
        self.own: list[int] = []
        self.steps: list[list[int]] = []
        self.gradients: list[Tensor] = []
        self.rates: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.own += batch[0].tolist()
        return self.loss(self.net, batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.steps.append(gather(self.own))
        self.own = []
        self.gradients.append(flat([p.grad for p in self.net.parameters()]))
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = {"scheduler": CosineAnnealingLR(optimizer, steps), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Saving(Callback):
    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        path = self.folder / f"{trainer.global_step}.ckpt"
        if trainer.global_step in self.steps and not path.exists():
            trainer.save_checkpoint(path)


def run(job: Job, folder: Path) -> dict[str, Any]:
    torch.manual_seed(7)
    net, own = Net(job.tokens), BASE // 2 // job.accumulation
    callbacks: list[Any] = []
    if job.script is not None:
        policy: Any = ScriptedPolicy(job.script) if job.script else "fixed"
        weight: Any = tokens_that_count if job.tokens else None
        control = BatchSizeCallback(
            ByBits() if job.bits else policy,
            weight=weight,
            **{**TWO_STEP_CHUNKS, **job.settings},
        )
        callbacks.append(control)
    if job.save_at:
        callbacks.insert(0, Saving(folder / job.name, job.save_at))
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        accumulate_grad_batches=job.accumulation, callbacks=callbacks, default_root_dir=folder,
    )  # fmt: skip
    loader = DataLoader(
        Rows(job.samples), own, shuffle=True, num_workers=job.workers,
        persistent_workers=job.persistent,
    )  # fmt: skip
    trainer.fit(net, loader, ckpt_path=str(folder / job.resume) if job.resume else None)
    return {
        "steps": net.steps,
        "gradients": net.gradients,
        "rates": net.rates,
        "weights": flat(list(net.net.parameters())),
        "global_step": trainer.global_step,
    }


if __name__ == "__main__":
    serve(Job, run)
