"""What cannot be steered is refused in one sentence, at construction or at the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

import rlbatch
from rlbatch.errors import ConfigurationError, DeliveryError, RlbatchError
from rlbatch.testing import ScriptedPolicy
from tests.helpers import tanh_network

SAMPLES, BASE = 96, 16


def network() -> nn.Sequential:
    return tanh_network(3, 4, 1, seed=0)


def data() -> TensorDataset:
    return TensorDataset(torch.randn(SAMPLES, 3), torch.arange(SAMPLES) % 6)


def sgd(model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def controlled(model: nn.Module, optimizer: Any, **settings: Any) -> tuple[Any, Any]:
    settings = {"policy": ScriptedPolicy((1.0,)), "cost": "samples", **settings}
    controller = rlbatch.BatchController(model, optimizer, batch_size=BASE, **settings)
    return controller, controller.loader(DataLoader(data(), BASE))


def refused(error: type[RlbatchError], words: str, program: Callable[[], Any]) -> None:
    with pytest.raises(error, match=words) as caught:
        program()
    sentences = str(caught.value).split(". ")
    assert len(sentences) <= 2  # what is the matter, and what to do


def test_an_optimizer_of_another_model() -> None:
    refused(
        ConfigurationError,
        "holds no parameter of the Sequential.*Give model and optimizer of the same training",
        lambda: controlled(network(), sgd(network())),
    )


def test_lbfgs_and_whatever_needs_a_closure() -> None:
    class SharpnessAware(torch.optim.SGD):
        def step(self, closure: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().step(closure)

    for kind in (torch.optim.LBFGS, SharpnessAware):
        model = network()
        refused(
            ConfigurationError,
            f"{kind.__name__} runs several passes.*Choose another",
            lambda model=model, kind=kind: controlled(model, kind(model.parameters())),
        )


def test_an_optimizer_without_a_learning_rate() -> None:
    model = network()
    optimizer: Any = sgd(model)
    optimizer.param_groups[0]["lr"] = None  # as one that chooses its own
    refused(ConfigurationError, "explicit learning rate", lambda: controlled(model, optimizer))
    del optimizer.param_groups[0]["lr"]
    refused(ConfigurationError, "explicit learning rate", lambda: controlled(model, optimizer))
    refused(ConfigurationError, "param_groups", lambda: controlled(model, object()))


def _epoch(controller: Any, loader: Any, model: nn.Module, behind: Callable[[], Any]) -> None:
    for x, _ in loader:
        controller.backward(model(x).square().mean())
        behind()
        controller.step()


def test_a_step_of_the_optimizer_beside_the_controllers() -> None:
    model = network()
    optimizer = sgd(model)
    controller, loader = controlled(model, optimizer)
    refused(
        DeliveryError,
        r"optimizer.step\(\) beside controller.step\(\).*Leave the loop's own call out",
        lambda: _epoch(controller, loader, model, optimizer.step),
    )
    assert controller.steps == 0


def test_the_loop_may_step_when_no_epoch_is_under_way() -> None:
    model = network()
    optimizer = sgd(model)
    controller, loader = controlled(model, optimizer)
    _epoch(controller, loader, model, lambda: None)
    optimizer.step()
    for _ in loader:
        break
    optimizer.step()


def test_a_second_optimizer_of_the_same_parameters() -> None:
    model = network()
    first, second = sgd(model[0]), sgd(model[2])
    controller, loader = controlled(model, first)
    refused(
        ConfigurationError,
        "A second optimizer, SGD, steps parameters of the controller's model.*one optimizer",
        lambda: _epoch(controller, loader, model, second.step),
    )


def test_a_second_optimizer_of_another_model_steps_with_whole_batches_only() -> None:
    model, other = network(), network()
    controller, loader = controlled(model, sgd(model))
    stranger = sgd(other)
    _epoch(controller, loader, model, stranger.step)
    controller, loader = controlled(model, sgd(model), micro_batch_size=5)
    refused(
        DeliveryError,
        r"A second optimizer, SGD, steps between two parts.*if controller.step\(\)",
        lambda: _epoch(controller, loader, model, stranger.step),
    )


def test_optimizers_that_step_within_the_backward_pass() -> None:
    model = network()
    single = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for parameter, own in single.items():
        parameter.register_post_accumulate_grad_hook(lambda _, own=own: own.step())
    controller, loader = controlled(model, sgd(model))
    refused(
        ConfigurationError,
        "steps within the backward pass.*Remove the hooks",
        lambda: _epoch(controller, loader, model, lambda: None),
    )


def test_hooks_that_step_by_hand_within_the_backward_pass() -> None:
    model = network()

    def descend(parameter: Any) -> None:
        with torch.no_grad():
            parameter -= 0.1 * parameter.grad

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(descend)
    controller, loader = controlled(model, sgd(model))
    refused(
        ConfigurationError,
        "A hook steps within the backward pass",
        lambda: _epoch(controller, loader, model, lambda: None),
    )


def test_two_controllers_on_one_model_at_once() -> None:
    model = network()
    optimizer = sgd(model)
    one, first = controlled(model, optimizer)
    other, second = controlled(model, optimizer)

    def both() -> None:
        for (x, _), (y, _) in zip(first, second, strict=True):
            for controller, batch in ((one, x), (other, y)):
                controller.backward(model(batch).square().mean())
                controller.step()

    refused(ConfigurationError, "Another controller has begun to train the same Sequential", both)


def test_two_controllers_by_turns() -> None:
    model = network()
    optimizer = sgd(model)
    one, first = controlled(model, optimizer)
    other, second = controlled(model, optimizer)
    _epoch(one, first, model, lambda: None)
    _epoch(other, second, model, lambda: None)
    refused(
        ConfigurationError,
        "Another controller",
        lambda: _epoch(one, first, model, lambda: None),
    )
    other.close()
    _epoch(one, first, model, lambda: None)


class Order(Sampler[int]):
    """Hands out an order that somebody made; says something of itself, or not."""

    def __init__(self, order: list[int], **known: Any) -> None:
        self.order = order
        self.__dict__.update(known)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


def shuffled(count: int) -> list[int]:
    """The same order each time: in one of five, a first step of 16 samples shows no groups."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()


def by_class(groups: int) -> list[int]:
    """Samples of one class side by side, in groups of 4."""
    draw = torch.Generator().manual_seed(0)
    own = [[i for i in range(SAMPLES) if i % 6 == kind] for kind in range(6)]
    blocks = [row[start : start + groups] for row in own for start in range(0, len(row), groups)]
    return [
        i for block in torch.randperm(len(blocks), generator=draw).tolist() for i in blocks[block]
    ]


@pytest.mark.parametrize(
    "sampler",
    [
        Order(list(range(SAMPLES)), m_per_class=4),
        Order(list(range(SAMPLES)), num_instances=2),
        Order(list(range(SAMPLES)), batch_size=BASE),
        Order(by_class(4)),
        Order([i for pair in shuffled(48) for i in (2 * pair, 2 * pair + 1)]),
        Order([i for i in shuffled(SAMPLES) for _ in range(3)]),
    ],
    ids=["m_per_class", "num_instances", "batch_size", "classes", "pairs", "repeated"],
)
def test_samplers_that_lay_groups_side_by_side(sampler: Order) -> None:
    model = network()
    controller = rlbatch.BatchController(
        model, sgd(model), batch_size=BASE, policy="fixed", cost="samples"
    )
    source: Dataset[Any] = data()

    def program() -> None:
        loader = controller.loader(DataLoader(source, BASE, sampler=sampler))
        _epoch(controller, loader, model, lambda: None)

    refused(ConfigurationError, r"lays samples that belong together side by side \(", program)


@pytest.mark.parametrize("seed", range(20))
def test_samplers_in_no_order_are_let_through(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    model = network()
    controller = rlbatch.BatchController(model, sgd(model), batch_size=BASE, policy="fixed")
    labels = torch.randint(2, (SAMPLES,), generator=draw)
    order = torch.randperm(SAMPLES, generator=draw).tolist()
    source = TensorDataset(torch.randn(SAMPLES, 3), labels)
    loader = controller.loader(DataLoader(source, BASE, sampler=Order(order)))
    _epoch(controller, loader, model, lambda: None)


def test_a_step_that_saving_made_up_is_warned_about() -> None:
    """Compared with the run that was not saved before its first step: Adam goes another way."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    def train(*, saves: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        if saves:
            get_state_dict(model, optimizer)
        controller = rlbatch.BatchController(model, optimizer, batch_size=8, policy="fixed")
        data = TensorDataset(torch.ones(32, 3))
        for (x,) in controller.loader(DataLoader(data, 8)):
            controller.backward(model(x).square().mean())
            controller.step()
        return model.weight.detach()

    plain = train(saves=False)
    with pytest.warns(RuntimeWarning, match="has counted a step that the run did not make"):
        saved = train(saves=True)
    assert float((plain - saved).abs().max()) > 1e-3
