"""The situations of the plain loop in a Lightning fit; gradients: `test_lightning_gradients`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule

from rlbatch.control.guard import GuardConfig
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations.lightning import BatchSizeCallback
from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.integrations.lightning_runs import MARKS, Net, Rows, Run
from tests.rlbatch.integrations.steered import Follow

pytestmark = MARKS


class Program(LightningModule):
    """Notes its batches; `term` of the step is added to its loss, `make` makes its optimizer."""

    def __init__(self, term: Any = None, make: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
        self.term, self.make = term, make or (lambda p: SGD(p, lr=0.05))
        self.sizes: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        _, x, y = batch
        self.sizes.append(len(x))
        loss = nn.functional.mse_loss(self.net(x), y)
        return loss if self.term is None else loss + self.term(self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        return self.make(self.net.parameters())


def loader(samples: int, batch_size: int) -> Any:
    return DataLoader(Rows(samples), batch_size, shuffle=True)


def ramp(step: int) -> float:
    return min(max(step - 64, 0) / 200.0, 1.0) * 5.0


def switched_on(step: int) -> float:
    return 10.0 * (step >= 100)


@pytest.mark.parametrize("term", [ramp, switched_on])
@pytest.mark.filterwarnings("error:rlbatch")
def test_a_term_that_is_phased_in_is_not_rolled_back(term: Any) -> None:
    run = Run(
        ScriptedPolicy((0.3, -0.3) * 60), net=Program(term), loader=loader(512, 16), val=False,
        max_epochs=8, settings={"guard": GuardConfig()},
    )  # fmt: skip
    assert run.controller.components["rollbacks"] == 0
    assert run.controller.components["enabled"]


@pytest.mark.parametrize("policy", ["fixed", Follow(lambda made: 13 + made % 40)])
def test_a_schedule_of_short_epochs_ends_where_the_plain_one_does(policy: Any) -> None:
    """65 samples at 64 for 10 epochs: 20 steps of the schedule."""

    def schedule(optimizer: Any, module: Any) -> Any:
        return {"scheduler": LambdaLR(optimizer, lambda step: 0.5**step), "interval": "step"}

    runs = [
        Run(
            one, net=Net(schedule), loader=loader(65, 64), val=False, max_epochs=10,
            settings={"guard": None},
        )
        for one in (None, policy)
    ]  # fmt: skip
    assert runs[0].rate == runs[1].rate == pytest.approx(3e-3 * 0.5**20)


def test_no_epoch_ends_with_a_single_sample() -> None:
    net = Program()
    Run(Follow(lambda made: 45), net=net, loader=loader(136, 34), val=False, max_epochs=3)
    assert net.sizes[-3:] == [45, 45, 46]


def test_frozen_weights_are_neither_copied_nor_saved() -> None:
    net = Program()
    net.net[0].requires_grad_(False)
    run = Run(
        Follow(lambda made: 12), net=net, loader=loader(96, 8), val=False, max_epochs=1,
        settings={"guard": GuardConfig(), "first_chunk_steps": 4, "min_chunk_steps": 4,
                  "max_chunk_steps": 5},
    )  # fmt: skip
    copied = run.callback.state_dict()["controller"]["control_loop"]["guard"]["copy"]
    assert copied is not None
    kinds = {(kind, index) for kind, index, _, _ in copied["tensors"] if kind == "parameter"}
    assert kinds == {("parameter", index) for index in (2, 3, 4, 5)}  # neither 0 nor 1


def refused(match: str, net: Any = None) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Run("fixed", net=net or Program(), val=False)


def test_optimizers_that_cannot_be_steered_are_refused() -> None:
    refused("LBFGS", Program(make=LBFGS))
    other = nn.Linear(2, 2)
    refused("holds no parameter of", Program(make=lambda p: SGD(other.parameters(), lr=0.1)))
    refused("learning rate", Program(make=_without_rate))

    def two(parameters: Any) -> Any:
        first, *rest = list(parameters)
        return [SGD([first], lr=0.1), SGD(rest, lr=0.1)]

    refused("automatic|manual|one", Manual(make=two))
    with pytest.raises(RuntimeError, match="more than one stateful callback"):  # by Lightning
        Run("fixed", net=Program(), val=False, callbacks=(BatchSizeCallback("fixed"),))


class Manual(Program):
    """Optimizes by itself, as several optimizers need it."""

    def __init__(self, **made: Any) -> None:
        super().__init__(**made)
        self.automatic_optimization = False


def _without_rate(parameters: Any) -> Any:
    optimizer = SGD(parameters, lr=0.1)
    for group in optimizer.param_groups:
        group["lr"] = None
    return optimizer


# -- what goes by optimizer steps --


class ByHand(Program):
    """Warms up by optimizer steps, and keeps averages where Lightning zeroes gradients."""

    warms_up = updates = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.warms_up:
            rate = 0.05 * min(1.0, (self.trainer.global_step + 1) / 9)
            self.trainer.optimizers[0].param_groups[0]["lr"] = rate

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.updates += 1


def test_a_rate_that_is_set_by_hand_is_warned_about() -> None:
    net = ByHand()
    net.warms_up = 1
    with pytest.warns(RuntimeWarning, match="something else than the schedule"):
        Run(ScriptedPolicy((1.0,)), net=net, loader=loader(64, 8), val=False, max_epochs=1)
    Run("fixed", net=net, loader=loader(64, 8), val=False, max_epochs=1)  # the plain run


class Clamps(Program):
    """Moves the weight decay by steps, and clips by hooks on parameters."""

    moves = clamps = False

    def on_fit_start(self) -> None:
        if self.clamps:
            for parameter in self.net.parameters():
                parameter.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.moves:
            group = self.trainer.optimizers[0].param_groups[0]
            group["weight_decay"] = 1e-4 * self.trainer.global_step


def test_a_weight_decay_by_steps_and_hooks_that_clip_parts_are_warned_about() -> None:
    net = Clamps()
    net.moves = True
    with pytest.warns(RuntimeWarning, match="than the schedule sets the weight decay"):
        Run(ScriptedPolicy((1.0,)), net=net, loader=loader(64, 8), val=False, max_epochs=1)
    net = Clamps()
    net.clamps = True
    with pytest.warns(RuntimeWarning, match="a hook on a parameter changes its gradient"):
        Run(
            ScriptedPolicy((2.0,)), net=net, loader=loader(100, 8), val=False, max_epochs=2,
            settings={"micro_batch_size": 8},
        )  # fmt: skip


def test_a_stream_is_refused_by_its_name() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(Rows(64))

    stream = DataLoader(Endless(), 8)
    with pytest.raises(ConfigurationError, match="got the stream Endless"):
        Run("fixed", net=Program(), loader=stream, val=False, max_epochs=1)


def test_the_hook_before_zeroing_comes_once_a_step() -> None:
    net = ByHand()
    run = Run(
        ScriptedPolicy((2.0,)), net=net, loader=loader(100, 8), val=False, max_epochs=2,
        settings={"micro_batch_size": 8},
    )  # fmt: skip
    assert net.updates == run.trainer.global_step < len(net.sizes)


def test_an_average_that_is_updated_between_parts_is_refused() -> None:
    class Averages(Program):
        def on_train_start(self) -> None:
            self.average = torch.optim.swa_utils.AveragedModel(self.net)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.average.update_parameters(self.net)

    with pytest.raises(DeliveryError, match=r"AveragedModel.*on_before_zero_grad"):
        Run(
            ScriptedPolicy((2.0,)), net=Averages(), loader=loader(100, 8), val=False, max_epochs=2,
            settings={"micro_batch_size": 8},
        )  # fmt: skip


def test_a_sum_that_grows_with_the_batch_is_said() -> None:
    class Sums(Program):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 0.0 + self.net(batch[1]).square().sum()

    with pytest.warns(RuntimeWarning, match="with the batch size its gradient grows"):
        Run(ScriptedPolicy((1.0,)), net=Sums(), loader=loader(64, 8), val=False, max_epochs=2)
    Run("fixed", net=Sums(), loader=loader(60, 8), val=False, max_epochs=1)
