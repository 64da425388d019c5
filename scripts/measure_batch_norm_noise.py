"""What batch normalisation does to a noise scale that is measured within one batch.

    python scripts/measure_batch_norm_noise.py

A small network, with and without batch normalisation, at its start and after 150 and 300 steps. The
squared gradient of the first layer is estimated from the samples' gradients of one batch, as a
controller does it, and from the products of the gradients of different batches, which are
independent of each other whatever the layers do; means over 400 batches of 64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH, BATCHES, STEPS = 64, 400, 150


def main() -> None:
    """Print a line a network and place."""
    torch.set_num_threads(1)
    for normalised in (True, False):
        torch.manual_seed(0)
        model, teacher = network(normalised), torch.randn(20, 5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for steps in (0, STEPS, 2 * STEPS):
            within, across, trace = estimates(model, teacher)
            said = "with" if normalised else "without"
            print(f"{said}, {steps} steps: |G|^2 {within:.4f} within a batch,", end=" ")
            print(f"{across:.4f} across batches; trace {trace:.1f}")
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss(model, *batch(teacher)).backward()
                optimizer.step()


def network(normalised: bool) -> nn.Sequential:
    """Return a classifier of 20 numbers."""
    norm = (lambda: [nn.BatchNorm1d(32)]) if normalised else list[nn.Module]
    layers = [nn.Linear(20, 32), *norm(), nn.ReLU(), nn.Linear(32, 32), *norm(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 5))


def batch(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and noisy labels."""
    inputs = torch.randn(BATCH, 20)
    return inputs, (inputs @ teacher + 2 * torch.randn(BATCH, 5)).argmax(1)


def loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over a batch."""
    return functional.cross_entropy(model(inputs), labels)


def estimates(model: nn.Sequential, teacher: Tensor) -> tuple[float, float, float]:
    """Return the squared gradient within and across batches, and the trace of the covariance."""
    first, deltas = model[0], list[Tensor]()
    hook = first.register_forward_hook(lambda *call: call[2].register_hook(deltas.append) and None)
    within, traces, gradients = list[Tensor](), list[Tensor](), list[Tensor]()
    for _ in range(BATCHES):
        inputs, labels = batch(teacher)
        model.zero_grad()
        deltas.clear()
        loss(model, inputs, labels).backward()
        each = torch.einsum("no,ni->noi", BATCH * deltas[0], inputs).flatten(1)
        mean = each.mean(0)
        trace = (each - mean).square().sum() / (BATCH - 1)
        traces.append(trace)
        within.append(mean.square().sum() - trace / BATCH)
        gradients.append(mean)
    hook.remove()
    every = torch.stack(gradients)
    pairs = every.sum(0).square().sum() - every.square().sum()
    across = pairs / (BATCHES * (BATCHES - 1))
    return float(torch.stack(within).mean()), float(across), float(torch.stack(traces).mean())


if __name__ == "__main__":
    main()
