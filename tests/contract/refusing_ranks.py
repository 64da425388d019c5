"""What two ranks refuse together in frameworks: `refusing_ranks.py jobs.json` under torchrun.

Each process writes what was said of each job to `FOLDER/NAME/RANK.pt`.
"""

# pyright: reportArgumentType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from rlbatch.control.settings import make_config
from rlbatch.errors import ConfigurationError
from rlbatch.integrations.accelerate import AcceleratedController
from rlbatch.integrations.lightning import BatchSizeCallback
from rlbatch.integrations.transformers import ControlledTrainer
from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.integrations.torchrun import serve
from tests.rlbatch.integrations.transformers_ranks import Rows

BASE = 8
SETTINGS: dict[str, Any] = {"cost": "samples", "on_error": "raise", "lr_coupling": "none"}
SCRIPT = ScriptedPolicy((1.0, -0.5))


@dataclass(frozen=True)
class Job:
    """What is tried.

    Attributes:
        name: Framework and what differs on the second rank, or happens on both: `data`, `loader`,
            `micro`, `state`, `missing` (its file, or what it is of), `converted`.
    """

    name: str

    @property
    def kind(self) -> str:
        return self.name.split()[1]

    def samples(self, rank: int) -> int:
        return 64 - rank * (self.kind == "data")

    def batch(self, rank: int) -> int:
        return BASE // 2 * (1 + rank * (self.kind == "loader"))

    def settings(self, rank: int) -> dict[str, Any]:
        more = {"micro_batch_size": 2 + rank} if self.kind == "micro" else {}
        return {**SETTINGS, **more}


def damaged(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "control_loop": {}}


class Net(LightningModule):
    """Of all frameworks."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net, self.job = nn.Linear(6, 1).double(), job

    def forward(self, x: Tensor, labels: Tensor, index: Any = None) -> dict[str, Tensor]:
        found = self.net(x.to(self.net.weight.dtype))[:, 0]
        loss = nn.functional.mse_loss(found, labels.to(found.dtype))
        return {"loss": loss, "logits": found}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["x"], batch["labels"])["loss"]

    def on_train_epoch_start(self) -> None:
        if self.job.kind == "converted" and self.current_epoch:
            self.net.float()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


# -- Accelerate --


def accelerate(job: Job, folder: Path, rank: int) -> None:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)

    def begin() -> tuple[Any, Any, Any]:
        net = Net(job)
        prepared: Any = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.01))
        controller = AcceleratedController(
            accelerator, *prepared, batch_size=BASE, policy=SCRIPT, **job.settings(rank)
        )
        loader = controller.loader(DataLoader(Rows(job.samples(rank)), job.batch(rank)))
        return prepared[0], controller, loader

    def train(model: Any, controller: Any, loader: Any) -> None:
        for batch in loader:
            controller.backward(model(**batch)["loss"])
            controller.step()

    model, controller, loader = begin()
    train(model, controller, loader)
    state = controller.state_dict()
    if job.kind == "converted":
        model.float()
        train(model, controller, loader)
    if job.kind in ("state", "missing"):
        fresh, saved = begin()[1], folder / job.name / "saved"
        if job.kind == "state":
            fresh.load_state_dict(damaged(state) if rank else state)
        accelerator.register_for_checkpointing(controller)
        accelerator.save_state(str(saved))
        if rank:
            (saved / "rlbatch_rank1.pt").write_bytes(b"nothing")
        accelerator.load_state(str(saved))


# -- Lightning --


class Damaging(BatchSizeCallback):
    wrong = ""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.wrong == "state":
            state_dict = {**state_dict, "controller": damaged(state_dict["controller"])}
        super().load_state_dict({} if self.wrong == "missing" else state_dict)


def lightning(job: Job, folder: Path, rank: int) -> None:
    def fit(resume: Path | None = None) -> Any:
        callback = Damaging(SCRIPT, **job.settings(rank))
        callback.wrong = job.kind if rank and resume else ""
        trainer = Trainer(
            max_epochs=1 + (job.kind == "converted" or resume is not None),
            accelerator="cpu", devices=2, strategy="ddp", logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            callbacks=[callback],
        )  # fmt: skip
        loader = DataLoader(Rows(job.samples(rank)), job.batch(rank))
        trainer.fit(Net(job), loader, ckpt_path=resume)
        return trainer

    trainer = fit()
    if job.kind in ("state", "missing"):
        trainer.save_checkpoint(folder / job.name / "saved.ckpt")
        fit(folder / job.name / "saved.ckpt")


# -- Transformers --


class Converts(TrainerCallback):
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if kwargs["model"].job.kind == "converted":
            kwargs["model"].float()


def transformers(job: Job, folder: Path, rank: int) -> None:
    AcceleratorState._reset_state()
    GradientState._reset_state()

    def train(resume: str | None = None) -> None:
        net = Net(job)
        args = TrainingArguments(
            output_dir=str(folder / job.name), use_cpu=True, ddp_backend="gloo", report_to=[],
            disable_tqdm=True, per_device_train_batch_size=job.batch(rank), num_train_epochs=2,
            max_grad_norm=0.0, dataloader_pin_memory=False, save_strategy="epoch", optim="sgd",
            logging_steps=1000,
        )  # fmt: skip
        config = make_config(None, job.settings(rank))
        ControlledTrainer(
            net, args, train_dataset=Rows(job.samples(rank)), callbacks=[Converts()],
            policy=SCRIPT, config=config,
        ).train(resume_from_checkpoint=resume)  # fmt: skip

    train()
    if job.kind in ("state", "missing"):
        saved = sorted((folder / job.name).glob("checkpoint-*"))[0]
        torch.distributed.barrier()
        file = saved / "rlbatch_rank1.pt"
        if rank and job.kind == "state":
            state = torch.load(file)
            torch.save({**state, "controller": damaged(state["controller"])}, file)
        elif rank:
            file.write_bytes(b"nothing")
        torch.distributed.barrier()
        train(str(saved))


def run(job: Job, folder: Path) -> dict[str, Any]:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank, said = torch.distributed.get_rank(), ""
    tried = {"accelerate": accelerate, "lightning": lightning, "transformers": transformers}
    try:
        tried[job.name.split()[0]](job, folder, rank)
    except ConfigurationError as error:
        said = str(error)
    except Exception as error:
        said = f"UNEXPECTED {type(error).__name__}: {error}"
    torch.distributed.barrier()
    return {"said": said}


if __name__ == "__main__":
    serve(Job, run)
