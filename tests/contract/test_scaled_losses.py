"""Steps that a GradScaler leaves out, in Lightning and the Trainer of Transformers, against both.

The plain loop, ranks and Accelerate: `situations.steps_that_a_scaler_leaves_out`.
"""

# pyright: reportArgumentType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader

pytest.importorskip("lightning")
pytest.importorskip("transformers")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from transformers import Trainer as HuggingTrainer
from transformers import TrainerCallback, TrainingArguments

from rlbatch.control.settings import make_config
from rlbatch.integrations.lightning import BatchSizeCallback
from rlbatch.integrations.transformers import ControlledTrainer
from tests.contract.programs import BASE, Rows, flat, network
from tests.contract.situations import OFTEN, plain_mean
from tests.contract.test_transformers import Classifier
from tests.contract.test_transformers import Rows as Labelled
from tests.rlbatch.integrations.lightning_runs import MARKS

pytestmark = [
    *MARKS,
    pytest.mark.filterwarnings("ignore:Detected call of"),  # torch's, of the first step left out
    pytest.mark.filterwarnings("ignore:Seems like .optimizer.step"),  # and of Accelerate's patch
]
BAD = (0, 3, 9, 11)
SETTINGS = {"cost": "samples", "guard": None, "lr_coupling": "none"}


def scaler() -> Any:
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)


def overflowing(loss: Tensor, step: int) -> Tensor:
    if step in BAD and loss.requires_grad:
        loss.register_hook(lambda gradient: gradient * torch.inf)
    return loss


# -- Lightning --


class Scaling(MixedPrecision):
    """As on a GPU, but for the halves, which would hide what is to be compared bit by bit."""

    def autocast_context_manager(self) -> AbstractContextManager[None]:
        return nullcontext()


class Net(LightningModule):
    """Notes samples and rate of each step; `lost` are those that were left out."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.rows, self.rates = network(), list[list[int]](), list[float]()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.rows.append(batch[0].tolist())
        self.rates.append(self.optimizers().optimizer.param_groups[0]["lr"])  # type: ignore[union-attr]
        return overflowing(plain_mean(self.net, batch), self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        schedule = LinearLR(optimizer, 1.0, 0.1, 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    policy: Any, saved: Path | None = None, resume: Path | None = None, **settings: Any
) -> tuple[Net, Any, Any]:
    class Saves(BatchSizeCallback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, *args)
            if saved is not None and trainer.global_step == 4:
                trainer.save_checkpoint(saved)

    net, own = Net(), scaler()
    kept = [] if policy is None else [Saves(policy, **{**SETTINGS, **settings})]
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=kept,
        plugins=[Scaling("16-mixed", "cpu", own)],
    )  # fmt: skip
    trainer.fit(net, DataLoader(Rows(76), BASE), ckpt_path=resume)
    return net, own, trainer


def test_lightning(tmp_path: Path) -> None:
    """It steps schedules whatever the scaler does."""
    (plain, one, alone), (ours, other, trainer) = fit(None), fit("fixed", tmp_path / "4.ckpt")
    assert (plain.rates, plain.rows, alone.global_step) == (
        *(ours.rates, ours.rows),
        trainer.global_step,
    )
    assert one.get_scale() == other.get_scale() != 2.0**10
    assert torch.equal(flat(list(plain.net.parameters())), flat(list(ours.net.parameters())))
    resumed, other, _ = fit("fixed", resume=tmp_path / "4.ckpt")
    assert (resumed.rates, resumed.rows) == (plain.rates[4:], plain.rows[4:])
    assert one.get_scale() == other.get_scale()
    assert torch.equal(flat(list(plain.net.parameters())), flat(list(resumed.net.parameters())))
    grown, _, trainer = fit(OFTEN["policy"], **{k: v for k, v in OFTEN.items() if k != "policy"})
    assert sorted(row for step in grown.rows for row in step) == sorted([*range(76)] * 2)
    assert len(set(map(len, grown.rows))) > 3
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 20


# -- Transformers --


class Overflowing(Classifier):
    step = 0

    def forward(self, x: Any, index: Any, labels: Any = None) -> dict[str, Any]:
        out = super().forward(x, index, labels)
        return {**out, "loss": overflowing(out["loss"], self.step)}


class Notes(TrainerCallback):
    def __init__(self, model: Any) -> None:
        self.model, self.rates, self.left_out = model, list[float](), list[int]()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.model.step = state.global_step
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if kwargs["optimizer"].step_was_skipped:
            self.left_out.append(state.global_step)


def train(out: Path, policy: Any, resume: Path | None = None, **settings: Any) -> Any:
    model = Overflowing()
    args = TrainingArguments(
        output_dir=str(out), use_cpu=True, report_to=[], disable_tqdm=True, save_steps=4,
        per_device_train_batch_size=BASE, num_train_epochs=2, max_grad_norm=0.0,
        dataloader_pin_memory=False, save_only_model=False,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = LinearLR(optimizer, 1.0, 0.1, 20)
    given: dict[str, Any] = {}
    if policy is not None:
        given = {"policy": policy, "config": make_config(None, {**SETTINGS, **settings})}
    notes = Notes(model)
    trainer = (HuggingTrainer if policy is None else ControlledTrainer)(
        model, args, train_dataset=Labelled(), optimizers=(optimizer, schedule),
        callbacks=[notes], **given,
    )  # fmt: skip
    trainer.accelerator.scaler = scaler()  # as with fp16 on a GPU
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, notes, schedule


def test_transformers(tmp_path: Path) -> None:
    """It makes no step of the schedule behind an overflow."""
    plain, (found, notes, end) = train(tmp_path / "a", None), train(tmp_path / "b", "fixed")
    assert (notes.rates, end.last_epoch) == (plain[1].rates, plain[2].last_epoch)
    assert notes.left_out == plain[1].left_out == list(BAD)
    assert notes.model.seen == plain[1].model.seen
    assert found.state.global_step == plain[0].state.global_step
    assert torch.equal(flat(list(notes.model.parameters())),
                       flat(list(plain[1].model.parameters())))  # fmt: skip
    assert found.accelerator.scaler.get_scale() == plain[0].accelerator.scaler.get_scale()
    _, again, end = train(tmp_path / "c", "fixed", tmp_path / "b" / "checkpoint-4")
    assert (again.rates, end.last_epoch) == (notes.rates[4:], plain[2].last_epoch)
    assert torch.equal(flat(list(notes.model.parameters())),
                       flat(list(again.model.parameters())))  # fmt: skip
    told = {k: v for k, v in OFTEN.items() if k != "policy"}
    _, grown, end = train(tmp_path / "d", OFTEN["policy"], **told)
    samples, seen = len(Labelled()), [len(step) for step in grown.model.seen]
    ends = [sum(seen[: n + 1]) for n in range(len(seen))]
    plain_steps = -(-samples // BASE)
    made = [plain_steps * (at // samples) + at % samples // BASE for at in ends]
    left = sum(made[n] - (made[n - 1] if n else 0) for n in grown.left_out)
    assert len(grown.left_out) > 1
    assert left > len(grown.left_out)
    assert end.last_epoch == 2 * plain_steps - left
