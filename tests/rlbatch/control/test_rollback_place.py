"""Where a roll-back goes to, and that the log says so: compared with weights kept at every step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.control import rollback
from rlbatch.controller import BatchController
from rlbatch.log.episode_reader import read_episode
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
