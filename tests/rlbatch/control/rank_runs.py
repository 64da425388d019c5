"""A training on several real processes that can be killed and resumed, and its one-process twin."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rlbatch
from rlbatch.control import rollback
from rlbatch.envs.processes import keep_tensorflow_out
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_reader import read_episode
from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.integrations.steered import ByBits

keep_tensorflow_out()  # of what else is started from the same fork server

ROWS, BASE = 98, 16  # neither is a multiple of the other: each epoch ends with a rest
losses = nn.MSELoss()


class Measuring(ScriptedPolicy):
    """Plays its script and has the gradient noise measured."""

    needs_gradient_noise = True


@dataclass(frozen=True)
class Job:
    """What the ranks train.

    Attributes:
        folder: Log, checkpoints and results.
        kind: `ddp` or `fsdp`.
        optimizer: `sgd` or `adamw`.
        changes: What the policy asks for.
        settings: Of the controller.
        clip_norm: Of each step.
        epochs: How many.
        dropout: Share of activations; needs random numbers.
        scaler: Use a GradScaler.
        validates: Run the model before each step without a backward pass.
        spoilt: Optimizer steps whose loss is not a number.
        clocks: Ranks disagree on what a copy of the weights costs.
        saves: Optimizer steps between two checkpoints; 0 for none.
        bits: Decide by the exact bits of all signals in place of `changes`.
    """

    folder: Path
    kind: str = "fsdp"
    optimizer: str = "sgd"
    changes: tuple[float, ...] = (0.0, 1.0, 0.2, 0.5, -2.0, 0.7, -1.0, 0.2, 1.0) * 3
    settings: tuple[tuple[str, Any], ...] = (("lr_coupling", "none"),)
    clip_norm: float | None = None
    epochs: int = 4
    dropout: float = 0.0
    scaler: bool = False
    validates: bool = False
    spoilt: tuple[int, ...] = ()
    clocks: bool = False
    saves: int = 0
    bits: bool = False


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
    return x, x.sin().sum(dim=1, keepdim=True)


def network(dropout: float = 0.0) -> nn.Sequential:
    """Layers that two ranks, and four, cannot divide equally; of some they get nothing."""
    torch.manual_seed(1)
    hidden = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(dropout))
    return nn.Sequential(hidden, nn.Linear(7, 1)).double()


def make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def whole(tensor: Any) -> Tensor:
    """Return a copy of a tensor put together from its shards."""
    value = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return value.detach().clone().reshape(-1)


def flat(model: nn.Module) -> Tensor:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return torch.cat([whole(p) for p in model.parameters()])


def launch(target: Callable[..., None], world_size: int, *arguments: Any) -> list[int | None]:
    """Run `target(rank, world_size, *arguments)` on each rank and return the exit codes.

    When one fails, the others are killed, as a launcher does.
    """
    context = get_context("forkserver")  # torch is imported once, not by each process
    context.set_forkserver_preload([__name__])
    ranks = [
        context.Process(target=target, args=(rank, world_size, *arguments))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    while any(process.is_alive() for process in ranks):
        if any(process.exitcode for process in ranks):
            for process in ranks:
                process.kill()
        time.sleep(0.01)
    return [process.exitcode for process in ranks]


def spawn(target: Callable[..., None], arguments: tuple[Any, ...], nprocs: int) -> None:
    """Run `target(rank, *arguments)` on each rank as `torch.multiprocessing.spawn` does.

    An error of a rank is raised here. Torch is imported once, not by each process.
    """
    get_context("forkserver").set_forkserver_preload([__name__])
    start_processes(target, arguments, nprocs, start_method="forkserver")


def meet(rank: int, world_size: int, folder: Path) -> None:
    """Join the other ranks; they meet in a file that no earlier run may have left.

    None goes on before all have come: a rank that ends at once would close connections that another
    is still making, which is an error there.
    """
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size
    )
    torch.distributed.barrier()


def leave() -> NoReturn:
    """End this rank's process, at once.

    `DistributedDataParallel` keeps the group and its threads beyond `destroy_process_group`, and
    gloo's, letting go of a tensor while the interpreter ends, can abort the process, though rarely
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def train(rank: int, world_size: int, job: Job, die: tuple[int, int, str] | None = None) -> None:
    """One rank's training, on from the last checkpoint.

    Args:
        rank: This one.
        world_size: Ranks.
        job: What is trained.
        die: The rank to be killed, optimizer steps until then, and the place.
    """
    meet(rank, world_size, job.folder)
    train_joined(rank, world_size, job, die)
    leave()


def train_joined(
    rank: int, world_size: int, job: Job, die: tuple[int, int, str] | None = None
) -> None:
    """One rank's training as `train`, of processes that have met already and do not leave yet."""
    _Run(rank, world_size, job, die if die and die[0] == rank else None).train()


class _Run:
    def __init__(
        self, rank: int, world_size: int, job: Job, die: tuple[int, int, str] | None
    ) -> None:
        self.rank, self.job = rank, job
        self.left, self.line = (-1, "") if die is None else die[1:]
        self.model = network(job.dropout)
        if job.kind == "ddp":
            self.model: nn.Module = DistributedDataParallel(self.model)
        else:
            fully_shard(self.model[0])
            fully_shard(self.model)
        self.optimizer = make_optimizer(job.optimizer, self.model)
        self.finds_limit = dict(job.settings).get("micro_batch_size") == "auto"
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if job.scaler else None
        if job.clocks:
            rollback._CHEAP = -1.0 if rank else 1e9
        torch.manual_seed(100 + rank)  # a rank's own random numbers
        self.controller = rlbatch.BatchController(
            self.model,
            self.optimizer,
            batch_size=BASE,
            policy=ByBits() if job.bits else Measuring(job.changes),
            cost="samples",
            log_dir=job.folder / "log",
            scaler=self.scaler,
            **dict(job.settings),
        )
        self.resume()
        data = TensorDataset(*rows(), torch.arange(ROWS))
        sampler = DistributedSampler(data, world_size, rank, seed=5)
        self.loader = self.controller.loader(DataLoader(data, BASE // world_size, sampler=sampler))
        self.out = os.open(job.folder / f"seen{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.rate = 0.0  # within the latest step
        self.optimizer.register_step_pre_hook(self.note_rate)
        self.weights: dict[int, Tensor] = {}
        self.state: dict[int, Tensor] = {}

    def train(self) -> None:
        job, controller = self.job, self.controller
        if job.saves and not (job.folder / "latest").exists():
            self.save()
        while (epoch := self.loader.sampler.epoch) < job.epochs:
            self.loader.set_epoch(epoch)
            self.train_epoch(epoch)
        controller.close()
        result = {
            "weights": flat(self.model),
            "last": controller.batch_size,
            "after": self.weights,
            "state": self.state,
        }
        torch.save(result, job.folder / f"{self.rank}.pt")

    def train_epoch(self, epoch: int) -> None:
        batch: list[list[int]] = []
        for x, y, indices in self.loader:
            step = self.controller.steps
            batch.append(indices.tolist())
            if self.job.validates:
                self.model.eval()
                with torch.no_grad():
                    self.model(x)
                self.model.train()
            self.die_at("arrive")
            with self.controller.within_memory() if self.finds_limit else nullcontext():
                loss = losses(self.model(x), y)
                if step in self.job.spoilt:
                    loss = loss * torch.nan
                self.controller.backward(loss)
            self.die_at("backward")
            if not self.controller.step(self.job.clip_norm):
                continue
            seen = [step, self.controller.batch_size, epoch, batch, self.rate, loss.item()]
            line = json.dumps(seen) + "\n"
            os.write(self.out, line.encode())
            batch, self.left = [], self.left - 1
            if self.job.spoilt:
                self.keep()
            self.die_at("step")
            if self.job.saves and self.controller.steps % self.job.saves == 0:
                self.save()

    def note_rate(self, *_: Any) -> None:
        self.rate = float(self.optimizer.param_groups[0]["lr"])

    def keep(self) -> None:
        steps = self.controller.steps
        self.weights[steps] = flat(self.model)
        self.state[steps] = torch.cat(
            [
                whole(value)
                for parameter in self.model.parameters()
                for value in self.optimizer.state[parameter].values()
            ]
        )

    def die_at(self, line: str) -> None:
        due = self.left <= 0 if line in {"save", "rename"} else self.left == 0
        if due and self.line == line:
            os.kill(os.getpid(), signal.SIGKILL)

    def save(self) -> None:
        """Save one file a rank in a new folder, which counts once all are there."""
        place = self.job.folder / f"step{self.controller.steps}"
        place.mkdir(exist_ok=True)
        model, optimizer = self.model, self.optimizer
        state: dict[str, Any] = {"controller": self.controller.state_dict()}
        if self.job.kind == "ddp":
            state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        else:
            shards = get_state_dict(model, optimizer)
            save_shards({"model": shards[0], "optimizer": shards[1]}, checkpoint_id=place)
        torch.save(state, place / f"rank{self.rank}.pt")
        self.die_at("save")
        torch.distributed.barrier()
        self.die_at("rename")
        if self.rank == 0:
            new = self.job.folder / "latest.new"
            new.write_text(place.name)
            new.replace(self.job.folder / "latest")

    def resume(self) -> None:
        latest = self.job.folder / "latest"
        if not latest.exists():
            return
        place = self.job.folder / latest.read_text()
        state = torch.load(place / f"rank{self.rank}.pt", weights_only=True)
        if self.job.kind == "ddp":
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            found = get_state_dict(self.model, self.optimizer)
            shards = {"model": found[0], "optimizer": found[1]}
            load_shards(shards, checkpoint_id=place)
            set_state_dict(
                self.model,
                self.optimizer,
                model_state_dict=shards["model"],
                optim_state_dict=cast("Any", shards["optimizer"]),
            )
        self.controller.load_state_dict(state["controller"])


@dataclass(frozen=True)
class Window:
    """One optimizer step as the ranks saw it.

    Attributes:
        step: Its number.
        after: Batch size decided after it.
        epoch: Its epoch.
        parts: Rows of each rank's micro-batches.
    """

    step: int
    after: int
    epoch: int
    parts: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def micro_batches(self) -> list[list[int]]:
        """Rows of each micro-batch on all ranks together."""
        return [[row for own in ranks for row in own] for ranks in zip(*self.parts, strict=True)]

    @property
    def rows(self) -> list[int]:
        """All rows."""
        return [row for own in self.parts for part in own for row in part]


def attempts_of(job: Job, rank: int) -> dict[int, list[Any]]:
    """Return what a rank did in each optimizer step, once for each time that it was made."""
    made: dict[int, list[Any]] = {}
    for line in (job.folder / f"seen{rank}.jsonl").read_text().splitlines():
        step, *what = json.loads(line)
        made.setdefault(step, []).append(what)
    return made


def steps_of(job: Job, world_size: int) -> list[Window]:
    """Return the optimizer steps of a run that was never interrupted."""
    ranks = [attempts_of(job, rank) for rank in range(world_size)]
    assert all(list(made) == list(range(len(ranks[0]))) for made in ranks)
    batches: list[Window] = []
    for step in ranks[0]:
        (seen,) = zip(*(made[step] for made in ranks), strict=True)
        assert all(other[:2] == seen[0][:2] for other in seen)
        after, epoch, *_ = seen[0]
        parts = tuple(tuple(map(tuple, other[2])) for other in seen)
        batches.append(Window(step, after, epoch, parts))
    return batches


def results_of(job: Job, world_size: int) -> list[dict[str, Any]]:
    return [torch.load(job.folder / f"{rank}.pt") for rank in range(world_size)]


def decisions_of(job: Job) -> list[DecisionRecord]:
    return [r for r in read_episode(job.folder / "log").records if r.event != "end"]


def whole_order(epochs: int) -> list[list[int]]:
    """What a DistributedSampler gives all ranks together, by torch's own code."""
    sampler = DistributedSampler(TensorDataset(*rows()), num_replicas=1, rank=0, seed=5)
    orders: list[list[int]] = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders
