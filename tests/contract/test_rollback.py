"""A roll-back puts back all that the damaged steps changed, holds no more copies, and says so."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rlbatch
from rlbatch.errors import ConfigurationError
from rlbatch.testing import ScriptedPolicy

BASE = 8


class Program:
    """A frozen base, trained weights, statistics, a target network, a temperature and a copy."""

    def __init__(self, frozen: int = 16) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(6, frozen), nn.BatchNorm1d(frozen), nn.Linear(frozen, 4), nn.Linear(4, 1)
        )
        self.model[0].requires_grad_(False)
        self.model[3].requires_grad_(False)  # follows the layer below, as a target network does
        self.temperature = nn.Parameter(torch.ones(()))  # only the optimizer holds it
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([*trained, self.temperature], lr=0.01)
        self.average = copy.deepcopy(self.model)
        self.queue = torch.zeros(3)
        self.controller = rlbatch.BatchController(
            self.model,
            self.optimizer,
            batch_size=BASE,
            policy=ScriptedPolicy((0.0, 1.0)),
            cost="samples",
            first_chunk_steps=4,
        )
        x = torch.randn(200, 6)
        data = TensorDataset(x, x.sum(1, keepdim=True))
        self.loader = self.controller.loader(DataLoader(data, BASE))
        self.states: list[dict[str, Tensor]] = []

    def state(self) -> dict[str, Tensor]:
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, row in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in row.items()}
        found |= {"temperature": self.temperature, "queue": self.queue}
        return {k: v.detach().clone() for k, v in found.items()}

    def train(self, until: int, spoilt: range = range(0)) -> Program:
        for x, y in self.loader:
            step = self.controller.steps
            self.states.append(self.state())
            loss = nn.functional.mse_loss(self.model(x) * self.temperature, y)
            self.controller.backward(loss * math.nan if step in spoilt else loss)
            self.controller.step()
            with torch.no_grad():
                layers: Any = self.model
                layers[3].weight.mul_(0.9).add_(layers[2].weight.mean() * 0.1)
                for mean, own in zip(self.average.parameters(), self.model.parameters()):  # noqa: B905
                    mean.lerp_(own, 0.5)
                self.queue.copy_(self.queue.roll(1))[0] = step
            if self.controller.steps == until:
                self.states.append(self.state())
                break
        return self


def test_everything_is_put_back_that_the_run_is_told_of() -> None:
    program = Program()
    program.controller.on_rollback(program.average)
    program.controller.on_rollback(program.queue.clone, program.queue.copy_)
    with pytest.warns(RuntimeWarning, match="These steps are undone") as said:
        program.train(13, spoilt=range(8, 12))
    assert len(said) == 1
    # What the loop itself does behind the step that ended the chunk is its own.
    before, after = program.states[8], program.states[12]
    own = ("average", "queue", "model.3.weight")
    compared = [key for key in before if not key.startswith(own)]
    assert len(compared) > 20
    for key in compared:
        assert torch.equal(before[key], after[key]), key
    for key, value in after.items():
        assert torch.isfinite(value).all(), key
    for name, parameter in program.average.state_dict().items():
        assert torch.isfinite(parameter.double()).all(), name


def test_a_parameter_that_only_the_optimizer_holds_is_put_back() -> None:
    program = Program()
    with pytest.warns(RuntimeWarning, match="undone"):
        program.train(13, spoilt=range(8, 12))
    assert torch.equal(program.states[8]["temperature"], program.states[12]["temperature"])
    assert not torch.equal(program.states[8]["temperature"], torch.ones(()))


def test_a_copy_of_weights_that_nobody_named_is_lost_which_the_warning_says() -> None:
    program = Program()
    with pytest.warns(RuntimeWarning, match=r"moving average.*controller\.on_rollback"):
        program.train(13, spoilt=range(8, 12))
    assert not torch.isfinite(program.states[-1]["average.2.weight"]).all()


def test_what_is_frozen_is_neither_copied_nor_saved() -> None:
    program = Program(frozen=4096).train(10)  # within a chunk that may be undone
    snapshot: Any = program.controller._run.adapter._loop.guard.snapshot
    frozen: Any = program.model[0].weight
    assert snapshot.taken
    assert not any(tensor.shape == frozen.shape for tensor in snapshot._saved.values())
    saved = io.BytesIO()
    torch.save(program.controller.state_dict(), saved)
    held = [p for p in program.model.parameters() if p.requires_grad]
    trained = 3 * sum(p.nbytes for p in held)  # with AdamW's two moments
    statistics = sum(b.nbytes for b in program.model.buffers())
    assert saved.tell() < trained + statistics + 60_000
    assert frozen.nbytes > 90_000


def test_a_resumed_run_goes_on_with_the_copy_of_its_chunk() -> None:
    first = Program()
    first.controller.on_rollback(first.average)
    first.train(10)
    saved = io.BytesIO()
    state = {
        "model": first.model.state_dict(),
        "optimizer": first.optimizer.state_dict(),
        "average": first.average.state_dict(),
        "temperature": first.temperature.detach(),
        "controller": first.controller.state_dict(),
    }
    torch.save(state, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    second = Program()
    second.model.load_state_dict(state["model"])
    second.average.load_state_dict(state["average"])
    second.optimizer.load_state_dict(state["optimizer"])
    second.temperature.data.copy_(state["temperature"])
    second.controller.load_state_dict(state["controller"])
    second.controller.on_rollback(second.average)
    with pytest.warns(RuntimeWarning, match="undone"):
        second.train(13, spoilt=range(10, 12))
    before, after = first.states[8], second.states[2]
    for key in ("model.2.weight", "model.1.running_mean", "temperature", "optimizer.0.exp_avg"):
        assert torch.equal(before[key], after[key]), key


def test_a_hook_has_to_save_and_to_restore() -> None:
    with pytest.raises(ConfigurationError, match="on_rollback"):
        Program().controller.on_rollback(3)
    with pytest.raises(ConfigurationError, match="two functions"):
        Program().controller.on_rollback(lambda: 3)
