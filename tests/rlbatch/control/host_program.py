"""What `torchrun` starts on each host: `host_program.py FOLDER HOW`.

HOW is `scripted` (a run that decides by a script, is saved, and has a rank killed once) or
`measured` (three runs that decide by what steps cost: as they are, with a rank that is late, and
over a slow cable).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rlbatch
from tests.rlbatch.control.hosts import slow_cable
from tests.rlbatch.control.rank_runs import Job, leave, train_joined

STEPS, BASE = 40, 16
PHASES = ("plain", "rank", "link")
SAMPLE_SECONDS, LATE_SECONDS = 0.005, 0.1
"""What a sample takes on its rank, and by how much a slow rank is late in each step."""


def scripted_job(folder: Path) -> Job:
    return Job(folder, kind="ddp", epochs=3, saves=3)


def main() -> None:
    folder, how = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if how == "scripted":
        died = folder / "died"
        die = None if died.exists() or rank != ranks - 1 else (rank, 8, "backward")
        torch.distributed.barrier()  # all have looked
        if die is not None:
            died.touch()
        train_joined(rank, ranks, scripted_job(folder), die)
    else:
        for phase in PHASES:
            if phase == "link" and int(os.environ["LOCAL_RANK"]) == 0:
                slow_cable()
            late = LATE_SECONDS if phase == "rank" and rank == ranks - 1 else 0.0
            measured(folder / phase, late)
    leave()


def measured(folder: Path, late: float) -> None:
    """Train with goodput; a step costs a constant for each of a rank's samples, and its sum."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder.mkdir(exist_ok=True)
    torch.distributed.barrier()
    torch.manual_seed(0)
    x = torch.randn(8192, 64)
    data = TensorDataset(x, x.sum(dim=1, keepdim=True).tanh() + 0.5 * torch.randn(8192, 1))
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 1))  # 105 kB of gradients
    )
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
    for inputs, targets in loader:
        time.sleep(SAMPLE_SECONDS * len(inputs) + late)
        controller.backward(nn.functional.mse_loss(model(inputs), targets))
        controller.step()
        sizes.append(controller.batch_size)
        if len(sizes) == STEPS:
            break
    controller.close()
    (folder / f"sizes{rank}.json").write_text(json.dumps(sizes))
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
