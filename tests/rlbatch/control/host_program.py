"""What `torchrun` starts on each host: `host_program.py FOLDER`.

Three short runs decide by what their steps cost: as they are, with a rank that is late, and over a
slow cable. Then comes a run that decides by a script and is saved; in its middle a rank is killed,
once, and all start anew.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rlbatch
from tests.rlbatch.control.hosts import slow_cable
from tests.rlbatch.control.rank_runs import Job, leave, train_joined

STEPS, BASE, FEATURES = 40, 16, 64
PHASES = ("plain", "rank", "link")
SAMPLE_SECONDS, LATE_SECONDS = 0.005, 0.1
"""What a sample takes on its rank, and by how much a slow rank is late in each step."""


def scripted_job(folder: Path) -> Job:
    return Job(folder, kind="ddp", epochs=3, saves=3)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 400), nn.ReLU(), nn.Linear(400, 1))


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    died = folder / "died"
    restarted = died.exists()
    torch.distributed.barrier()  # all have looked
    if not restarted:
        for phase in PHASES:
            if phase == "link" and int(os.environ["LOCAL_RANK"]) == 0:
                slow_cable()
            late = LATE_SECONDS if phase == "rank" and rank == ranks - 1 else 0.0
            measured(folder / phase, late)
        died.touch()
    die = None if restarted else (ranks - 1, 8, "backward")
    train_joined(rank, ranks, scripted_job(folder), die)
    leave()


def measured(folder: Path, late: float) -> None:
    """Train with goodput; a step costs a constant for each of a rank's samples, and its sum."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder.mkdir(exist_ok=True)
    torch.distributed.barrier()
    torch.manual_seed(0)
    x = torch.randn(8192, FEATURES)
    data = TensorDataset(x, x.sum(dim=1, keepdim=True).tanh() + 0.5 * torch.randn(8192, 1))
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = rlbatch.BatchController(
        model,
        optimizer,
        batch_size=BASE,
        max_batch_size=128,
        policy="goodput",
        log_dir=folder / "log",
    )
    sampler = DistributedSampler(data)
    loader = controller.loader(DataLoader(data, BASE // ranks, sampler=sampler))
    sizes: list[int] = []
    delivered: list[int] = []
    for inputs, targets in loader:
        time.sleep(SAMPLE_SECONDS * len(inputs) + late)
        controller.backward(nn.functional.mse_loss(model(inputs), targets))
        controller.step()
        delivered.append(len(inputs))
        sizes.append(controller.batch_size)
        if len(sizes) == STEPS:
            break
    controller.close()
    (folder / f"rank{rank}.json").write_text(json.dumps({"decided": sizes, "delivered": delivered}))
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
