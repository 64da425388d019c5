"""The gradient of each step of a Lightning fit is that of all its samples, or it is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer

from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations.lightning import BatchSizeCallback
from rlbatch.testing import ScriptedPolicy
from tests.contract.programs import BASE, Rows, error, flat, gradient_of_all, network
from tests.contract.test_divided_losses import (
    EXACT,
    class_weights,
    dice,
    info_nce,
    masked_mean,
    padding,
    plain_mean,
    tokens_that_count,
    triplet,
    weight_of_classes,
)
from tests.rlbatch.integrations.lightning_runs import MARKS

pytestmark = MARKS

GROW = ScriptedPolicy((2.0,))
Touch = Callable[[Any], None]


class Program(LightningModule):
    """Compares the gradient of each step with autograd's over all its samples.

    Attributes:
        sizes: Samples of each part of each step.
        errors: Relative error of each step's gradient.
    """

    def __init__(self, loss: Any, *, touch: Touch | None = None, rate: float = 0.0) -> None:
        super().__init__()
        self.net, self.loss, self.rows = network(), loss, Rows()
        self.touch, self.rate = touch, rate
        self.parts: list[list[int]] = []
        self.sizes: list[list[int]] = []
        self.batches: list[Any] = []
        self.errors: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.parts.append(batch[0].tolist())
        if self.touch is not None:
            self.touch(self)
        return self.loss(self.net, batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        batch = self.rows.batch([index for part in self.parts for index in part])
        gradients = [p.grad for p in self.net.parameters()]
        if all(gradient is not None for gradient in gradients):
            found = flat(gradients)
            self.errors.append(error(found, gradient_of_all(self.net, self.loss, batch)))
        self.batches.append(batch)
        self.sizes.append([len(part) for part in self.parts])
        self.parts = []

    def configure_optimizers(self) -> Any:
        return SGD(self.net.parameters(), lr=self.rate, momentum=0.9)


def train(module: Program, *, accumulation: int = 1, weight: Any = None, **settings: Any) -> Any:
    options: dict[str, Any] = {
        "micro_batch_size": 5,
        "lr_coupling": "none",
        "cost": "samples",
        "policy": GROW,
        **settings,
    }
    callback = BatchSizeCallback(weight=weight, **options)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        precision="64-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accumulate_grad_batches=accumulation,
        callbacks=[callback],
    )
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(module.rows, BASE // accumulation, shuffle=True, generator=generator)
    trainer.fit(module, loader)
    return callback


def is_divided(module: Program) -> bool:
    return sum(len(parts) > 1 for parts in module.sizes) > 2


@pytest.mark.parametrize(
    ("loss", "weight"),
    [
        (class_weights, weight_of_classes),
        (padding, tokens_that_count),
        (masked_mean, tokens_that_count),
        (plain_mean, None),
    ],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_parts_weighted_by_what_their_losses_average(
    loss: Any, weight: Any, accumulation: int
) -> None:
    module = Program(loss)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="rlbatch")
        train(module, weight=weight, accumulation=accumulation)
    assert is_divided(module)
    assert len(module.errors) == len(module.sizes)
    assert max(module.errors) < EXACT


def test_a_module_may_tell_the_weight_itself() -> None:
    class Telling(Program):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            (callback,) = (c for c in self.trainer.callbacks if isinstance(c, BatchSizeCallback))  # pyright: ignore[reportAttributeAccessIssue]
            callback.weigh(tokens_that_count(batch))
            return super().training_step(batch, batch_idx)

    module = Telling(masked_mean)
    train(module)
    assert is_divided(module)
    assert max(module.errors) < EXACT


def test_the_loss_of_a_weighted_step_is_that_of_its_samples() -> None:
    module = Program(padding)
    chunk = {f"{name}_chunk_steps": 99 for name in ("first", "min", "max")}
    callback = train(module, weight=tokens_that_count, policy="fixed", micro_batch_size=3, **chunk)
    losses = callback.state_dict()["controller"]["control_loop"]["monitor"]["losses"]
    with torch.no_grad():
        expected = [float(padding(module.net, batch)) for batch in module.batches]
    assert is_divided(module)
    assert losses == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("loss", [class_weights, padding, dice, info_nce, triplet])
def test_a_batch_that_fits_has_the_users_gradient_whatever_the_loss(loss: Any) -> None:
    module = Program(loss)
    train(module, micro_batch_size=None)
    assert not is_divided(module)
    assert 4 * BASE in [sum(parts) for parts in module.sizes]
    assert max(module.errors) < EXACT


@pytest.mark.parametrize("loss", [class_weights, padding, masked_mean, dice, info_nce, triplet])
def test_parts_that_do_not_add_up_are_noticed_with_the_remedy(loss: Any) -> None:
    module = Program(loss)
    with pytest.warns(RuntimeWarning, match=r"do not add up.*BatchSizeCallback\(weight=") as caught:
        train(module)
    assert max(e for e in module.errors if e == e) > 1e-3  # noqa: PLR0124
    assert sum("add up" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("loss", [dice, triplet])
def test_a_loss_that_cannot_be_divided_stays_within_what_fits(loss: Any) -> None:
    module = Program(loss)
    train(module, divisible=False, micro_batch_size=2 * BASE)
    assert not is_divided(module)
    assert max(module.errors) < EXACT
    assert max(sum(parts) for parts in module.sizes) == 2 * BASE


# -- the module's own calls between two parts --


def zero(module: Any) -> None:
    module.optimizers().zero_grad()


def clip(module: Any) -> None:
    nn.utils.clip_grad_norm_(module.net.parameters(), 0.01)


@pytest.mark.parametrize(
    ("touch", "match"),
    [(zero, r"vanished.*the Trainer zeroes"), (clip, r"changed.*gradient_clip_val")],
)
def test_gradients_touched_between_two_parts_are_refused(touch: Touch, match: str) -> None:
    with pytest.raises(DeliveryError, match=match):
        train(Program(plain_mean, touch=touch))


def test_a_step_beside_the_trainers_is_refused() -> None:
    def step(module: Any) -> None:
        module.optimizers().optimizer.step()

    with pytest.raises(DeliveryError, match="beside the Trainer"):
        train(Program(plain_mean, touch=step))


def test_a_second_optimizer_is_refused() -> None:
    others: list[Any] = []

    def of_the_model(module: Any) -> None:
        others.append(SGD(module.net.parameters(), lr=0.0))
        others[-1].step()

    with pytest.raises(ConfigurationError, match="steps parameters of the controller's model"):
        train(Program(plain_mean, touch=of_the_model))

    other = nn.Linear(2, 2)
    second = SGD(other.parameters(), lr=0.1)
    with pytest.raises(DeliveryError, match=r"between two parts.*on_before_optimizer_step"):
        train(Program(plain_mean, touch=lambda module: second.step()))
    # Where no step is divided it may step as it likes.
    train(Program(plain_mean, touch=lambda module: second.step()), micro_batch_size=None)


def test_a_hook_that_steps_within_the_backward_pass_is_refused() -> None:
    def hook(module: Any) -> None:
        parameter = next(module.net.parameters())
        if module.sizes or len(module.parts) > 1:
            return

        def change(gradient: Tensor) -> None:
            with torch.no_grad():
                parameter.sub_(0.1 * gradient)

        parameter.register_hook(change)

    with pytest.raises(ConfigurationError, match=r"within the backward pass.*the Trainer"):
        train(Program(plain_mean, touch=hook))


# -- a batch that is left out --


class Leaving(Program):
    """Returns no loss where a batch holds the first sample of the data."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if 0 in batch[0] else loss


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
@pytest.mark.parametrize("limit", [None, 3])
def test_a_part_without_a_loss_leaves_out_the_whole_step(limit: int | None) -> None:
    """As the undivided step does, of which the part is one."""
    left: list[int] = []

    class Noting(Leaving):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            missing = any(0 in part for part in self.parts)
            before = len(self.errors)
            super().on_before_optimizer_step(optimizer)
            if missing:
                left.append(len(self.errors) - before)

    module = Noting(plain_mean, rate=0.0)
    callback = train(module, micro_batch_size=limit)
    assert left == [0, 0]  # once an epoch, and without any gradient
    assert max(module.errors) < EXACT
    assert callback.controller.samples_seen == 2 * len(module.rows)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_run_that_leaves_out_divided_steps_is_the_undivided_one() -> None:
    undivided, divided = Leaving(plain_mean, rate=0.05), Leaving(plain_mean, rate=0.05)
    train(undivided, micro_batch_size=None)
    train(divided, micro_batch_size=3)
    assert is_divided(divided)
    for one, other in zip(undivided.parameters(), divided.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=0)


def test_a_whole_batch_of_weight_0_adds_nothing() -> None:
    def counts(batch: Any) -> Any:
        return batch[0] % 16 == 3

    def of_few(model: Any, batch: Any) -> Any:
        kept = counts(batch)
        return torch.nn.functional.cross_entropy(model(batch[1][kept]).mean(1), batch[2][kept])

    module = Program(of_few, rate=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="rlbatch")
        count: Any = lambda batch: counts(batch).sum()  # noqa: E731
        train(module, weight=count, policy="fixed", micro_batch_size=None)
    kept = [bool(counts(batch).any()) for batch in module.batches]
    assert kept.count(False) > 2
    found = [e for e, counted in zip(module.errors, kept, strict=True) if counted]
    assert max(found) < EXACT
    assert all(bool(p.isfinite().all()) for p in module.net.parameters())
