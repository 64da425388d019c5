"""What loops write to `loss.backward`: passed on, with nothing measured otherwise, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

import rlbatch
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.testing import ScriptedPolicy
from tests.helpers import drawn_rows
from tests.rlbatch.integrations.steered import TWO_STEP_CHUNKS, ByBits

SAMPLES, BASE = 72, 8


class Measuring(ScriptedPolicy):
    """Asks for the gradient noise."""

    needs_gradient_noise = True


class Run:
    """A training, with rlbatch or alone, that asks the graph again behind its backward pass."""

    def __init__(
        self, policy: Any = None, *, again: bool = True, scaled: bool = False, **told: Any
    ) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = SGD(self.model.parameters(), lr=0.05, momentum=0.5)
        self.again, self.scaler = again, torch.amp.GradScaler("cpu") if scaled else None
        self.loader: Any = DataLoader(drawn_rows(SAMPLES), BASE, shuffle=True)
        self.controller: Any = None
        self.sizes: list[int] = []
        self.second: list[Tensor] = []
        if policy is not None:
            self.controller = rlbatch.BatchController(
                self.model, self.optimizer, batch_size=BASE, policy=policy, scaler=self.scaler,
                **{**TWO_STEP_CHUNKS, **told},
            )  # fmt: skip
            self.loader = self.controller.loader(self.loader)

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def train(self, epochs: int = 3, weight: float | None = None) -> Run:
        for _ in range(epochs):
            for x, y in self.loader:
                loss = nn.functional.mse_loss(self.model(x), y)
                told: Any = {"retain_graph": True} if self.again else {}
                if self.controller is not None:
                    self.controller.backward(loss, weight, **told)
                else:
                    (loss if self.scaler is None else self.scaler.scale(loss)).backward(**told)
                if self.again:
                    found = torch.autograd.grad(loss, list(self.model.parameters()))
                    self.second.append(torch.cat([g.reshape(-1) for g in found]))
                self._step(len(x))
        return self

    def _step(self, samples: int) -> None:
        if self.controller is not None:
            self.sizes.append(self.controller.step())
            return
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        self.sizes.append(samples)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("policy", ["fixed", Measuring((0.0,) * 50)])
def test_a_graph_that_is_kept_leaves_the_run_the_plain_one(policy: Any, scaled: bool) -> None:
    plain = Run(scaled=scaled).train()
    ours = Run(policy, scaled=scaled, noise_rate=5.0).train()
    assert torch.equal(plain.weights, ours.weights)
    assert torch.equal(torch.stack(plain.second), torch.stack(ours.second))
    if policy != "fixed":
        assert ours.controller._run.adapter.control_loop.progress.noise_seen


@pytest.mark.parametrize("weight", [None, 3.0])
@pytest.mark.parametrize("parts", [None, 3])
def test_nothing_is_measured_otherwise(parts: int | None, weight: float | None) -> None:
    """The policy goes another way where one bit of what it sees differs."""
    told = {"micro_batch_size": parts, "noise_rate": 5.0}
    one, other = (Run(ByBits(), again=again, **told).train(4, weight) for again in (False, True))
    assert one.sizes == other.sizes
    assert len(set(one.sizes)) > 3
    assert torch.equal(one.weights, other.weights)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"create_graph": True}, r"does not pass create_graph on.*torch\.autograd\.grad\("),
        ({"inputs": [torch.zeros(1)]}, r"inputs on.*requires_grad_\(False\) on the others"),
        ({"gradient": torch.ones(())}, r"controller\.backward\(\(loss \* gradient\)\.sum\(\)\)"),
        ({"keep_graph": True}, "takes loss, weight and retain_graph, and got keep_graph"),
    ],
)
def test_what_is_not_passed_on_is_refused(told: dict[str, Any], words: str) -> None:
    run = Run("fixed")
    x, y = next(iter(run.loader))
    loss = nn.functional.mse_loss(run.model(x), y)
    with pytest.raises(ConfigurationError, match=words) as caught:
        run.controller.backward(loss, **told)
    assert str(caught.value).count(". ") <= 1
    # The loop may go on with what the sentence says.
    defaults: Any = {"create_graph": False, "inputs": None, "gradient": None}
    run.controller.backward(loss, retain_graph=None, **defaults)
    assert run.controller.step() == BASE


def test_two_losses_of_one_batch_are_summed() -> None:
    run = Run("fixed")
    x, y = next(iter(run.loader))
    out = run.model(x)
    run.controller.backward(nn.functional.mse_loss(out, y), retain_graph=True)
    with pytest.raises(DeliveryError, match="with the sum of all losses"):
        run.controller.backward(out.abs().mean())


def test_what_the_sentences_say_is_the_plain_loop() -> None:
    """Frozen in place of `inputs=`; multiplied in place of `gradient=`."""

    def train(run: Run) -> Tensor:
        last = list(run.model[2].parameters())
        for number, (x, y) in enumerate(run.loader):
            freezes = number % 2 == 0 and run.controller is not None
            for parameter in run.model[0].parameters():
                parameter.requires_grad_(not freezes)
            loss, factor = nn.functional.mse_loss(run.model(x), y), torch.tensor(0.5)
            if run.controller is not None:
                run.controller.backward(loss if number % 2 == 0 else (loss * factor).sum())
            elif number % 2 == 0:
                loss.backward(inputs=last)
            else:
                loss.backward(factor)
            run._step(len(x))
        return run.weights

    assert torch.equal(train(Run()), train(Run("fixed")))


def test_a_closure_is_no_norm() -> None:
    run = Run("fixed")
    x, y = next(iter(run.loader))
    run.controller.backward(nn.functional.mse_loss(run.model(x), y))
    wrong: Any
    for wrong in (lambda: None, "1", True, run.optimizer):
        with pytest.raises(ConfigurationError, match=r"clip_norm must be a number.*no closure"):
            run.controller.step(wrong)
    assert run.controller.step(torch.tensor(1.0)) == BASE
