"""Programs of the plain loop in a Lightning fit, against Lightning alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR
from torch.utils.data import DataLoader, Sampler

pytest.importorskip("lightning")

from rlbatch.control.guard import GuardConfig
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations.lightning import BatchSizeCallback
from rlbatch.testing import ScriptedPolicy
from tests.contract.test_lightning import Program
from tests.rlbatch.integrations.lightning_runs import MARKS, Net, Rows, Run

pytestmark = MARKS
SIZES = ScriptedPolicy((1.0, -0.5, 0.7, 0.0))


class Measuring(ScriptedPolicy):
    """Asks for the gradient noise."""

    needs_gradient_noise = True


def train(policy: Any, net: Any, epochs: int = 2, loader: Any = None, **settings: Any) -> Any:
    loader = DataLoader(Rows(44), 8, shuffle=True) if loader is None else loader
    return Run(policy, net=net, loader=loader, val=False, max_epochs=epochs, settings=settings)


def weights(net: Any) -> Tensor:
    return torch.cat([p.detach().reshape(-1).double() for p in net.parameters()])


class Lazy(Program):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 1))


class Copied(Program):
    """Writes itself to a file within its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[bytes] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, file = super().training_step(batch, batch_idx), io.BytesIO()
        torch.save(self.net, file)
        self.files.append(file.getvalue())
        return loss


@pytest.mark.parametrize("make", [Lazy, Copied])
def test_a_measured_run_is_the_plain_one(make: Callable[[], Any]) -> None:
    plain, ours = make(), make()
    train(None, plain)
    run = train(Measuring((0.0,) * 50), ours)
    assert torch.equal(weights(plain), weights(ours))
    assert run.controller._loop.progress.noise_seen
    if isinstance(ours, Copied):
        assert all(b"rlbatch" not in file for file in ours.files)


def test_a_model_converted_in_the_run_is_copied_as_it_is() -> None:
    class Converted(Program):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch:
                self.net.double()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            kind = self.net[0].weight.dtype
            loss = nn.functional.mse_loss(self.net(batch[1].to(kind)), batch[2].to(kind))
            return loss.float()

    chunks = {f"{name}_chunk_steps": 1 for name in ("first", "min", "max")}
    policy = ScriptedPolicy((1.0, -1.0) * 20)  # copies are made before a size rises
    run = train(policy, Converted(), guard=GuardConfig(), **chunks)
    copied = run.controller._parts.weights.state_dict()["tensors"]
    kinds = {tensor.dtype for kind, _, _, tensor in copied if kind == "parameter"}
    assert kinds == {torch.float64}


@pytest.mark.parametrize("policy", ["fixed", SIZES])
def test_a_chain_of_schedules_ends_where_the_plain_one_does(policy: Any) -> None:
    def chain(optimizer: Any, module: Any) -> Any:
        parts = [ConstantLR(optimizer, 0.1, 4), ExponentialLR(optimizer, 0.9)]
        return {"scheduler": ChainedScheduler(parts, optimizer), "interval": "step"}

    rates = [train(one, Net(chain)).rate for one in (None, policy)]
    assert rates[1] == pytest.approx(rates[0], rel=1e-12)


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 4}])
def test_a_term_times_0_changes_nothing(settings: dict[str, Any]) -> None:
    class Term(Program):
        factor: Any = None

        def __init__(self) -> None:
            super().__init__(make=lambda _: SGD(self.parameters(), lr=0.05))
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
            self.unused = nn.Parameter(torch.ones(3))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss if self.factor is None else loss + self.factor * self.unused.sum()

    class Zero(Term):
        factor = 0.0

    nets = [Term(), Zero()]
    for net in nets:
        train(SIZES, net, **settings)
    assert torch.equal(weights(nets[0]), weights(nets[1]))


def test_a_dataset_that_grows_between_epochs() -> None:
    seen = []
    for policy in (None, "fixed", SIZES):
        data = Rows(40)

        class Grows(Program):
            def on_train_epoch_end(self, data: Any = data) -> None:
                more = Rows(51)
                data.x, data.y = more.x, more.y

        net = Grows()
        train(policy, net, loader=DataLoader(data, 8, shuffle=True))
        seen.append(net.sizes)
    assert seen[1] == seen[0]
    assert sum(seen[2]) == sum(seen[0])


def test_samplers_that_lay_groups_side_by_side_are_refused() -> None:
    class Groups(Sampler[int]):
        def __init__(self, **named: int) -> None:
            self.__dict__.update(named)

        def __len__(self) -> int:
            return 48

        def __iter__(self) -> Any:
            return iter(range(48))

    loader = DataLoader(Rows(48), 8, sampler=Groups(m_per_class=4))
    with pytest.raises((ConfigurationError, DeliveryError), match="m_per_class"):
        train(SIZES, Program(), loader=loader)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
@pytest.mark.parametrize("told", [{"retain_graph": True}, {"create_graph": True}])
@pytest.mark.parametrize("again", [False, True])
def test_a_module_whose_backward_keeps_the_graph(told: Any, again: bool) -> None:
    """Where it is gone through again at once, what hooks saw adds up to no gradient: left out."""

    class Retaining(Program):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward(**told)
            if again:
                torch.autograd.grad(loss, list(self.net.parameters()))

    plain, ours = Retaining(), Retaining()
    train(None, plain)
    run = train(Measuring((0.0,) * 50), ours)
    assert torch.equal(weights(plain), weights(ours))
    assert run.controller._loop.progress.noise_seen != again


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"weight": True}, "weight must be a function of a batch, or None; got True"),
        ({"weight": nn.Linear}, "got the class Linear"),
        ({"monitor": ["val_loss"]}, "monitor must be of the class str; got list"),
        ({"config": "fixed"}, "config must be of the class ControllerConfig; got 'fixed'"),
        ({"max_batch_size": 8.0}, "max_batch_size must be a whole number of samples"),
    ],
)
def test_arguments_of_another_kind(told: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        BatchSizeCallback(**told)
