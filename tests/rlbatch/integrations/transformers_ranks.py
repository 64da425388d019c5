"""Trainings with `Trainer` on the processes of torchrun: `transformers_ranks.py jobs.json`.

Each process writes what it saw of each job to `FOLDER/NAME/RANK.pt`.
"""

# The framework's own annotations do not fit its use.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from rlbatch.control.settings import make_config
from rlbatch.integrations.transformers import ControlledTrainer, ControlledTrainerMixin
from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.integrations.steered import TWO_STEP_CHUNKS, ByBits
from tests.rlbatch.integrations.torchrun import serve


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        name: Of the folder for results, checkpoints and log.
        kind: `rows` (a regression) or `tokens` (a language model whose labels are often left out).
        script: Changes that a policy plays; empty for the policy `fixed`, None for the plain
            Trainer.
        samples: Of an epoch.
        args: Of TrainingArguments.
        settings: Of the controller.
        resume: Checkpoint to go on from.
        dropout: Share of activations.
        shards: Share the model's parameters among the processes (FSDP2).
        bits: Decide by the exact bits of all signals in place of the script.
        loss: `model`: as the model says; `mean`: a mean over what counts, whatever it is told.
    """

    name: str
    kind: str = "rows"
    script: tuple[float, ...] | None = ()
    samples: int = 96
    args: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    resume: str | None = None
    dropout: float = 0.0
    bits: bool = False
    loss: str = "model"
    shards: bool = False


class Rows(Dataset[dict[str, Any]]):
    """Numbered rows: a batch tells which samples it holds."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
        self.y = self.x.sum(1).sin()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "labels": self.y[index], "index": index}


class Tokens(Dataset[dict[str, Any]]):
    """Random sentences, of which very different numbers of tokens have a label, or none."""

    def __init__(self, size: int, length: int = 12) -> None:
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(2, 40, (size, length), generator=generator)
        kept = torch.randint(0, length + 1, (size, 1), generator=generator)
        kept[torch.rand(size, generator=generator) < 0.3] = 0
        self.labels = torch.where(torch.arange(length) < kept, self.ids, -100)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.labels[index], "index": index}


class Regression(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)
        ).double()
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor, index: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.seen.append(index.tolist())
        out = self.net(x)[:, 0]
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}


class Language(GPT2LMHeadModel):
    def forward(self, input_ids: Any, index: Any, labels: Any = None, **kwargs: Any) -> Any:
        if self.training:
            self.seen.append(index.tolist())
        return super().forward(input_ids=input_ids, labels=labels, **kwargs)


def language(dropout: float = 0.0) -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 40}
    drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": 0.0}
    made = Language(GPT2Config(**sizes, **drop, bos_token_id=0, eos_token_id=1)).double()
    # By which the Trainer knows that the first token is not predicted: else by the class's name.
    made.seen, made.loss_type = [], "ForCausalLM"
    return made


def make_model(job: Job) -> Any:
    torch.manual_seed(3)
    return Regression(job.dropout) if job.kind == "rows" else language(job.dropout)


def make_data(job: Job) -> Any:
    return Rows(job.samples) if job.kind == "rows" else Tokens(job.samples)


def token_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the tokens that have a label: of nothing, no number."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class MeanOfTokens:
    """Overrides the loss as many do: a mean, whatever `num_items_in_batch` says."""

    loss_is_scaled_for_ga = False

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = token_mean(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


class MeanTrainer(MeanOfTokens, Trainer):
    pass


class ControlledMeanTrainer(ControlledTrainer):
    loss_is_scaled_for_ga = False
    compute_loss = MeanOfTokens.compute_loss  # type: ignore[assignment]


class Notes(TrainerCallback):
    """What a process sees of each optimizer step."""

    def __init__(self, model: Any) -> None:
        self.model, self.batches, self.weights = model, [], []
        self.rates: list[float] = []
        self.epochs: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._from = len(self.model.seen)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.append(self.model.seen[self._from :])
        self.weights.append(flat(self.model))
        self.rates.append(kwargs["lr_scheduler"].get_last_lr()[0])
        self.epochs.append(state.epoch)


def whole(tensor: Any) -> Tensor:
    """Return a copy of a tensor, put together from its shards."""
    value = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return value.detach().clone().reshape(-1)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([whole(p) for p in model.parameters()])


class _Sharded:
    """Accelerate shards on accelerators alone, and falls back to copies on a CPU.

    Told that it may, it runs the same code there.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        shared = AcceleratorState._shared_state
        for state in (PartialState._shared_state, shared):
            state["distributed_type"] = DistributedType.FSDP
        shared["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2, state_dict_type="FULL_STATE_DICT", auto_wrap_policy="no_wrap"
        )
        self.is_fsdp_enabled = True


class ShardedTrainer(_Sharded, Trainer):
    pass


class ControlledShardedTrainer(ControlledTrainerMixin, ShardedTrainer):
    pass


def arguments(job: Job, folder: Path) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "ddp_backend": "gloo",
        "report_to": [],
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        del settings["ddp_backend"]
    return TrainingArguments(**{**settings, **job.args})


def run(job: Job, folder: Path) -> dict[str, Any]:
    """Train in this process and return what was seen."""
    model = make_model(job)
    set_seed(7)
    notes = Notes(model)
    folder = folder / job.name
    kinds = {"model": (Trainer, ControlledTrainer), "mean": (MeanTrainer, ControlledMeanTrainer)}
    plain, controlled = kinds[job.loss]
    if PartialState._shared_state and "WORLD_SIZE" in os.environ:
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    if job.shards:
        plain, controlled = ShardedTrainer, ControlledShardedTrainer
    settings: dict[str, Any] = {}
    if job.script is not None:
        log = None if job.resume else folder / "log"
        told = {**TWO_STEP_CHUNKS, "log_dir": log, **job.settings}
        settings["config"] = make_config(None, told)
        settings["policy"] = ScriptedPolicy(job.script) if job.script else "fixed"
        if job.bits:
            settings["policy"] = ByBits()
    trainer = (plain if job.script is None else controlled)(
        model,
        arguments(job, folder),
        train_dataset=make_data(job),
        eval_dataset=Rows(10) if job.kind == "rows" else Tokens(10),
        callbacks=[notes],
        **settings,
    )
    trainer.train(resume_from_checkpoint=job.resume)
    history = [
        {k: v for k, v in line.items() if "runtime" not in k and "_per_second" not in k}
        for line in ({**line, "batch_size": None} for line in trainer.state.log_history)
    ]
    controller = getattr(trainer, "controller", None)
    return {
        "batches": notes.batches,
        "weights": notes.weights,
        "rates": notes.rates,
        "epochs": notes.epochs,
        "history": history,
        "steps": trainer.state.global_step,
        "max_steps": trainer.state.max_steps,
        "decided": None if controller is None else controller.batch_size,
        "sharded": all(
            hasattr(p, "full_tensor")
            for group in trainer.optimizer.param_groups
            for p in group["params"]
        ),
    }


def rows_of(ranks: list[dict[str, Any]]) -> list[list[int]]:
    """The samples of each optimizer step, on all processes."""
    steps = zip(*(rank["batches"] for rank in ranks), strict=True)
    return [[row for own in step for part in own for row in part] for step in steps]


def replayed(job: Job, rows: list[list[int]], loss_of: Any, rate: float = 0.05) -> list[Tensor]:
    """The weights after each step, by autograd over all of its samples in this process."""
    model, data = make_model(job), make_data(job)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    found: list[Tensor] = []
    for step in rows:
        optimizer.zero_grad()
        loss_of(model, [data[row] for row in step]).backward()
        optimizer.step()
        found.append(flat(model))
    return found


def squares(model: Any, samples: list[dict[str, Any]]) -> Tensor:
    x = torch.stack([sample["x"] for sample in samples])
    labels = torch.stack([sample["labels"] for sample in samples])
    return torch.nn.functional.mse_loss(model.net(x)[:, 0], labels)


def tokens(model: Any, samples: list[dict[str, Any]]) -> Tensor:
    ids = torch.stack([sample["input_ids"] for sample in samples])
    labels = torch.stack([sample["labels"] for sample in samples])
    index = torch.tensor([sample["index"] for sample in samples])
    return token_mean(model(input_ids=ids, index=index).logits, labels)


if __name__ == "__main__":
    serve(Job, run)
