"""Trainings on Accelerate on the processes of torchrun: `accelerate_ranks.py jobs.json`.

Each process writes what it saw of each job to `FOLDER/NAME/RANK.pt`.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from rlbatch.integrations.accelerate import AcceleratedController
from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.integrations.steered import TWO_STEP_CHUNKS, ByBits
from tests.rlbatch.integrations.torchrun import serve
from tests.rlbatch.integrations.transformers_ranks import Rows, flat


class Measuring(ScriptedPolicy):
    """Plays its script and has the gradient noise measured."""

    needs_gradient_noise = True


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        name: Of the folder for results, checkpoints and log.
        kind: `ddp` or `fsdp`.
        accumulation: Of the accelerator; a loader's batch has 8 samples over this.
        script: Changes that a policy plays; empty for the policy `fixed`.
        samples: Of an epoch.
        settings: Of the controller.
        saves: Optimizer steps behind which the state is saved.
        resume: Name of the job whose state is taken up, and behind which step it is.
        bits: Decide by the exact bits of all signals in place of the script.
        weigh: Give each part's loss as a mean with weights.
        dropout: Share of activations.
        shuffle: Also without a script.
        workers: Of the loader; where there are some, `persistent` or not.
    """

    name: str
    kind: str = "ddp"
    accumulation: int = 1
    script: tuple[float, ...] = (1.0, 0.6, -2.0, 1.5, -1.0, 1.0)
    samples: int = 75
    settings: dict[str, Any] = field(default_factory=dict)
    saves: tuple[int, ...] = ()
    resume: tuple[str, int] | tuple[()] = ()
    bits: bool = False
    weigh: bool = False
    dropout: float = 0.0
    epochs: int = 3
    shuffle: bool = False
    workers: int = 0
    persistent: bool = False


def make_model(job: Job) -> nn.Module:
    torch.manual_seed(3)
    parts = nn.Linear(6, 7), nn.Tanh(), nn.Dropout(job.dropout), nn.Linear(7, 1)
    return nn.Sequential(*parts).double()


def weight_of(y: Tensor) -> Tensor:
    """Return weights of samples, some of which are 0."""
    return (y > 0.2).double() * (1.0 + y)


def loss_of(model: Any, batch: Any, weigh: bool) -> tuple[Tensor, float | None]:
    errors = (model(batch["x"])[:, 0] - batch["labels"]).square()
    if not weigh:
        return errors.mean(), None
    weights = weight_of(batch["labels"])
    return (errors * weights).sum() / weights.sum().clamp_min(1e-12), float(weights.sum())


def make_accelerator(job: Job) -> Accelerator:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if PartialState._shared_state:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=job.accumulation)
    if job.kind == "fsdp":
        # Accelerate shards on accelerators alone, and falls back to copies on a CPU. Told that it
        # may, it runs the same code there.
        shared = AcceleratorState._shared_state
        for state in (PartialState._shared_state, shared):
            state["distributed_type"] = DistributedType.FSDP
        shared["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2, state_dict_type="SHARDED_STATE_DICT", auto_wrap_policy="no_wrap"
        )
    return accelerator


def alone(job: Job) -> dict[str, Any]:
    """The same loop on Accelerate without a controller."""
    accelerator = make_accelerator(job)
    model = make_model(job)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    prepared: Any = accelerator.prepare(model, optimizer, DataLoader(Rows(job.samples), 8))
    model, optimizer, loader = prepared
    schedule = CosineAnnealingLR(optimizer.optimizer, job.epochs * 5)
    batches: list[list[list[int]]] = []
    weights: list[Tensor] = []
    rates: list[float] = []
    for _ in range(job.epochs):
        for batch in loader:
            accelerator.backward(loss_of(model, batch, weigh=False)[0])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            batches.append([batch["index"].tolist()])
            weights.append(flat(model))
            rates.append(float(schedule.get_last_lr()[0]))
    return {"batches": batches, "weights": weights, "rates": rates}


def run(job: Job, folder: Path) -> dict[str, Any]:
    if "alone" in job.name:
        return alone(job)
    accelerator = make_accelerator(job)
    model = make_model(job)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    prepared: Any = accelerator.prepare(model, optimizer)
    model, optimizer = prepared
    schedule = CosineAnnealingLR(optimizer.optimizer, job.epochs * 5)
    torch.manual_seed(100 + accelerator.process_index)
    controller = AcceleratedController(
        accelerator,
        model,
        optimizer,
        batch_size=8 * accelerator.num_processes,
        scheduler=schedule,
        policy=ByBits() if job.bits else Measuring(job.script) if job.script else "fixed",
        log_dir=None if job.resume else folder / job.name / "log",
        **{**TWO_STEP_CHUNKS, **job.settings},
    )
    accelerator.register_for_checkpointing(controller, schedule)
    shuffle = bool(job.script) or job.shuffle
    rows = DataLoader(
        Rows(job.samples), 8 // job.accumulation, shuffle=shuffle,
        num_workers=job.workers, persistent_workers=job.persistent,
    )  # fmt: skip
    loader = controller.loader(rows)
    if job.resume:
        name, steps = job.resume
        accelerator.load_state(str(folder / name / f"state{steps}"))
    batches: list[list[list[int]]] = [[]]
    weights: list[Tensor] = []
    rates: list[float] = []
    losses: list[float] = []
    while loader.sampler.epoch < job.epochs:
        for batch in loader:
            with accelerator.accumulate(model):
                batches[-1].append(batch["index"].tolist())
                loss, weight = loss_of(model, batch, job.weigh)
                losses.append(float(loss.detach()))
                controller.backward(loss, weight)
                if not controller.step():
                    continue
            batches.append([])
            weights.append(flat(model))
            rates.append(float(schedule.get_last_lr()[0]))
            if len(weights) in job.saves:
                accelerator.save_state(str(folder / job.name / f"state{len(weights)}"))
    decided = controller.batch_size
    state = controller.state_dict()["control_loop"]
    controller.close()
    return {
        "batches": batches[:-1],
        "weights": weights,
        "rates": rates,
        "losses": losses,
        "decided": decided,
        "sharded": any(hasattr(p, "full_tensor") for p in model.parameters()),
        "state": str(state),
    }


if __name__ == "__main__":
    serve(Job, run)
