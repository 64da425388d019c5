"""What a loop calls between two parts of a step: noticed at the first divided step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import rlbatch
from rlbatch.errors import DeliveryError
from rlbatch.testing import ScriptedPolicy
from tests.contract.programs import BASE, Rows, flat, network
from tests.contract.test_divided_losses import plain_mean

Call = Callable[[nn.Module, Any, Any], None]


def train(before: Call, after: Call, *, divides: bool = True) -> list[float]:
    """Train with calls in front of a batch's passes and behind; return the norms."""
    model, norms = network(), list[float]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = rlbatch.BatchController(
        model,
        optimizer,
        batch_size=BASE,
        policy=ScriptedPolicy((2.0,)),
        cost="samples",
        micro_batch_size=BASE if divides else None,
    )
    optimizer.register_step_pre_hook(
        lambda *_: norms.append(float(flat([p.grad for p in model.parameters()]).norm()))
    )
    for batch in controller.loader(DataLoader(Rows(), BASE)):
        before(model, optimizer, controller)
        controller.backward(plain_mean(model, batch))
        after(model, optimizer, controller)
        controller.step()
    return norms


def nothing(*_: Any) -> None:
    pass


def zero(model: nn.Module, optimizer: Any, controller: Any) -> None:
    optimizer.zero_grad()


def zero_in_place(model: nn.Module, optimizer: Any, controller: Any) -> None:
    optimizer.zero_grad(set_to_none=False)


def zero_the_model(model: nn.Module, optimizer: Any, controller: Any) -> None:
    model.zero_grad()


def clip(model: nn.Module, optimizer: Any, controller: Any) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)


def clip_values(model: nn.Module, optimizer: Any, controller: Any) -> None:
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)


def clip_when_complete(model: nn.Module, optimizer: Any, controller: Any) -> None:
    if controller.batch_complete:
        clip(model, optimizer, controller)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (zero, nothing, r"vanished.*zero_grad\(\).*Leave that call out"),
        (zero_the_model, nothing, r"vanished.*zero_grad\(\).*Leave that call out"),
        (zero_in_place, nothing, "was changed.*leave zero_grad"),
        (nothing, clip, r"was changed.*controller.step\(clip_norm=...\)"),
        (nothing, clip_values, "was changed.*where controller.batch_complete"),
    ],
)
def test_a_gradient_that_is_touched_between_parts_is_an_error(
    before: Call, after: Call, said: str
) -> None:
    with pytest.raises(DeliveryError, match=f"made of 4 parts, and between parts 1 and 2.*{said}"):
        train(before, after)
    assert train(before, after, divides=False)  # whole batches are the loop's own


def test_clipping_where_the_batch_is_complete_clips_the_whole_gradient() -> None:
    norms = train(nothing, clip_when_complete)
    assert len(norms) > 2
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-4)


def test_zeroing_in_front_of_a_step_is_as_harmless_as_ever() -> None:
    seen: list[int] = []

    def zero_first(model: nn.Module, optimizer: Any, controller: Any) -> None:
        if not seen or controller.steps != seen[-1]:
            seen.append(controller.steps)
            optimizer.zero_grad()

    assert train(zero_first, nothing) == train(nothing, nothing)
