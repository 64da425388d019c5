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
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rlbatch
from tests.rlbatch.control.hosts import slow_cable
from tests.rlbatch.control.rank_runs import Job, leave, train_joined

STEPS, BASE, LARGEST, FEATURES = 16, 8, 256, 4000
PHASES = ("plain", "rank", "link")
SAMPLE_SECONDS, LATE_SECONDS = 0.008, 0.4
"""What a sample takes on its rank, and by how much a slow rank is late in each step."""
MEAN = 0.1
"""Of each feature; with a variance of 1 the gradient noise scale is 1 / MEAN^2 = 100 samples."""


def scripted_job(folder: Path) -> Job:
    return Job(folder, kind="ddp", epochs=3, saves=3)


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
            late = LATE_SECONDS if phase == "rank" and rank == ranks - 1 else 0.0
            slow = phase == "link" and int(os.environ["LOCAL_RANK"]) == 0
            with slow_cable() if slow else nullcontext():
                measured(folder / phase, late)
        died.touch()
    die = None if restarted else (ranks - 1, 8, "backward")
    train_joined(rank, ranks, scripted_job(folder), die)
    leave()


def measured(folder: Path, late: float) -> None:
    """Train with goodput; a step costs a constant for each of a rank's samples, and its sum.

    A linear model that starts from 0, of a target that is 1: the gradient of a sample's square is
    -2 x, as long as the weights hardly move. So the noise scale is known, and the best size too.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder.mkdir(exist_ok=True)
    torch.distributed.barrier()
    torch.manual_seed(0)
    data = TensorDataset(
        MEAN + torch.randn(STEPS * LARGEST, FEATURES), torch.ones(STEPS * LARGEST, 1)
    )
    linear = nn.Linear(FEATURES, 1, bias=False)
    nn.init.zeros_(linear.weight)
    model = DistributedDataParallel(linear)
    controller = rlbatch.BatchController(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-6),
        batch_size=BASE,
        max_batch_size=LARGEST,
        policy="goodput",
        first_chunk_steps=4,
        log_dir=folder / "log",
    )
    sampler = DistributedSampler(data)
    loader = controller.loader(DataLoader(data, BASE // ranks, sampler=sampler))
    sizes, delivered = list[int](), list[int]()
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
