"""`default` in a run without a target, a budget or a known length: it may not lose anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from rlbatch.controller import BatchController
from rlbatch.envs.task import Task, resolve_task

EPOCHS = 3


def trained(task: Task, seed: int, *, controlled: bool) -> tuple[list[torch.Tensor], float]:
    """Weights and validation loss after some epochs in the plain loop, or in a controlled one."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    given: dict[str, Any] = {} if task.collate is None else {"collate_fn": task.collate}
    loader: Any = DataLoader(task.train_set, batch_size=task.batch_size, shuffle=True, **given)
    controller = None
    if controlled:
        controller = BatchController(model, optimizer, batch_size=task.batch_size)
        loader = controller.loader(loader)
    for _ in range(EPOCHS):
        for batch in loader:
            loss = task.loss(model, batch)
            if controller is None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            else:
                controller.backward(loss)
                controller.step()
    with torch.no_grad():
        rows = next(iter(DataLoader(task.val_set, batch_size=10_000, **given)))
        return [p.detach().clone() for p in model.parameters()], float(task.loss(model, rows))


@pytest.mark.parametrize("name", ["digits-mlp", "tabular-regression-sgd"])
def test_a_run_without_an_aim_is_the_plain_one(name: str) -> None:
    task = resolve_task(name)

    plain, plain_loss = trained(task, 1, controlled=False)
    weights, loss = trained(task, 1, controlled=True)

    assert loss == plain_loss
    for left, right in zip(weights, plain, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    other, _ = trained(task, 2, controlled=False)
    assert not torch.equal(other[0], plain[0])
