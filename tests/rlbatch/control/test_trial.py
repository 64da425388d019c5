"""A chunk whose loss rose is undone on trial: the next step's loss tells whether it did damage."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.control.guard import ChunkLoss, GuardConfig, GuardState, judge, rises_the_same
from rlbatch.control.snapshot import Snapshot
from rlbatch.controller import BatchController
from rlbatch.log.episode_reader import read_episode
from rlbatch.testing import ScriptedPolicy

RISES = 22  # within the chunk of the first change, which begins behind step 21
STEPS = 60


class Run:
    """A run with a term that is switched on, or with weights that are spoilt, in one chunk.

    Attributes:
        weights: Before each step, and behind the last.
        saved: A checkpoint behind each step.
    """

    def __init__(self, kind: str, folder: Path, state: Any = None) -> None:
        torch.manual_seed(0)
        self.kind, self.model = kind, nn.Linear(3, 1)
        x = torch.randn(400, 3)
        self.data = TensorDataset(x, x.sum(1, keepdim=True))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.controller = BatchController(
            self.model, self.optimizer, batch_size=8,
            policy=ScriptedPolicy((0.0,) * 7 + (1.0, 0.5, -0.5, 0.5, -0.5)),
            cost="samples", lr_coupling="none", log_dir=folder, min_chunk_steps=3,
            max_chunk_steps=3, first_chunk_steps=3,
        )  # fmt: skip
        self.saved: dict[int, Any] = {}
        self.weights: list[Tensor] = []
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.controller.load_state_dict(state["controller"])
        self.loader = self.controller.loader(DataLoader(self.data, 8, shuffle=True))

    def train(self) -> Run:
        controller, model = self.controller, self.model
        while controller.steps < STEPS:
            for x, y in self.loader:
                if self.kind == "damage" and controller.steps == RISES + 3:
                    with torch.no_grad():
                        model.weight += 40.0
                self.weights.append(model.weight.detach().clone())
                loss = nn.functional.mse_loss(model(x), y)
                controller.backward(loss + 50.0 * (self.kind == "term") * (controller.steps > 25))
                controller.step()
                self.saved[controller.steps] = copy.deepcopy(
                    {
                        "model": model.state_dict(),
                        "optimizer": self.optimizer.state_dict(),
                        "controller": controller.state_dict(),
                    }
                )
        controller.close()
        return self


def events(folder: Path) -> list[str]:
    return [record.event for record in read_episode(folder).records]


def tried(folder: Path) -> list[int]:
    """Return the steps at whose ends weights from before were put back on trial."""
    return [
        record.step
        for record in read_episode(folder).records
        if any("are tried for a step" in reason for reason in record.reasons)
    ]


def test_weights_come_back_behind_a_step_that_shows_that_the_loss_rises(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Run("term", tmp_path).train()
    (step,) = tried(tmp_path)
    assert "rollback" not in events(tmp_path)
    assert run.controller.components["rollbacks"] == 0
    assert torch.equal(run.weights[step], run.weights[step - 3])  # those from before, for a step
    after = run.saved[step + 1]["model"]["weight"]
    # What the chunk's last step had made of its weights: one step of Adam from those before it.
    assert not torch.equal(after, run.weights[step - 1])
    assert float((after - run.weights[step - 1]).abs().max()) < 0.011
    assert float((after - run.weights[step]).abs().max()) > 0.015


def test_damage_is_undone_and_said_behind_the_step(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="These steps are undone"):
        run = Run("damage", tmp_path).train()
    (step,) = tried(tmp_path)
    (record,) = [one for one in read_episode(tmp_path).records if one.event == "rollback"]
    assert record.step == step + 1
    assert record.reasons[0].startswith(f"undone: the weights are those after step {step - 3}")
    assert run.controller.components["rollbacks"] == 1
    assert torch.equal(run.weights[step], run.weights[step - 3])
    assert float(run.weights[-1].abs().max()) < 3.0


@pytest.mark.parametrize("kind", ["term", "damage"])
@pytest.mark.filterwarnings("ignore:rlbatch. the loss rose:RuntimeWarning")
def test_a_run_resumed_on_trial_is_the_undisturbed_one(tmp_path: Path, kind: str) -> None:
    whole = Run(kind, tmp_path).train()
    (step,) = tried(tmp_path)
    lines = (tmp_path / "decisions.jsonl").read_text()
    for place in (step - 1, step, step + 1, step + 2):
        again = Run(kind, tmp_path, whole.saved[place]).train()
        assert (tmp_path / "decisions.jsonl").read_text() == lines, place
        assert torch.equal(again.weights[-1], whole.weights[-1]), place
        assert len(again.weights) == len(whole.weights) - place
        assert again.controller.components["rollbacks"] == whole.controller.components["rollbacks"]


def test_an_exchange_is_a_copy_put_back_and_the_present_kept() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    snapshot, queue = Snapshot(model, optimizer), torch.zeros(1)
    snapshot.also.add(queue.clone, queue.copy_)

    def step() -> None:
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        queue.add_(1.0)

    def now() -> list[Tensor]:
        states = [v.clone() for p in model.parameters() for v in optimizer.state[p].values()]
        return [*(p.detach().clone() for p in model.parameters()), *states, queue.clone()]

    step()
    snapshot.begin()
    step()
    snapshot.take()
    before = now()
    step()
    after = now()
    snapshot.exchange()
    assert all(map(torch.equal, now(), before))
    step()
    snapshot.restore()
    assert all(map(torch.equal, now(), after))


def test_the_rule_asks_for_a_loss_as_high_as_the_chunks() -> None:
    config = GuardConfig()
    state = judge(GuardState(), config, ChunkLoss(64, 100, 1.0, 0.1))[1]
    risen = ChunkLoss(128, 100, 20.0, 0.1, changed=True)
    assert judge(state, config, risen)[0]

    def same(loss: float, chunk: ChunkLoss = risen) -> bool:
        return rises_the_same(state, config, chunk, ChunkLoss(64, 1, loss, 0.0))

    assert same(20.0)
    assert same(11.0)
    assert not same(9.0)  # nearer to the level from before
    assert not same(float("nan"))
    assert not same(20.0, ChunkLoss(128, 100, 20.0, 0.1, nonfinite=1, changed=True))
