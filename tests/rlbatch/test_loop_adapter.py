"""The seam for loops of any framework, driven by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlbatch.control.config import ControllerConfig
from rlbatch.control.settings import make_config
from rlbatch.control.torch_parts import TorchParts, torch_parts
from rlbatch.errors import ConfigurationError
from rlbatch.log.episode_reader import read_episode
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.testing import ScriptedPolicy

BASE, SIZE = 8, 400
CHUNKS: dict[str, Any] = {f"{name}_chunk_steps": 2 for name in ("first", "min", "max")}


class Loop:
    """A loop as a framework has it: it asks for sizes and tells what it does."""

    def __init__(self, model: nn.Module, policy: Any, **settings: Any) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        self.parts: TorchParts = torch_parts(model, self.optimizer)
        config: ControllerConfig = make_config(
            None, {"cost": "samples", "lr_coupling": "none", **CHUNKS, **settings}
        )
        self.adapter = LoopAdapter(
            self.parts, batch_size=BASE, dataset_size=SIZE, policy=policy, config=config
        )
        self.position = 0

    def step(self, spoil: float = 1.0) -> None:
        size = self.adapter.batch_size
        self.adapter.begin_step(size, [size])
        loss = self.model(torch.ones(size, 3)).square().mean() * spoil
        loss.backward()
        self.adapter.after_backward(loss)
        with self.parts.rate.applied():
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.position += size
        self.adapter.end_step(size, epoch=0, position=self.position)


def test_a_roll_back_restores_what_the_framework_named() -> None:
    torch.manual_seed(0)
    loop = Loop(nn.Linear(3, 1), ScriptedPolicy((1.0,)))
    average, queue = nn.Linear(3, 1), torch.zeros(1)
    loop.adapter.on_rollback(average)
    loop.adapter.on_rollback(queue.clone, queue.copy_)
    loop.adapter.begin_epoch()

    def change() -> None:
        queue.add_(1.0)
        with torch.no_grad():
            average.weight.add_(1.0)

    for _ in range(2):
        loop.step()
        change()
    weights: Tensor = average.weight.detach().clone()
    before = loop.model.state_dict()["weight"].clone()
    loop.step()
    change()
    with pytest.warns(RuntimeWarning, match="was not finite"):
        loop.step(torch.nan)
    assert float(queue) == 2.0
    assert torch.equal(average.weight, weights)
    assert torch.equal(loop.model.state_dict()["weight"], before)


def test_a_hook_has_to_save_and_to_restore() -> None:
    loop = Loop(nn.Linear(3, 1), "fixed")
    for wrong in ((3,), (lambda: 3,), (lambda: 3, 4)):
        with pytest.raises(ConfigurationError, match="Expected on_rollback"):
            loop.adapter.on_rollback(*wrong)  # pyright: ignore[reportArgumentType]


class Bare(nn.Module):
    """A model whose layers show no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Noisy(ScriptedPolicy):
    needs_gradient_noise = True


@pytest.mark.parametrize(("model", "blind"), [(Bare, True), (lambda: nn.Linear(3, 1), False)])
def test_the_log_says_where_no_noise_is_measured(tmp_path: Path, model: Any, blind: bool) -> None:
    loop = Loop(model(), Noisy(()), noise_rate=9.0, log_dir=tmp_path)
    loop.adapter.begin_epoch()
    for _ in range(12):
        loop.step()
    loop.adapter.close()
    said = [
        record.step
        for record in read_episode(tmp_path).records
        if any("no gradient noise is known" in reason for reason in record.reasons)
    ]
    assert len(said) == int(blind)
