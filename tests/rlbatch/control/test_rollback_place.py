"""Where a roll-back goes to, and that the log says so: compared with weights kept at every step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.control import rollback
from rlbatch.control.config import ControllerConfig
from rlbatch.control.ranks import Ranks
from rlbatch.control.torch_parts import torch_parts
from rlbatch.controller import BatchController
from rlbatch.log.episode_reader import read_episode
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.testing import ScriptedPolicy

SPOILT = 28  # optimizer steps before the loss is not a number


def train(folder: Path, resume_at: int | None = None) -> tuple[list[Tensor], BatchController]:
    """Return the weights before and after each step, of a run whose loss is spoilt once."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    x = torch.randn(400, 3)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    controller = BatchController(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        batch_size=4,
        policy=ScriptedPolicy((1.0, *(0.0,) * 50)),
        cost="samples",
        lr_coupling="none",
        log_dir=folder,
    )
    loader = controller.loader(DataLoader(data, 4))
    weights = [model.weight.detach().clone()]
    while controller.steps < 60:
        for inputs, targets in loader:
            loss = nn.functional.mse_loss(model(inputs), targets)
            controller.backward(loss * torch.nan if controller.steps == SPOILT else loss)
            controller.step()
            weights.append(model.weight.detach().clone())
            if controller.steps == resume_at:
                controller.load_state_dict(controller.state_dict())
                resume_at = None
                break
    controller.close()
    return weights, controller


def undone(folder: Path) -> tuple[int, int, str]:
    """Return the place of the only roll-back, the step that it went to, and what was said."""
    (record,) = [one for one in read_episode(folder).records if one.event == "rollback"]
    (said,) = [reason for reason in record.reasons if reason.startswith("undone")]
    found = re.match(r"undone: the weights are those after step (\d+)", said)
    assert found is not None
    return record.step, int(found[1]), said


@pytest.mark.parametrize("cheap", [True, False])
@pytest.mark.parametrize("resume_at", [None, SPOILT, SPOILT + 1])
def test_the_log_says_of_which_step_the_weights_are(
    cheap: bool, resume_at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "_CHEAP", 1e9 if cheap else -1.0)
    with pytest.warns(RuntimeWarning, match=r"those after step \d+ again"):
        weights, _ = train(tmp_path, resume_at)
    step, back_to, said = undone(tmp_path)

    assert torch.equal(weights[step], weights[back_to])
    assert not torch.isfinite(weights[step - 1]).all()
    ends = [record.step for record in read_episode(tmp_path).records if record.step < SPOILT + 1]
    if cheap:
        assert back_to == ends[-1]  # to the chunk's start
        assert "latest copy" not in said
    else:
        assert back_to == ends[0]  # where the size rose
        assert said.endswith(f"of the latest copy; the chunk began after step {ends[-1]}")


class _Silent(Ranks):
    """Ranks that count what they ask each other."""

    asked = 0

    def agree_on(self, *numbers: int) -> tuple[int, ...]:
        self.asked += 1
        return numbers

    def mean(self, values: Any) -> Any:
        self.asked += bool(len(values))
        return values


def test_a_chunk_asks_the_other_ranks_once_for_its_copy_and_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = _Silent()
    monkeypatch.setattr(rollback, "_CHEAP", 1e9)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    adapter = LoopAdapter(
        torch_parts(model, optimizer),
        batch_size=4,
        dataset_size=400,
        policy=ScriptedPolicy((1.0, *(0.0,) * 50)),
        config=ControllerConfig(cost="samples"),
        ranks=ranks,
    )
    adapter.begin_epoch()
    asked: list[int] = []
    for _ in range(40):
        size = adapter.batch_size
        adapter.begin_step(size, (size,))
        adapter.after_backward(torch.tensor(1.0))
        adapter.end_step(size, epoch=0, position=0)
        asked.append(ranks.asked)

    # Per chunk one broadcast; the all-reduce is the rank monitor's, which is not in use here.
    chunks = [step for step in range(1, 40) if asked[step] > asked[step - 1]]
    assert asked[-1] == 1 + len(chunks)
    assert len(chunks) > 5
    assert adapter.batch_size == 8
