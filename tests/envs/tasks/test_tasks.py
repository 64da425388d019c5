"""Every built-in task against the same contract."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from rlbatch.envs.task import Task, collate_samples, resolve_task, task_names
from rlbatch.envs.tasks import digits
from rlbatch.envs.validator import Validator
from rlbatch.errors import MissingExtraError

TEXT_FAMILIES = ("char-lm", "language-id", "translation")
EVALUATION_INTERVAL = 10  # steps
TRIVIAL_STEPS, MOST_STEPS = 30, 700  # a default run takes between these to its target

ALL = pytest.mark.parametrize("name", task_names())


def size(dataset: Any) -> int:
    return len(dataset)


def seeded_model(task: Task, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return task.model()


def first_batch(task: Task, count: int = 16) -> Any:
    return collate_samples(task.train_set, range(count), task.collate)


@ALL
def test_settings_are_in_the_promised_ranges(name: str) -> None:
    task = resolve_task(name)
    assert task.name == name
    assert task.batch_size in (16, 32, 64, 128)
    assert size(task.train_set) >= 1000
    assert task.max_batch_size is not None
    powers = [2**k for k in range(13) if 2**k <= size(task.train_set)]
    assert task.max_batch_size == powers[-1]


@ALL
def test_variant_uses_its_optimizer(name: str) -> None:
    task = resolve_task(name)
    optimizer = task.optimizer(task.model().parameters())
    if name.endswith("-sgd"):
        assert type(optimizer) is torch.optim.SGD
        assert optimizer.param_groups[0]["momentum"] == 0.9
    else:
        assert type(optimizer) is torch.optim.AdamW


@ALL
def test_gradients_are_finite_for_every_parameter(name: str) -> None:
    task = resolve_task(name)
    model = seeded_model(task)
    loss = task.loss(model, first_batch(task))
    assert loss.shape == ()
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@ALL
def test_the_seed_alone_decides_the_model(name: str) -> None:
    task = resolve_task(name)
    first, again, other = (seeded_model(task, seed).state_dict() for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@ALL
def test_loss_is_the_mean_over_the_samples(name: str) -> None:
    task = resolve_task(name)
    model = seeded_model(task)
    whole = task.loss(model, first_batch(task, 16)).item()
    parts = [(range(5), 5), (range(5, 16), 11)]
    weighted = sum(
        count * task.loss(model, collate_samples(task.train_set, part, task.collate)).item()
        for part, count in parts
    )
    assert weighted / 16 == pytest.approx(whole, rel=1e-5)


@ALL
def test_data_is_the_same_each_time_and_validation_is_held_out(name: str) -> None:
    task, again = resolve_task(name), resolve_task(name)

    def inputs(dataset: Any) -> list[bytes]:
        rows = collate_samples(dataset, range(size(dataset)), task.collate)[0]
        return [row.numpy().tobytes() for row in rows]

    assert inputs(task.train_set) == inputs(again.train_set)
    assert set(inputs(task.train_set)).isdisjoint(inputs(task.val_set))


@ALL
def test_a_data_loader_and_a_wrapped_dataset_deliver_the_same_batch(name: str) -> None:
    task = resolve_task(name)
    indices = [3, 1, 4, 1]
    expected = collate_samples(task.train_set, indices, task.collate)

    for dataset in (task.train_set, Subset(task.train_set, range(9)), list_of(task, 9)):
        (batch,) = DataLoader(dataset, batch_sampler=[indices], collate_fn=task.collate)
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)


def list_of(task: Task, count: int) -> Any:
    """The first samples as a plain list, which has no way to fetch a batch at once."""
    return [task.train_set[index] for index in range(count)]


@ALL
def test_can_be_sent_to_another_process(name: str) -> None:
    task = resolve_task(name)
    copy: Task = pickle.loads(pickle.dumps(task))
    losses = [t.loss(seeded_model(t), first_batch(t)).item() for t in (task, copy)]
    assert losses[0] == losses[1]


def steps_to_target(task: Task, seed: int) -> int | None:
    """A plain training loop at the default batch size, without any of rlbatch's machinery."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    loader = DataLoader(
        task.train_set, task.batch_size, shuffle=True, drop_last=True, collate_fn=task.collate
    )
    step, validator = 0, Validator(task)
    while True:
        for batch in loader:
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
            step += 1
            if step % EVALUATION_INTERVAL == 0 and validator.loss(model) <= task.target:
                return step
            if step >= MOST_STEPS:
                return None


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith(TEXT_FAMILIES) else ())
        for name in task_names()
    ],
)
def test_default_run_reaches_the_target_neither_at_once_nor_late(name: str) -> None:
    steps = steps_to_target(resolve_task(name), seed=0)
    assert steps is not None
    assert steps > TRIVIAL_STEPS


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    digits.digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*rlbatch\[train\]"):
        resolve_task("digits-mlp")
