"""A model sharded by FSDP2 under rlbatch, on two processes of one machine.

    torchrun --standalone --nproc-per-node 2 examples/fsdp.py

What rlbatch adds is marked with (+).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rlbatch  # (+)

EPOCHS, SAMPLES_A_RANK = 3, 16


def main() -> None:
    """Train a small network on made-up data."""
    torch.distributed.init_process_group("gloo")
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = torch.randn(2000, 10)
    data = TensorDataset(inputs, inputs.sum(dim=1, keepdim=True).tanh())
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, SAMPLES_A_RANK, sampler=sampler)
    controller = rlbatch.BatchController(  # (+)
        model, optimizer, batch_size=SAMPLES_A_RANK * world_size
    )
    loader = controller.loader(loader)  # (+)
    mean_loss = 0.0
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for x, y in loader:
            loss = nn.functional.mse_loss(model(x), y)
            controller.backward(loss)  # (+) instead of loss.backward()
            controller.step()  # (+) instead of optimizer.step() and zero_grad()
            mean_loss += 0.1 * (float(loss.detach()) - mean_loss)
    if rank == 0:
        done = controller.components
        print(
            f"{done['steps']} steps, {done['samples_seen']} samples, loss {mean_loss:.3f}, "
            f"batch size now {controller.batch_size}"
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
