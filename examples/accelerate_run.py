"""Train a small network in a plain loop on Accelerate with an adaptive batch size.

    python examples/accelerate_run.py
    accelerate launch --cpu --num_processes 2 examples/accelerate_run.py

No network and some seconds on a processor.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.integrations.accelerate import AcceleratedController

BATCH, EPOCHS = 16, 4


def data() -> tuple[TensorDataset, torch.Tensor, torch.Tensor]:
    """Draw what to train on, and inputs and targets for validation."""
    inputs = torch.randn(5000, 10)
    targets = (inputs[:, :5] * inputs[:, 5:]).sum(dim=1, keepdim=True)
    return TensorDataset(inputs[:4000], targets[:4000]), inputs[4000:], targets[4000:]


def main() -> None:
    """Train four epochs and say what the batch size did."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    train_set, val_x, val_y = data()
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(train_set, batch_size=BATCH, shuffle=True)
    # Prepared schedulers make a step for each process and optimizer step.
    scheduler = CosineAnnealingLR(optimizer, EPOCHS * len(loader) // 2)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    controller = AcceleratedController(
        accelerator,
        model,
        optimizer,
        batch_size=2 * BATCH * accelerator.num_processes,
        scheduler=scheduler,
        target_loss=1.2,
    )
    loader = controller.loader(loader)
    sizes, val_loss = list[int](), 0.0
    for _ in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(x), y)
                controller.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                if samples := controller.step():
                    sizes.append(samples)
        with controller.paused(), torch.no_grad():
            val_loss = float(nn.functional.mse_loss(model(val_x), val_y))
        controller.report_validation(val_loss)
    accelerator.print(
        f"{len(sizes)} steps over {sum(sizes)} samples, batch size {min(sizes)} to {max(sizes)}, "
        f"validation loss {val_loss:.3f}, last learning rate {scheduler.get_last_lr()[0]:.1e}"
    )
    controller.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
