"""A batch that does not fit: its parts give the gradient of the undivided loss, or it is said."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import rlbatch
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.testing import ScriptedPolicy, check_divisible
from tests.contract.programs import BASE, CLASSES, TOKENS, Rows, Steps, network, train

EXACT = 1e-12
CLASS_WEIGHTS = torch.tensor([1.0, 20.0, 0.1, 3.0, 7.0], dtype=torch.float64)


def class_weights(model: nn.Module, batch: Any) -> Tensor:
    _, x, kind, _ = batch
    return functional.cross_entropy(model(x).mean(1), kind, weight=CLASS_WEIGHTS)


def padding(model: nn.Module, batch: Any) -> Tensor:
    """A mean over tokens; labels of -100 do not count, and some parts have no other."""
    _, x, _, tokens = batch
    return functional.cross_entropy(model(x).reshape(-1, CLASSES), tokens.reshape(-1))


def masked_mean(model: nn.Module, batch: Any) -> Tensor:
    """The same by hand: 0 / 0 where a part has no token that counts."""
    _, x, _, tokens = batch
    mask = tokens >= 0
    each = functional.cross_entropy(
        model(x).reshape(-1, CLASSES), tokens.clamp_min(0).reshape(-1), reduction="none"
    )
    return (each * mask.reshape(-1)).sum() / mask.sum()


def plain_mean(model: nn.Module, batch: Any) -> Tensor:
    _, x, kind, _ = batch
    return functional.cross_entropy(model(x).mean(1), kind) * 0.5 + model[2].weight.square().sum()  # pyright: ignore[reportIndexIssue]


def dice(model: nn.Module, batch: Any) -> Tensor:
    _, x, kind, _ = batch
    found, true = model(x).mean(1).softmax(1), functional.one_hot(kind, CLASSES)
    return 1.0 - 2.0 * (found * true).sum() / (found.square().sum() + true.sum())


def info_nce(model: nn.Module, batch: Any) -> Tensor:
    _, x, _, _ = batch
    left, right = model(x[:, :3]).mean(1), model(x[:, 3:]).mean(1)
    return functional.cross_entropy(left @ right.T, torch.arange(len(left)))


def triplet(model: nn.Module, batch: Any) -> Tensor:
    """A mean over the triplets of a batch that are not told apart yet."""
    _, x, kind, _ = batch
    points = model(x).mean(1)
    distances = torch.cdist(points, points)
    same = kind[:, None] == kind[None]
    margins = distances[:, :, None] - distances[:, None, :] + 0.5
    valid = same[:, :, None] & ~same[:, None, :] & (margins > 0)
    return margins[valid].mean() if bool(valid.any()) else margins.sum() * 0.0


def tokens_that_count(batch: Any) -> Tensor:
    return (batch[3] >= 0).sum()


def weight_of_classes(batch: Any) -> float:
    return float(CLASS_WEIGHTS[batch[2]].sum())


def check_all(steps: Steps) -> None:
    assert len(steps.divided) > 2
    assert max(steps.errors) < EXACT


@pytest.mark.parametrize(
    ("loss", "weight"),
    [
        (class_weights, weight_of_classes),
        (padding, tokens_that_count),
        (masked_mean, tokens_that_count),
    ],
)
@pytest.mark.parametrize("micro_batch_size", [1, 5, 8])
def test_parts_that_say_what_they_are_means_of_have_the_gradient_of_the_whole(
    loss: Any, weight: Any, micro_batch_size: int
) -> None:
    check_all(train(loss, weight=weight, micro_batch_size=micro_batch_size))


class Counted:
    """A tensor on a device, as far as it is read: each time the device is waited for."""

    reads = 0

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __float__(self) -> float:
        Counted.reads += 1
        return float(self.value)

    item = __float__


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_a_weight_is_read_once_a_part(micro_batch_size: int | None) -> None:
    Counted.reads = 0
    steps = train(
        padding,
        weight=lambda batch: Counted(tokens_that_count(batch)),
        micro_batch_size=micro_batch_size,
    )
    assert Counted.reads == sum(map(len, steps.parts))
    assert max(steps.errors) < EXACT


def test_weights_go_with_a_grad_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)  # whose factor stays in the gradient
    check_all(train(masked_mean, weight=tokens_that_count, scaler=scaler))


def test_weights_of_samples_are_the_default() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_all(train(plain_mean))
    check_all(train(plain_mean, weight=lambda batch: len(batch[0])))


@pytest.mark.parametrize("loss", [class_weights, padding, masked_mean, dice, info_nce, triplet])
def test_a_batch_that_fits_has_the_users_gradient_whatever_the_loss(loss: Any) -> None:
    steps = train(loss, micro_batch_size=None)
    assert not steps.divided
    assert max(steps.errors) < EXACT
    assert 4 * BASE in steps.sizes


@pytest.mark.parametrize("loss", [class_weights, padding, masked_mean, dice, info_nce, triplet])
def test_parts_that_do_not_add_up_are_noticed_with_the_remedy(loss: Any) -> None:
    with pytest.warns(RuntimeWarning, match=r"do not add up.*weight=.*divisible=False") as caught:
        steps = train(loss)
    assert max(error for error in steps.divided if error == error) > 1e-3  # noqa: PLR0124
    assert sum("add up" in str(warning.message) for warning in caught) == 1


def test_a_sum_is_noticed_too() -> None:
    def total(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[1]).mean(1), batch[2], reduction="sum")

    with pytest.warns(RuntimeWarning, match="sum over samples"):
        train(total)


@pytest.mark.parametrize("loss", [dice, info_nce, triplet])
def test_a_loss_that_cannot_be_divided_stays_within_what_fits(loss: Any) -> None:
    steps = train(loss, divisible=False, micro_batch_size=2 * BASE)
    assert not steps.divided
    assert max(steps.errors) < EXACT
    assert max(steps.sizes) == 2 * BASE


def test_a_loss_that_cannot_be_divided_needs_a_number_that_fits() -> None:
    with pytest.raises(ConfigurationError, match="Give the number of samples that fits"):
        train(dice, divisible=False, micro_batch_size="auto")
    with pytest.raises(ConfigurationError, match="between min_batch_size"):
        train(dice, divisible=False, micro_batch_size=BASE - 1)


def test_a_weight_with_some_parts_only_is_refused() -> None:
    calls: list[int] = []

    def sometimes(batch: Any) -> float | None:
        calls.append(len(batch[0]))
        return None if len(calls) % 2 else float(calls[-1])

    with pytest.raises(DeliveryError, match="every part of a step or with none"):
        train(plain_mean, weight=sometimes)
    with pytest.raises(DeliveryError, match="weight of 0 or more, got -1"):
        train(plain_mean, weight=lambda _: -1)


def test_a_step_without_anything_to_learn_leaves_the_weights() -> None:
    steps = train(masked_mean, weight=lambda _: 0.0)
    assert all(error == 1.0 for error in steps.divided if error == error)  # noqa: PLR0124


@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_batches_without_anything_that_counts_are_no_damage(
    kind: Any, micro_batch_size: int | None
) -> None:
    """A mean over samples of one class, 0 / 0 where there is none: compared with a plain loop."""
    rare = torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0], dtype=torch.float64)
    rows, model = Rows(), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=2, policy=ScriptedPolicy((0.0, 1.0)), cost="samples",
        lr_coupling="none", micro_batch_size=micro_batch_size,
    )  # fmt: skip
    steps: list[list[int]] = [[]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a roll-back
        for batch in controller.loader(DataLoader(rows, 2)):
            steps[-1] += batch[0].tolist()
            loss = functional.cross_entropy(model(batch[1]).mean(1), batch[2], weight=rare)
            controller.backward(loss, weight=kind(float(rare[batch[2]].sum())))
            if controller.step():
                steps.append([])
    plain = network()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    without = 0
    for indices in steps[:-1]:
        batch = rows.batch(indices)
        loss = functional.cross_entropy(plain(batch[1]).mean(1), batch[2], weight=rare)
        if bool(rare[batch[2]].any()):
            loss.backward()
        else:
            without += 1
            for parameter in plain.parameters():
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    assert without > 4
    assert max(map(len, steps)) >= 4
    torch.testing.assert_close(
        torch.cat([p.reshape(-1) for p in model.parameters()]),
        torch.cat([p.reshape(-1) for p in plain.parameters()]),
        rtol=1e-10, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "adds_up"),
    [(plain_mean, True), (class_weights, False), (padding, False), (dice, False)],
)
def test_whether_a_loss_can_be_divided_can_be_checked_before(loss: Any, adds_up: bool) -> None:
    batch = Rows().batch(range(0, 24))
    model = nn.Sequential(network(), nn.Dropout(0.5))
    before = torch.get_rng_state()
    if adds_up:
        assert check_divisible(model[0], loss, batch) < EXACT
    else:
        with pytest.raises(AssertionError, match="relative error"):
            check_divisible(model[0], loss, batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_weights_can_be_checked_before() -> None:
    batch = Rows().batch(range(0, 24))
    assert check_divisible(network(), padding, batch, weight=tokens_that_count) < EXACT
    assert TOKENS == 7
